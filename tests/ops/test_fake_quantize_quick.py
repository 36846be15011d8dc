"""The quick fake-quantize kernels multiply by a reciprocal and correct: their bytes must be those of the division."""

import pytest
import torch

from pyquant import reference
from pyquant.grid import Grid
from tests.ops.fake_quantize_cases import same_bytes, spread
from tests.ops.test_fake_quantize_cpu import SETS, needs_extension, run_cpu, run_cpu_backward

STREAMED = 8 << 20  # bytes of a result from which on it goes past the cache
LOW_SCALE, HIGH_SCALE, HIGH_ZERO = 2.0**-60, 2.0**15, 2.0**20  # beyond these the kernels divide


def neighbours(x, steps):
    """``x`` and the floats up to ``steps`` away on both sides, in a new last dimension."""
    bits = x.view(torch.int32)[..., None] + torch.arange(-steps, steps + 1, dtype=torch.int32)
    return bits.view(torch.float32)


def same_as_the_reference(x, scale, zero_point, grid, isa):
    params = spread(x, scale, zero_point, grid)
    dy = torch.linspace(-1, 1, x.numel()).reshape(x.shape)
    y = reference.fake_quantize(x, *params, grid.qmin, grid.qmax)
    dx = reference.fake_quantize_backward(dy, x, *params, grid.qmin, grid.qmax)[0]
    found = run_cpu_backward(dy, x, scale, zero_point, grid, isa)
    right = run_cpu_backward(dy, x, scale, zero_point, grid, "portable")
    return (
        same_bytes(run_cpu(x, scale, zero_point, grid, isa), y)
        and same_bytes(found[0], dx)
        and all(same_bytes(a, b) for a, b in zip(found, right, strict=True))
    )


@needs_extension
@pytest.mark.parametrize("isa", SETS)
def test_quotients_beside_a_tie_round_as_the_division_does(isa):
    """Scales with every kind of fraction, and the nine floats around each tie and each end of the range."""
    grid = Grid(4, axis=0)
    fractions = torch.randint(1 << 23, (1500,), generator=torch.Generator().manual_seed(0)).int()
    fractions[:4] = torch.tensor([0, 1, (1 << 23) - 1, 1 << 22], dtype=torch.int32)
    scale = (fractions | (118 << 23)).view(torch.float32)
    zero_point = torch.randint(-9, 9, scale.shape, generator=torch.Generator().manual_seed(1)).float()
    ties = (torch.arange(-10, 11) + 0.5) * scale[:, None]
    ends = torch.stack([(grid.qmin - zero_point) * scale, (grid.qmax - zero_point) * scale], 1)
    x = neighbours(torch.cat([ties, ends], 1), 4).flatten(1)
    assert same_as_the_reference(x, scale, zero_point, grid, isa)


@needs_extension
@pytest.mark.parametrize("isa", SETS)
def test_scales_and_zero_points_at_the_border_of_the_quick_kernels(isa):
    """Each row by itself too: one slow entry makes a whole block divide."""
    grid = Grid(8, axis=0)
    tiny, huge = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
    scales = neighbours(torch.tensor([LOW_SCALE, HIGH_SCALE, 1.0]), 1).flatten()
    scales = torch.cat([scales, torch.tensor([tiny, huge, 1e-30, 1e30])])
    zeros = torch.tensor([0.0, HIGH_ZERO, HIGH_ZERO + 1, -HIGH_ZERO, -HIGH_ZERO - 1, 1e9, -1e30, 300.0])
    scale, zero_point = (t.flatten().contiguous() for t in torch.meshgrid(scales, zeros, indexing="ij"))
    steps = torch.linspace(-200, 200, 37)
    x = torch.cat([steps, steps * 1e6, torch.tensor([1e-45, -1e-40, 1e-33, -1e-20, 2e-19, 0.0, -0.0])])
    x = (x * scale[:, None]).clamp(-huge, huge)
    x = torch.cat([x, torch.tensor([torch.inf, -torch.inf, torch.nan, huge, -huge]).expand(len(x), 5)], 1)
    assert same_as_the_reference(x, scale, zero_point, grid, isa)
    for row in range(len(x)):
        one = slice(row, row + 1)
        assert same_as_the_reference(x[one].contiguous(), scale[one], zero_point[one], grid, isa), row


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((90_001, 1, 49), Grid(8, axis=0)),
        ((1201, 3501), Grid(8, axis=-1)),
        ((470_001, 3, 3), Grid(8, signed=False, axis=0)),
        ((131_073, 32), Grid(4, axis=0, group_size=32)),
    ],
    ids=["rows-of-49", "period-3501", "rows-of-9", "groups"],
)
def test_rows_off_the_cache_lines_are_streamed_right(shape, grid, dtype):
    """Results that do not lie on lines pass through a block at hand; the portable kernels stream nothing."""
    generator = torch.Generator().manual_seed(3)
    params = grid.scale_shape(shape)
    scale = torch.rand(params, generator=generator) + 0.02
    zero_point = torch.randint(-3, 3, params, generator=generator).float()
    room = torch.randn(torch.Size(shape).numel() + 1, generator=generator).mul_(40).to(dtype)
    assert room.nbytes > STREAMED
    for x in (room[:-1].reshape(shape), room[1:].reshape(shape)):
        y = run_cpu(x, scale, zero_point, grid, "portable")
        dx, _, _ = run_cpu_backward(x, x, scale, zero_point, grid, "portable")
        for isa in SETS[1:]:
            assert same_bytes(run_cpu(x, scale, zero_point, grid, isa, threads=2), y), isa
            assert same_bytes(run_cpu_backward(x, x, scale, zero_point, grid, isa, threads=3)[0], dx), isa
