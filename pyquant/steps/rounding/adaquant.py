"""AdaQuant: weights, scale and bias learned together by gradient descent through the rounding, on the moments.

Unlike AdaRound, a weight may move by any number of codes. Rates are relative to what they move: weights in steps of the grid,
scales in shares of themselves; the bias is solved exactly at every step, because the moments have it in closed form.
Source: Hubara et al. (arXiv 2006.10518), eq. 3; the absolute rates of the paper's code are not used.
"""

from __future__ import annotations

import math

import torch

from pyquant.grid import Grid
from pyquant.ops.adaquant_step import BETAS, LearnedWeight, adaquant_step
from pyquant.ops.fake_quantize import fake_quantize
from pyquant.steps.rounding.objective import Objective, Rounded, nearest

STEPS = 250
WEIGHT_RATE = 0.05  # codes a step
SCALE_RATE = 0.002  # share of the scale a step
_EVERY = 25


def learn(
    objective: Objective, scale: torch.Tensor, zero: torch.Tensor, grid: Grid, steps: int = STEPS
) -> Rounded:
    """Learn continuous weights whose rounding minimises the objective; the best rounding seen is returned.

    Args:
        objective: of one site.
        scale, zero: starting scale and zero point of a row, ``[G, n, 1]``; groups inside a row keep theirs and only weights learn.
        grid: the weight's grid.
        steps: Adam steps, under a cosine schedule.
    """
    h, t = objective.h.float(), objective.t.float()
    # Adam divides by the gradient's size, so this only keeps it in float32's range.
    unit = 1.0 / (
        torch.diagonal(objective.h, dim1=-2, dim2=-1).mean(-1)[:, None, None] * scale.double().square()
    )
    learner = (
        _Rows(objective, scale, zero, grid) if scale.shape[-1] == 1 else _Groups(objective, scale, zero, grid)
    )
    best = nearest(objective.weight, scale, zero, grid)
    best_value = objective.value(best.real())
    for step in range(steps):
        rate = 0.5 * (1 + math.cos(math.pi * step / steps))
        learner.learn(((learner.rounded @ h - t) * unit).float(), step, rate)
        if step % _EVERY == _EVERY - 1 or step == steps - 1:
            now = nearest(learner.position.double() * scale, learner.scale.double(), zero, grid)
            value = objective.value(now.real())
            better = (value < best_value)[..., None]
            best_value = torch.minimum(value, best_value)
            best = Rounded(
                torch.where(better, now.codes, best.codes),
                torch.where(better, now.scale, best.scale),
                best.zero,
            )
    return best


class _Rows:
    """Weights whose rows have a scale of their own, which is learned too."""

    def __init__(self, objective: Objective, scale: torch.Tensor, zero: torch.Tensor, grid: Grid) -> None:
        self.shape = objective.weight.shape
        self.grid = Grid(grid.bits, grid.signed, axis=0, symmetric=grid.symmetric)
        rows = objective.weight.flatten(0, 1)
        self.learned = LearnedWeight.of(
            rows.float(), scale.float().reshape(-1), zero.float().reshape(-1).expand(len(rows))
        )
        self.rounded = fake_quantize(
            self.learned.position * self.learned.start[:, None],
            self.learned.start,
            self.learned.zero_point,
            self.grid,
        ).reshape(self.shape)

    def learn(self, gradient: torch.Tensor, step: int, rate: float) -> None:
        """Move by the gradient of the rounded weights; ``rate`` is that of the schedule."""
        rates = (WEIGHT_RATE * rate, SCALE_RATE * rate)
        rows = self.rounded.flatten(0, 1)
        adaquant_step(self.learned, gradient.flatten(0, 1), self.grid, step, *rates, out=rows)

    @property
    def position(self) -> torch.Tensor:
        """The weights in steps of the scale they started from."""
        return self.learned.position.reshape(self.shape)

    @property
    def scale(self) -> torch.Tensor:
        return self.learned.scale().reshape(*self.shape[:2], 1)


class _Groups:
    """Weights with groups inside a row: their scales stay, and what is out of range keeps its gradient."""

    def __init__(self, objective: Objective, scale: torch.Tensor, zero: torch.Tensor, grid: Grid) -> None:
        self.scale, self.zero, self.grid = scale.float(), zero.float(), grid
        self.position = (objective.weight / scale).float()
        self.moments = torch.zeros_like(self.position), torch.zeros_like(self.position)

    @property
    def rounded(self) -> torch.Tensor:
        """The weights that the codes stand for."""
        code = torch.round(self.position + self.zero).clamp(self.grid.qmin, self.grid.qmax)
        return (code - self.zero) * self.scale

    def learn(self, gradient: torch.Tensor, step: int, rate: float) -> None:
        """Move by the gradient of the rounded weights."""
        self.position = _adam(self.position, gradient * self.scale, *self.moments, step, WEIGHT_RATE * rate)


def _adam(x, gradient, first, second, step: int, rate: float):
    """One Adam step; the two moments are updated in place."""
    first.lerp_(gradient, 1 - BETAS[0])
    second.lerp_(gradient.square(), 1 - BETAS[1])
    unbiased = first / (1 - BETAS[0] ** (step + 1))
    spread = torch.sqrt(second / (1 - BETAS[1] ** (step + 1)))
    return x - rate * unbiased / (spread + 1e-12)
