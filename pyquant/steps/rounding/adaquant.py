"""AdaQuant: weights, scale and bias learned together by gradient descent through the rounding, on the moments.

Unlike AdaRound, a weight may move by any number of codes. Rates are relative to what they move: weights in steps of the grid,
scales in shares of themselves; the bias is solved exactly at every step, because the moments have it in closed form.
Source: Hubara et al. (arXiv 2006.10518), eq. 3; the absolute rates of the paper's code are not used.
"""

from __future__ import annotations

import math

import torch

from pyquant.grid import Grid
from pyquant.ops.fake_quantize import fake_quantize
from pyquant.steps.rounding.objective import Objective, Rounded, nearest

STEPS = 250
WEIGHT_RATE = 0.05  # codes a step
SCALE_RATE = 0.002  # share of the scale a step
_BETAS = (0.9, 0.99)
_EVERY = 25


def learn(objective: Objective, scale: torch.Tensor, zero: torch.Tensor, grid: Grid, steps: int = STEPS) -> Rounded:
    """Learn continuous weights whose rounding minimises the objective; the best rounding seen is returned.

    Args:
        objective: of one site.
        scale, zero: starting scale and zero point of a row, ``[G, n, 1]``; groups inside a row keep theirs and only weights learn.
        grid: the weight's grid.
        steps: Adam steps, under a cosine schedule.
    """
    h, t = objective.h.float(), objective.t.float()
    # Adam divides by the gradient's size, so this only keeps it in float32's range.
    unit = 1.0 / (torch.diagonal(objective.h, dim1=-2, dim2=-1).mean(-1)[:, None, None] * scale.double().square())
    row_grid = Grid(grid.bits, grid.signed, axis=0, symmetric=grid.symmetric)
    learn_scale = scale.shape[-1] == 1
    position = (objective.weight / scale).float()
    log_scale = torch.zeros_like(scale, dtype=torch.float32)
    moments = [torch.zeros_like(position), torch.zeros_like(position), torch.zeros_like(log_scale), torch.zeros_like(log_scale)]
    best = nearest(objective.weight, scale, zero, grid)
    best_value = objective.value(best.real())
    g, n, k = position.shape
    for step in range(steps):
        with torch.enable_grad():
            p, ls = position.clone().requires_grad_(), log_scale.clone().requires_grad_(learn_scale)
            s = scale.float() * torch.exp(ls)
            if learn_scale:
                flat = (p * scale).reshape(g * n, k)
                w = fake_quantize(flat, s.reshape(-1), zero.float().reshape(-1).expand(g * n), row_grid).reshape(g, n, k)
            else:
                ratio = p + zero.float()
                w = (ratio + (torch.round(ratio).clamp(grid.qmin, grid.qmax) - ratio).detach() - zero.float()) * s
            w.backward(((w.detach() @ h - t) * unit).float())
        rate = 0.5 * (1 + math.cos(math.pi * step / steps))
        position = _adam(position, p.grad, moments[0], moments[1], step, WEIGHT_RATE * rate)
        if learn_scale:
            log_scale = _adam(log_scale, ls.grad, moments[2], moments[3], step, SCALE_RATE * rate)
        if step % _EVERY == _EVERY - 1 or step == steps - 1:
            now_scale = (scale.float() * torch.exp(log_scale)).double()
            now = nearest(position.double() * scale, now_scale, zero, grid)
            value = objective.value(now.real())
            better = (value < best_value)[..., None]
            best_value = torch.minimum(value, best_value)
            best = Rounded(
                torch.where(better, now.codes, best.codes), torch.where(better, now.scale, best.scale), best.zero
            )
    return best


def _adam(x, gradient, first, second, step: int, rate: float):
    """One Adam step; the two moments are updated in place."""
    first.lerp_(gradient, 1 - _BETAS[0])
    second.lerp_(gradient.square(), 1 - _BETAS[1])
    unbiased = first / (1 - _BETAS[0] ** (step + 1))
    spread = torch.sqrt(second / (1 - _BETAS[1] ** (step + 1)))
    return x - rate * unbiased / (spread + 1e-12)
