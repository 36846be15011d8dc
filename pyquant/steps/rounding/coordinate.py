"""Coordinate descent on codes: each element in turn takes the code of least error given all others, exact on the moments."""

from __future__ import annotations

import torch
from torch import Tensor

from pyquant.grid import Grid
from pyquant.steps.rounding.objective import Objective, Rounded, refit_scale

SWEEPS = 4
BLOCK = 64  # columns whose residual stays in cache


def descend(objective: Objective, start: Rounded, grid: Grid, sweeps: int = SWEEPS) -> Rounded:
    """Lower the objective from ``start``; it never rises.

    Args:
        objective: of one site.
        start: codes to start from.
        grid: the weight's grid.
        sweeps: passes over all ``K`` elements of a row; the scale is refitted after each.
    """
    now = start
    for _ in range(sweeps):
        before = now.codes
        now = refit_scale(objective, _sweep(objective, now, grid))
        if torch.equal(before, now.codes):
            break
    return now


def _sweep(objective: Objective, now: Rounded, grid: Grid) -> Rounded:
    """One pass, all rows at once. The residual ``T - W H`` is kept up to date element by element inside a block of columns,
    and by one product for the rest of the row after it."""
    codes = now.codes.clone()
    scale, zero = now.scale.expand_as(codes), now.zero.expand_as(codes)
    weight = (codes - zero) * scale
    residual: Tensor = objective.t - weight @ objective.h
    curvature = torch.diagonal(objective.h, dim1=-2, dim2=-1)
    for begin in range(0, codes.shape[-1], BLOCK):
        block = slice(begin, begin + BLOCK)
        h = objective.h[..., block, block]
        local = residual[..., block].clone()
        steps = torch.zeros_like(local)
        for i in range(local.shape[-1]):
            s, z = scale[..., begin + i], zero[..., begin + i]
            target = weight[..., begin + i] + local[..., i] / curvature[:, None, begin + i]
            new = torch.round(target / s).add_(z).clamp_(grid.qmin, grid.qmax)
            steps[..., i] = (new - codes[..., begin + i]) * s
            codes[..., begin + i] = new
            local[..., i:] -= steps[..., i, None] * h[:, None, i, i:]
        residual -= steps @ objective.h[..., block, :]
    return Rounded(codes, now.scale, now.zero)
