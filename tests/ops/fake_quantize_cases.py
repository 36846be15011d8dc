"""Tensors and grids for the fake-quantize tests, and what counts as the same bytes."""

import math

import pytest
import torch

from pyquant import reference
from pyquant.grid import Grid
from pyquant.ops import backend
from pyquant.ops.fake_quantize import FLOATS

needs_extension = pytest.mark.skipif(backend.extension() is None, reason=str(backend.missing("cpu")))
PINNED = ["reference", pytest.param("cpu", marks=needs_extension)]

EPS64 = torch.finfo(torch.float64).eps
EPS32 = torch.finfo(torch.float32).eps

# Long rows, short rows, tails, one channel, more channels than a tile holds, rows longer than a block.
CASES = [
    ((), Grid(8)),
    ((1,), Grid(2)),
    ((17,), Grid(3, signed=False)),
    ((63,), Grid(4)),
    ((16411,), Grid(8, signed=False)),
    ((5, 7), Grid(5, axis=0)),
    ((5, 7), Grid(6, signed=False, axis=-1)),
    ((300, 3), Grid(8, axis=1)),
    ((3, 5, 7), Grid(7, axis=1)),
    ((3, 5, 37), Grid(4, axis=-2)),
    ((1, 1, 49), Grid(8, axis=0)),
    ((11, 1, 3, 3), Grid(8, axis=0)),
    ((2, 31, 7, 9), Grid(8, signed=False, axis=1)),
    ((71, 1031), Grid(4, axis=-1)),
    ((2, 263, 5), Grid(3, axis=1)),
    ((13, 96), Grid(4, axis=0, group_size=32)),
    ((13, 2, 3, 8), Grid(2, signed=False, axis=0, group_size=8)),
    ((1201, 6), Grid(4, axis=0, group_size=3)),
]
IDS = [
    f"{'x'.join(map(str, s)) or 'scalar'}-{'s' if g.signed else 'u'}{g.bits}-axis{g.axis}-g{g.group_size}"
    for s, g in CASES
]
DTYPES = list(FLOATS)


def same_bytes(a, b):
    """Equal bit for bit, except that one NaN is as good as another."""
    bits = torch.int32 if a.dtype == torch.float32 else torch.int16
    number = ~b.isnan()
    return (
        a.dtype == b.dtype
        and torch.equal(a.isnan(), ~number)
        and torch.equal(a[number].view(bits), b[number].view(bits))
    )


def make(shape, grid, dtype=torch.float32, *, finite=False, seed=0):
    """Values in and beyond the range, ties, denormals, extremes, NaN and infinities; scales 2^-9 to 2^3."""
    generator = torch.Generator().manual_seed(seed)
    params = grid.scale_shape(shape)
    scale = torch.exp2(torch.empty(params).uniform_(-9, 3, generator=generator))
    zero_point = torch.randint(grid.qmin, grid.qmax + 1, params, generator=generator).float()
    spread_scale = reference.spread(scale, shape, grid.axis, grid.group_size)
    spread_zero = reference.spread(zero_point, shape, grid.axis, grid.group_size)
    width = grid.qmax - grid.qmin
    steps = (torch.rand(shape, generator=generator) * 2 - 0.5) * width + grid.qmin - spread_zero
    ties = torch.rand(shape, generator=generator) < 0.3
    x = torch.where(ties, torch.floor(steps) + 0.5, steps) * spread_scale
    edges = [1e-45, -1e-40, 0.0, -0.0, 3e38, -3e38]
    edges += [] if finite else [math.nan, math.inf, -math.inf]
    where = torch.randperm(x.numel(), generator=generator)[: x.numel() // 3]
    picks = torch.tensor(edges)[torch.randint(len(edges), where.shape, generator=generator)]
    x.view(-1)[where[: x.numel() // (8 if finite else 3)]] = picks[: x.numel() // (8 if finite else 3)]
    if finite:
        x = x.clamp(-6e4, 6e4)
    return x.to(dtype), scale, zero_point, torch.randn(shape, generator=generator).to(dtype)


def spread(x, scale, zero_point, grid):
    return [reference.spread(p, x.shape, grid.axis, grid.group_size) for p in (scale, zero_point)]
