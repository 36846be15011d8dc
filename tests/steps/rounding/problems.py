"""Rounding problems for the tests of the engines: correlated rows, dead inputs, dead groups."""

import torch

from pyquant.grid import Grid
from pyquant.moments import Moments
from pyquant.quantizer import weight_qparams
from pyquant.steps.rounding.objective import Objective

GRIDS = [
    Grid(4, axis=0),
    Grid(2, axis=0),
    Grid(3, axis=0, symmetric=False),
    Grid(8, axis=0),
    Grid(4, axis=0, signed=False, symmetric=True),
]


def moments(groups, outputs, columns, seed=0, dead=(), dead_groups=(), rows=300):
    """Moments of rows whose columns share two strong directions, and the float weight behind the targets."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = normal(groups, rows, columns) * 0.3 + normal(groups, rows, 2) @ normal(groups, 2, columns) + 0.5
    x[..., list(dead)] = 0.0
    x[list(dead_groups)] = 0.0
    weight = normal(groups, outputs, columns) * 0.5
    y = x @ weight.mT + 0.3
    xq = torch.cat([x, torch.ones(groups, rows, 1, dtype=torch.float64)], -1)
    return Moments(xq.mT @ xq, y.mT @ xq, y.square().sum(1), rows), weight


def problem(grid, groups=2, outputs=5, columns=9, seed=0, **dead):
    """An objective and a starting scale and zero point ``[G, n, 1]``."""
    found, weight = moments(groups, outputs, columns, seed, **dead)
    objective = Objective.of(found, weight.reshape(groups * outputs, columns).float())
    qparams = weight_qparams(weight.reshape(groups * outputs, columns).float(), grid)
    scale, zero = (p.reshape(groups, outputs, 1) for p in (qparams.scale, qparams.zero_point))
    return objective, scale, zero


def grouped_scales(columns, objective, grid):
    """Scale and zero point ``[G, n, K]`` of groups of three columns."""
    parts = Grid(grid.bits, grid.signed, axis=0, group_size=3, symmetric=grid.symmetric)
    rows = objective.weight.reshape(-1, columns).float()
    qparams = weight_qparams(rows, parts)
    return tuple(p.repeat_interleave(3, 1).reshape(objective.weight.shape) for p in (qparams.scale, qparams.zero_point))


def on_grid(rounded, grid):
    """Whether every code is a whole number on the grid, and every scale usable."""
    codes = rounded.codes
    whole = torch.equal(codes, codes.round()) and codes.min() >= grid.qmin and codes.max() <= grid.qmax
    return bool(whole and (rounded.scale > 0).all() and torch.isfinite(rounded.scale).all())
