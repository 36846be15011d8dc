"""Closed-form rounding with error feedback (OBQ, GPTQ): each column's rounding error is made up for by those still to come.

Source: Frantar et al., "GPTQ" (arXiv 2210.17323), on centred second moments and towards the least-squares optimum.
"""

from __future__ import annotations

import torch

from pyquant.grid import Grid
from pyquant.steps.rounding.objective import Objective, Rounded

BLOCK = 64  # columns whose errors are fed back to the rest at once


def feed_back(objective: Objective, scale: torch.Tensor, zero: torch.Tensor, grid: Grid) -> Rounded:
    """Round column by column, largest curvature first.

    Args:
        objective: of one site.
        scale, zero: of every element, broadcastable to ``[G, n, K]``.
        grid: the weight's grid.
    """
    order = torch.diagonal(objective.h, dim1=-2, dim2=-1).argsort(-1, descending=True)
    g, n, k = objective.weight.shape
    rows = order[:, None, :].expand(g, n, k)
    w = objective.optimum().gather(-1, rows)
    s = scale.double().expand(g, n, k).gather(-1, rows)
    z = zero.double().expand(g, n, k).gather(-1, rows)
    h = objective.h.gather(-2, order[:, :, None].expand(g, k, k)).gather(-1, order[:, None, :].expand(g, k, k))
    # Rows of the upper Cholesky factor of the inverse hold the feedback of each column to those after it.
    factor = torch.linalg.cholesky(torch.linalg.inv(h)).mT
    codes = torch.empty_like(w)
    for begin in range(0, k, BLOCK):
        block = slice(begin, begin + BLOCK)
        local, errors = w[..., block].clone(), torch.zeros_like(w[..., block])
        for i in range(local.shape[-1]):
            at = begin + i
            codes[..., at] = (torch.round(local[..., i] / s[..., at]) + z[..., at]).clamp_(grid.qmin, grid.qmax)
            rounded = (codes[..., at] - z[..., at]) * s[..., at]
            errors[..., i] = (local[..., i] - rounded) / factor[:, None, at, at]
            local[..., i:] -= errors[..., i, None] * factor[:, None, at, at : begin + local.shape[-1]]
        w[..., begin + BLOCK :] -= errors @ factor[..., block, begin + BLOCK :]
    back = torch.empty_like(codes).scatter_(-1, rows, codes)
    return Rounded(back, scale.double(), zero.double())
