"""Every CUDA kernel's PTX, run: the bodies that test the kernels' source on a CPU test what nvcc made of it for sm_80.

Integers are the reference's bytes, W4A16 lies within its derived bound. Slow: all shapes and orders, instruction coverage.
Mutants: test_emulated_mutants.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from pyquant.ops.cuda_configurations import KERNELS, CudaKernel
from tests.gpu import test_executor_gemm_s8 as gemm_s8
from tests.gpu import test_executor_low_bit as low_bit
from tests.gpu import test_executor_w4a16 as w4a16
from tests.gpu.emulated_cuda import NVCC, EmulatedGpu

pytestmark = pytest.mark.skipif(
    NVCC is None, reason="nvcc is not on PATH: nothing writes the CUDA kernels' PTX"
)
Body = Callable[[EmulatedGpu, Any], None]
# Bodies of one kernel: name -> what checks it.
Bodies = dict[str, Callable[[EmulatedGpu], None]]


# Widths that end in every eight columns of a tile, between the two results of a pair and behind them.
TAILS = [8 * eight + more for eight in range(16) for more in (2, 3)]
# Widths of whole words that are no whole chunks of 16 bytes.
WORDS = [4, 12, 60, 68, 124, 132]


# Tiles of columns that leave the last place of a grid's bands empty, right behind the last column.
BANDS = 11


def tails(kernel: CudaKernel) -> list[tuple[int, int]]:
    """M and N: every such width, and every eight rows of a block's tile the last, with an even and an odd width."""
    rows, columns, _ = kernel.tile
    heights = [8 * eight + 5 for eight in range(rows // 8)]
    return [(rows - 3, n) for n in TAILS] + [(m, columns - odd) for m in heights for odd in (0, 1)]


def low_bit_tails(gpu: EmulatedGpu, kernel: CudaKernel, size: int | None) -> None:
    k = size or 96
    for m, n in tails(kernel):
        case = low_bit.drawn(kernel, (m, n, k), size, True, 4, "each", True, seed=n)
        got = low_bit.run(gpu, kernel, case, k, size, True, 4)
        assert low_bit.same_bytes(got, low_bit.wanted(kernel, case, k, size, True, 4)), (m, n)


def low_bit_bands(gpu: EmulatedGpu, kernel: CudaKernel, size: int | None) -> None:
    shape = (1, BANDS * kernel.tile[1], size or 32)
    case = low_bit.drawn(kernel, shape, size, True, 4, "each", True, seed=1)
    got = low_bit.run(gpu, kernel, case, shape[2], size, True, 4)
    assert low_bit.same_bytes(got, low_bit.wanted(kernel, case, shape[2], size, True, 4))


def w4a16_tails(gpu: EmulatedGpu, kernel: CudaKernel, splits: int) -> None:
    """Sums of one split go to y, those of more to the partial sums. K ends in every chunk of a slab, slabs after slabs."""
    ends = [(5, 9, 64 * (chunk % 5) + 8 * chunk + 8) for chunk in range(8)]
    for m, n, k in [*((m, n, 72) for m, n in tails(kernel)), *ends]:
        case = w4a16.weights(n, k, None, False, 4, "each", seed=n)
        x = torch.randn(m, k, generator=torch.Generator().manual_seed(n)).to(
            w4a16.HALF[w4a16.dtype_of(kernel)]
        )
        got = w4a16.run(gpu, kernel, x, case, None, False, 4, splits)
        assert w4a16.within_the_bound(got, *w4a16.exact(x, case, None, False, 4), k, 1, splits), (m, n, k)


def bodies(kernel: CudaKernel) -> Bodies:
    """Everything that checks one kernel, by its name."""
    found: Bodies = {}
    if kernel in gemm_s8.CODES or kernel in gemm_s8.FLOATS:
        check = (
            gemm_s8.test_codes_are_the_references
            if kernel in gemm_s8.CODES
            else gemm_s8.test_floats_are_the_references_bit_for_bit
        )
        for m, n, k in (*gemm_s8.SHAPES, (129, 144, 96), (128, 129, 16)):
            found[f"M{m}-N{n}-K{k}"] = lambda gpu, shape=(m, n, k): check(gpu, kernel, shape)
        found["tails"] = lambda gpu: [check(gpu, kernel, (5, n, 48)) for n in (*TAILS, *WORDS)]
        found["bands"] = lambda gpu: check(gpu, kernel, (1, BANDS * kernel.tile[1], 16))
        if kernel in gemm_s8.CODES:
            found["extremes"] = lambda gpu: gemm_s8.test_extremes_and_ties(gpu, kernel)
    for size in [size for one, size in low_bit.LOW_BIT if one is kernel]:
        for at in range(len(low_bit.ROW_SHAPES)):
            found[f"group-{size}-{at}"] = lambda gpu, size=size, at=at: low_bit.test_every_class_of_shape(
                gpu, kernel, size, at
            )
        found[f"group-{size}-tails"] = lambda gpu, size=size: low_bit_tails(gpu, kernel, size)
        found[f"group-{size}-bands"] = lambda gpu, size=size: low_bit_bands(gpu, kernel, size)
        found[f"group-{size}-extremes"] = lambda gpu, size=size: low_bit.test_extremes(gpu, kernel, size)
    if kernel in w4a16.MULTIPLY:
        for at in range(len(w4a16.CASES)):
            found[f"case-{at}"] = lambda gpu, at=at: w4a16.test_every_class_of_shape(gpu, kernel, at)
        for splits in (1, 2):
            found[f"tails-{splits}"] = lambda gpu, splits=splits: w4a16_tails(gpu, kernel, splits)
        found["every-code"] = lambda gpu: w4a16.test_every_code_comes_out_exact(gpu, kernel)
    return found


CHECKED = [kernel for kernel in KERNELS if kernel.op != "gemm_w4a16_sum"]


def fast(kernel: CudaKernel) -> list[str]:
    """Of a kernel's bodies the two that reach most for their time: ragged everywhere."""
    names = list(bodies(kernel))
    return [name for name in ("M17-N16-K48", "M63-N33-K64", *names[1:3]) if name in names][:2]


@pytest.fixture(scope="module")
def gpu(ptx: str) -> Iterator[EmulatedGpu]:
    return EmulatedGpu(ptx)


def test_every_kernel_has_bodies() -> None:
    """A kernel that is new to the table has to be checked here too; W4A16's sums run behind its products."""
    assert [kernel.entry for kernel in CHECKED if len(bodies(kernel)) < 5] == []


@pytest.mark.parametrize("name", [f"{k.entry}: {name}" for k in CHECKED for name in fast(k)])
def test_ragged_shapes(gpu: EmulatedGpu, name: str) -> None:
    entry, body = name.split(": ")
    bodies(next(kernel for kernel in CHECKED if kernel.entry == entry))[body](gpu)


def assert_covered(gpu: EmulatedGpu, entry: str, tell: Callable[[str], None]) -> None:
    report = gpu.reports[entry]
    tell(f"{entry}: {report.coverage:.1%} of {len(report.executed)} instructions ran")
    missed = "\n".join(f"line {one.line}: {one.text}" for one in report.missed())
    assert report.coverage > 0.9, missed


@pytest.mark.slow
@pytest.mark.parametrize("kernel", CHECKED, ids=lambda kernel: kernel.entry)
def test_all_shapes_in_any_order_reach_every_instruction(
    ptx: str, kernel: CudaKernel, tell: Callable[[str], None]
) -> None:
    """Bytes, races and bounds on every shape, and no part of the program that none of them runs."""
    gpu = EmulatedGpu(ptx)
    for body in bodies(kernel).values():
        body(gpu)
    assert_covered(gpu, kernel.entry, tell)
    found = gpu.reports[kernel.entry]
    assert found.worst_conflict <= 2, found.conflicts_of("")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_sums_of_splits_are_covered(ptx: str, dtype: str, tell: Callable[[str], None]) -> None:
    gpu = EmulatedGpu(ptx)
    kernel = next(k for k in w4a16.MULTIPLY if w4a16.dtype_of(k) == dtype)
    for at in range(len(w4a16.CASES)):
        w4a16.test_every_class_of_shape(gpu, kernel, at)
    assert_covered(gpu, f"gemm_w4a16_sum_{dtype}", tell)
