"""gemm_s8's CUDA kernels, executed on this CPU: byte-equal to the reference over every class of shape."""

from __future__ import annotations

import pytest
import torch

from pyquant.ops.cuda_configurations import KERNELS
from pyquant.ops.cuda_layouts import aligned_rows, zero_correction
from pyquant.ops.gemm_s8 import gemm_s8, gemm_s8_float
from tests.gpu.executor import Executor, aligned

CODES = [kernel for kernel in KERNELS if kernel.op == "gemm_s8"]
FLOATS = [kernel for kernel in KERNELS if kernel.op == "gemm_s8_float"]
# M, N, K: one row and column, ragged everything, whole tiles, K of one chunk, under a slab, under the pipeline, above it;
# N of whole words but not chunks.
SHAPES = [
    (1, 1, 1),
    (1, 63, 16),
    (17, 16, 48),
    (63, 33, 64),
    (128, 128, 128),
    (129, 130, 272),
    (64, 144, 150),
    (2, 128, 640),
    (65, 132, 80),
]


def drawn(m, n, k, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (m, k), generator=generator, dtype=torch.uint8)
    weight = torch.randint(-128, 128, (n, k), generator=generator, dtype=torch.int8)
    multiplier = torch.rand(n, generator=generator) * (2.0 / (k**0.5 * 128))
    bias = torch.randn(n, generator=generator) * 20
    return x, weight, multiplier, bias


def run_codes(executor: Executor, kernel, x, weight, multiplier, bias, x_zero, y_zero, low, high, seed=0):
    """What a launch does: rows aligned, the correction folded, results on garbage."""
    (m, _), n = x.shape, weight.shape[0]
    rows, packed = aligned(aligned_rows(x)), aligned(aligned_rows(weight))
    y = aligned(torch.full((m, n), 0xA5, dtype=torch.uint8))
    correction = zero_correction(weight, x_zero)
    arguments = (rows, packed, multiplier, bias, correction, y, m, n, rows.shape[1], y_zero, low, high)
    executor.launch(kernel.entry, kernel.grid(m, n), arguments, seed)
    return y


def run_floats(executor: Executor, kernel, x, weight, multiplier, bias, x_zero, seed=0):
    (m, _), n = x.shape, weight.shape[0]
    rows, packed = aligned(aligned_rows(x)), aligned(aligned_rows(weight))
    y = aligned(torch.full((m, n), torch.nan))
    arguments = (rows, packed, multiplier, bias, zero_correction(weight, x_zero), y, m, n, rows.shape[1])
    executor.launch(kernel.entry, kernel.grid(m, n), arguments, seed)
    return y


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "M{}-N{}-K{}".format(*s))
@pytest.mark.parametrize("kernel", CODES, ids=lambda k: k.entry)
def test_codes_are_the_references(executor, kernel, shape):
    case = drawn(*shape)
    got = run_codes(executor, kernel, *case, 119, 3, 1, 250, seed=sum(shape))
    want = gemm_s8(*case, x_zero=119, y_zero=3, low=1, high=250, backend="reference")
    assert torch.equal(got, want)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "M{}-N{}-K{}".format(*s))
@pytest.mark.parametrize("kernel", FLOATS, ids=lambda k: k.entry)
def test_floats_are_the_references_bit_for_bit(executor, kernel, shape):
    case = drawn(*shape)
    got = run_floats(executor, kernel, *case, 255, seed=sum(shape))
    want = gemm_s8_float(*case, x_zero=255, backend="reference")
    assert torch.equal(got.view(torch.int32), want.view(torch.int32))


@pytest.mark.parametrize("kernel", CODES, ids=lambda k: k.entry)
def test_extremes_and_ties(executor, kernel):
    """The largest sums there are; results halfway between codes; results beyond every code."""
    x = torch.tensor([[255] * 64, [0] * 64, [1] + [0] * 63], dtype=torch.uint8)
    weight = torch.cat([torch.full((1, 64), -128), torch.full((1, 64), 127), torch.eye(1, 64)]).to(torch.int8)
    for multiplier, bias in ((0.5, 0.0), (1e30, 0.0), (0.0, 2.5), (-1e30, 1.5)):
        parameters = torch.full((3,), multiplier), torch.full((3,), bias)
        for x_zero in (0, 255):
            got = run_codes(executor, kernel, x, weight, *parameters, x_zero, 0, 0, 255)
            want = gemm_s8(
                x, weight, *parameters, x_zero=x_zero, y_zero=0, low=0, high=255, backend="reference"
            )
            assert torch.equal(got, want)


def test_shared_memory_is_read_without_bank_conflicts(executor):
    before, executor.worst_conflict = executor.worst_conflict, 0
    for kernel in CODES:
        run_codes(executor, kernel, *drawn(kernel.tile[0], kernel.tile[1], 128), 0, 0, 0, 255)
    assert executor.worst_conflict == 1
    executor.worst_conflict = before


@pytest.mark.parametrize("kernel", CODES + FLOATS, ids=lambda k: k.entry)
def test_bands_of_columns(executor, kernel):
    """Two bands, the second with a place that no columns are left for; two rows of tiles."""
    m, n = kernel.tile[0] + 1, 10 * kernel.tile[1] + 4
    x, weight, multiplier, bias = drawn(m, n, 16)
    assert kernel.grid(m, n) == (6, 2, 2)
    if kernel in CODES:
        got = run_codes(executor, kernel, x, weight, multiplier, bias, 7, 3, 1, 250)
        want = gemm_s8(x, weight, multiplier, bias, x_zero=7, y_zero=3, low=1, high=250, backend="reference")
        assert torch.equal(got, want)
    else:
        got = run_floats(executor, kernel, x, weight, multiplier, bias, 7)
        want = gemm_s8_float(x, weight, multiplier, bias, x_zero=7, backend="reference")
        assert torch.equal(got.view(torch.int32), want.view(torch.int32))


@pytest.mark.parametrize("columns", range(1, 40))
def test_bands_hold_every_tile_and_few_places_more(columns):
    wide, rows, bands = CODES[0].grid(3 * CODES[0].tile[0], columns * CODES[0].tile[1])
    assert rows == 3 and wide <= 8 and columns <= wide * bands < columns + bands
