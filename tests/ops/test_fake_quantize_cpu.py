"""The C++ fake-quantize kernels: every instruction set against the oracle, byte for byte."""

import math

import pytest
import torch

from pyquant import reference
from pyquant.grid import Grid
from pyquant.ops import backend
from pyquant.ops.fake_quantize import FLOATS
from pyquant.ops.grid_layout import layout_of
from tests.ops.fake_quantize_cases import CASES, DTYPES, EPS32, EPS64, IDS, make, same_bytes, spread


def instruction_sets():
    """Those this machine has; a call with a lone element says which."""
    if backend.extension() is None:
        return []
    found = []
    for isa in ("portable", "avx2", "avx_vnni", "avx512"):
        try:
            run_cpu(torch.zeros(1), torch.ones(()), torch.zeros(()), Grid(8), isa=isa)
        except ValueError:
            continue
        found.append(isa)
    return found


def run_cpu(x, scale, zero_point, grid, isa="best", threads=1):
    y = torch.full_like(x, math.nan)
    layout = layout_of(x.shape, grid.axis, grid.group_size)
    args = scale.data_ptr(), zero_point.data_ptr(), *layout, grid.qmin, grid.qmax, threads, isa
    backend.extension().fake_quantize(FLOATS[x.dtype], x.data_ptr(), y.data_ptr(), *args)
    return y


def run_cpu_backward(dy, x, scale, zero_point, grid, isa="best", threads=1):
    dx, dscale, dzero = (
        torch.full_like(x, math.nan),
        torch.full_like(scale, math.nan),
        torch.full_like(scale, math.nan),
    )
    layout = layout_of(x.shape, grid.axis, grid.group_size)
    pointers = (t.data_ptr() for t in (dy, x, dx, dscale, dzero, scale, zero_point))
    backend.extension().fake_quantize_backward(
        FLOATS[x.dtype], *pointers, *layout, grid.qmin, grid.qmax, threads, isa
    )
    return dx, dscale, dzero


def run_cpu_quantize(x, scale, zero_point, grid, isa="best", threads=1):
    codes = torch.full(x.shape, 77, dtype=grid.code_dtype)
    layout = layout_of(x.shape, grid.axis, grid.group_size)
    args = scale.data_ptr(), zero_point.data_ptr(), *layout, grid.qmin, grid.qmax, threads, isa
    backend.extension().quantize(FLOATS[x.dtype], x.data_ptr(), codes.data_ptr(), *args)
    return codes


SETS = instruction_sets()
needs_extension = pytest.mark.skipif(not SETS, reason=str(backend.missing("cpu")))


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES, ids=FLOATS.values())
@pytest.mark.parametrize(("shape", "grid"), CASES, ids=IDS)
def test_kernels_give_the_reference_bytes(shape, grid, dtype):
    x, scale, zero_point, dy = make(shape, grid, dtype)
    params = spread(x, scale, zero_point, grid)
    y = reference.fake_quantize(x, *params, grid.qmin, grid.qmax)
    dx, _, _ = reference.fake_quantize_backward(dy, x, *params, grid.qmin, grid.qmax)
    codes = reference.quantize(x, *params, grid.qmin, grid.qmax).to(grid.code_dtype)
    for isa in SETS:
        assert same_bytes(run_cpu(x, scale, zero_point, grid, isa), y), isa
        assert same_bytes(run_cpu_backward(dy, x, scale, zero_point, grid, isa)[0], dx), isa
        assert torch.equal(run_cpu_quantize(x, scale, zero_point, grid, isa), codes), isa


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES, ids=FLOATS.values())
@pytest.mark.parametrize(("shape", "grid"), CASES, ids=IDS)
def test_sums_lie_within_the_bound_of_float64_and_do_not_depend_on_the_instruction_set(shape, grid, dtype):
    x, scale, zero_point, dy = make(shape, grid, dtype, finite=True, seed=1)
    _, *terms = reference.fake_quantize_backward(
        dy, x, *spread(x, scale, zero_point, grid), grid.qmin, grid.qmax
    )
    found = {isa: run_cpu_backward(dy, x, scale, zero_point, grid, isa)[1:] for isa in SETS}
    for which in range(2):
        by_channel = (
            terms[which].reshape(layout_of(x.shape, grid.axis, grid.group_size)).transpose(0, 1).flatten(1)
        )
        for sums in found.values():
            assert same_bytes(sums[which], found["portable"][which])
        for row, value in zip(by_channel.tolist(), found["portable"][which].flatten().tolist(), strict=True):
            exact = math.fsum(row)
            bound = (len(row) + 1) * EPS64 * math.fsum(map(abs, row)) + EPS32 / 2 * abs(exact) + 2**-150
            assert abs(value - exact) <= bound


@needs_extension
@pytest.mark.parametrize("isa", SETS)
def test_every_half_is_widened_and_narrowed_as_torch_does(isa):
    """All 65,536 inputs of both 16-bit types; results denormal, ordinary and beyond the largest half."""
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        for value in (1.17549435e-38, 5.3e-37, 3.1e-8, 1.9e-6, 0.37, 511.9, 3e4, 2.6e36):
            scale, zero_point = torch.tensor(value), torch.tensor(-3.0)
            y = reference.fake_quantize(x, scale, zero_point, -128, 127)
            assert same_bytes(run_cpu(x, scale, zero_point, Grid(8), isa), y), (dtype, value)
            dx, _, _ = reference.fake_quantize_backward(x.flip(0), x, scale, zero_point, -128, 127)
            assert same_bytes(run_cpu_backward(x.flip(0), x, scale, zero_point, Grid(8), isa)[0], dx), (
                dtype,
                value,
            )


@needs_extension
@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((300_007,), Grid(8)),
        ((9, 33_331), Grid(8, axis=0)),
        ((101, 3001), Grid(4, axis=-1)),
        ((40_009, 9), Grid(4, axis=0, group_size=9)),
        ((100_003, 3), Grid(4, axis=1)),
    ],
)
def test_neither_threads_nor_addresses_change_a_bit(shape, grid):
    x, scale, zero_point, dy = make(shape, grid, seed=2)
    y = run_cpu(x, scale, zero_point, grid)
    gradients = run_cpu_backward(dy, x, scale, zero_point, grid)
    codes = run_cpu_quantize(x, scale, zero_point, grid)
    for threads in (2, 3, 7):
        assert same_bytes(run_cpu(x, scale, zero_point, grid, threads=threads), y)
        assert torch.equal(run_cpu_quantize(x, scale, zero_point, grid, threads=threads), codes)
        for a, b in zip(
            run_cpu_backward(dy, x, scale, zero_point, grid, threads=threads), gradients, strict=True
        ):
            assert same_bytes(a, b)
    moved = torch.empty(x.numel() + 1)[1:].reshape(shape).copy_(x)
    for a, b in zip(run_cpu_backward(dy, moved, scale, zero_point, grid), gradients, strict=True):
        assert same_bytes(a, b)


@needs_extension
@pytest.mark.parametrize(
    ("shape", "grid"), [((60_000,), Grid(4)), ((2_000, 30), Grid(4, axis=1)), ((7, 300, 29), Grid(4, axis=1))]
)
def test_sums_are_taken_in_one_order(shape, grid):
    """Terms that cancel leave nothing but rounding errors, and those show every change of order."""
    generator = torch.Generator().manual_seed(5)
    count = math.prod(shape)
    half = torch.randn(count // 2, generator=generator) * torch.exp2(
        60 * torch.rand(count // 2, generator=generator)
    )
    dy = torch.cat([half, -half])[torch.randperm(count // 2 * 2, generator=generator)].reshape(shape)
    x = torch.full(shape, 100.0)
    params = grid.scale_shape(shape)
    scale, zero_point = torch.ones(params), torch.zeros(params)
    right = run_cpu_backward(dy, x, scale, zero_point, grid, "portable")
    for isa in SETS:
        for threads in (1, 2, 5):
            for a, b in zip(
                run_cpu_backward(dy, x, scale, zero_point, grid, isa, threads), right, strict=True
            ):
                assert same_bytes(a, b), (isa, threads)


@needs_extension
@pytest.mark.parametrize("isa", SETS[1:])
def test_results_too_big_for_the_cache_are_streamed_right(isa):
    """Beyond 8 MiB the stores go past the cache; rows of 1,100,003 floats start at every alignment."""
    grid = Grid(8, axis=0)
    x, scale, zero_point, dy = make((2, 1_100_003), grid, seed=3)
    params = spread(x, scale, zero_point, grid)
    assert same_bytes(
        run_cpu(x, scale, zero_point, grid, isa), reference.fake_quantize(x, *params, grid.qmin, grid.qmax)
    )
    dx = run_cpu_backward(dy, x, scale, zero_point, grid, isa)[0]
    assert same_bytes(dx, reference.fake_quantize_backward(dy, x, *params, grid.qmin, grid.qmax)[0])
    wide = torch.arange(1 << 22, dtype=torch.float32).remainder(251).to(torch.bfloat16)[3:]
    half = wide.clone()
    one, none = torch.tensor(1.5), torch.tensor(0.0)
    assert same_bytes(
        run_cpu(half, one, none, Grid(8), isa), reference.fake_quantize(half, one, none, -128, 127)
    )
