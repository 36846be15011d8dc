"""What every rounding engine minimises: a quadratic over the rows of a weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyquant.grid import Grid
from pyquant.moments import Moments
from pyquant.reference import dequantize, quantize

# Pull towards the float weight, as a share of the mean diagonal: directions the data does not show stay as trained. How much is
# right depends on how many rows there are for how many weights, so held-out rows decide; the middle one where there are none.
DAMPINGS = (0.01, 0.1, 0.5, 2.0, 8.0)
DAMPING = 0.1


@dataclass(frozen=True)
class Objective:
    """``W H W' - 2 <W, T>`` a row, bias solved away and damped; float64. ``G`` groups, ``n`` outputs, ``K`` inputs a group.

    Args:
        weight: ``[G, n, K]`` float weight. h: ``[G, K, K]``. t: ``[G, n, K]``.
    """

    weight: Tensor
    h: Tensor
    t: Tensor

    @staticmethod
    def of(moments: Moments, weight: Tensor, damping: float = DAMPING) -> Objective:
        """Build it from a site's moments and its float weight ``[N, ...]``."""
        h, t = moments.centred()
        w = weight.double().reshape(h.shape[0], -1, h.shape[-1])
        diagonal = torch.diagonal(h, dim1=-2, dim2=-1)
        power = diagonal.mean(-1)
        # Sums in float32 leave noise of about this size, which is all there is where rows are few.
        raw = torch.diagonal(moments.h, dim1=-2, dim2=-1)[..., :-1].mean(-1).max().item() / moments.rows
        noise = 2.0**-22 * h.shape[-1] * raw
        # A dead group has no power of its own: some of the others', or any at all, keeps it solvable.
        pull = (damping * power).clamp(min=max(damping * 1e-4 * power.max().item(), noise) or damping)
        damped = h + torch.diag_embed(pull[:, None].expand_as(diagonal))
        # Noise can be larger still, as where all rows are alike.
        while (unsound := torch.linalg.cholesky_ex(damped).info > 0).any():
            pull = torch.where(unsound, 4 * pull, pull)
            damped = h + torch.diag_embed(pull[:, None].expand_as(diagonal))
        return Objective(w, damped, t + pull[:, None, None] * w)

    def value(self, weight: Tensor) -> Tensor:
        """The objective of dequantised weights ``[G, n, K]``, up to a constant; ``[G, n]``."""
        w = weight.double()
        return ((w @ self.h) * w).sum(-1) - 2 * (w * self.t).sum(-1)

    def optimum(self) -> Tensor:
        """The real weights of least error, ``[G, n, K]``."""
        return torch.linalg.solve(self.h, self.t.mT).mT


@dataclass(frozen=True)
class Rounded:
    """Codes ``[G, n, K]`` as float64 whole numbers, and the scale and zero point of every element, broadcastable to it."""

    codes: Tensor
    scale: Tensor
    zero: Tensor

    def real(self) -> Tensor:
        """Dequantised weights, in the float32 arithmetic of the grid; float64 ``[G, n, K]``."""
        return dequantize(self.codes, self.scale.float(), self.zero.float()).double()


def nearest(weight: Tensor, scale: Tensor, zero: Tensor, grid: Grid) -> Rounded:
    """Round real weights ``[G, n, K]`` to the nearest codes."""
    codes = quantize(weight.float(), scale.float(), zero.float(), grid.qmin, grid.qmax).double()
    return Rounded(codes, scale.double(), zero.double())


def refit_scale(objective: Objective, rounded: Rounded) -> Rounded:
    """The scale of least error for fixed codes, where a whole row shares one; otherwise unchanged."""
    if rounded.scale.shape[-1] != 1:
        return rounded
    steps = rounded.codes - rounded.zero
    curvature = ((steps @ objective.h) * steps).sum(-1, keepdim=True)
    best = (steps * objective.t).sum(-1, keepdim=True) / curvature.clamp(min=1e-300)
    usable = (best > 0.5 * rounded.scale) & (best < 2.0 * rounded.scale)
    return Rounded(rounded.codes, torch.where(usable, best, rounded.scale), rounded.zero)
