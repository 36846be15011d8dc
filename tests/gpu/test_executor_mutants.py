"""Broken kernels must not pass: each of these changes to a copy of the sources is seen by the executor.

A barrier forgotten, a wait for one copy too few, a fragment's registers swapped: the faults that on a GPU show now and then.
"""

from __future__ import annotations

import shutil

import pytest
import torch

from pyquant.ops.cuda_configurations import KERNELS
from tests.gpu import test_executor_gemm_s8 as s8
from tests.gpu import test_executor_low_bit as low_bit
from tests.gpu import test_executor_w4a16 as w4a16
from tests.gpu.executor import COMPILER, CSRC, Executor, ExecutorError

KERNEL = {kernel.entry: kernel for kernel in KERNELS}
FAST = [
    # file, old, new, kernel
    ("gemm_tile.cuh", "block_barrier();\n    copy(", "copy(", "gemm_s8_codes_64x64"),
    ("gemm_tile.cuh", "cp_async_wait<kStages - 2>", "cp_async_wait<kStages - 1>", "gemm_s8_codes_64x64"),
    (
        "integer_tile.cuh",
        "b[j][0] = r[0], b[j][1] = r[1]",
        "b[j][0] = r[1], b[j][1] = r[0]",
        "gemm_s8_floats_64x64",
    ),
]
SLOW = [
    (
        "gemm_tile.cuh",
        "copy(shared + write);\n    cp_async_commit();",
        "copy(shared + write);",
        "gemm_s8_codes_64x64",
    ),
    ("gemm_tile.cuh", "write = read;", "write = write;", "gemm_w4a8_signed_group_16x128"),
    ("gemm_tile.cuh", "(stage + kStages - 1) % kStages", "stage", "gemm_s8_codes_64x64"),
    ("gemm_tile.cuh", "if (slabs-- == 0)", "if (--slabs == 0)", "gemm_s8_codes_64x64"),
    ("gemm_tile.cuh", "left_ > 0", "left_ >= 0", "gemm_w4a8_signed_row_16x128"),
    (
        "gemm_tile.cuh",
        "begin(first + lane % 16, lane / 16)",
        "begin(first + lane % 16, lane / 8 % 2)",
        "gemm_s8_codes_64x64",
    ),
    ("gemm_tile.cuh", "visit(row + 8, column", "visit(row + 4, column", "gemm_s8_codes_64x64"),
    ("gemm_tile.cuh", "if (column + 1 < columns) to[1] = b;", "to[1] = b;", "gemm_s8_floats_64x64"),
    ("gemm_tile.cuh", "row < rows ? row : rows - 1", "row", "gemm_s8_floats_64x64"),
    ("gemm_s8.cu", "cp_async_wait<0>();\n  block_barrier();", "cp_async_wait<0>();", "gemm_s8_codes_64x64"),
    ("gemm_s8.cu", "cp_async_wait<0>();\n  block_barrier();", "block_barrier();", "gemm_s8_codes_64x64"),
    ("gemm_s8.cu", "  });\n  block_barrier();", "  });", "gemm_s8_codes_64x64"),
    ("gemm_s8.cu", "12582912.0f)) + y_zero", "12582912.0f + y_zero))", "gemm_s8_codes_64x64"),
    ("gemm_s8.cu", "12582912.0f)", "8388608.0f)", "gemm_s8_codes_64x64"),
    ("gemm_s8.cu", "__int2float_rn(high - y_zero)", "__int2float_rn(high)", "gemm_s8_codes_64x64"),
    ("gemm_s8.cu", "Bytes<false>> tile;", "Bytes<true>> tile;", "gemm_s8_codes_64x64"),
    ("integer_tile.cuh", "mma_s4<kSigned>", "mma_s4<!kSigned>", "gemm_w4a4_signed_row_128x128"),
    (
        "integer_tile.cuh",
        "a[2 * kPart], a[2 * kPart + 1], b[kPart]",
        "a[kPart], a[kPart + 2], b[kPart]",
        "gemm_w4a4_signed_group32_64x128",
    ),
    (
        "integer_tile.cuh",
        "b[j + i][0] = (r[i] << 4) & 0xF0F0F0F0;",
        "b[j + i][0] = r[i] & 0xF0F0F0F0;",
        "gemm_w4a8_signed_row_16x128",
    ),
    ("scaled_codes.cuh", "clear_row_sums();\n    }", "}", "gemm_w4a8_unsigned_group_16x128"),
    (
        "scaled_codes.cuh",
        "++group_;\n      begin_group();",
        "begin_group();\n      ++group_;",
        "gemm_w4a8_unsigned_group_16x128",
    ),
    ("scaled_codes.cuh", "|| group_ < grids_.groups) {", "|| true) {", "gemm_w4a8_unsigned_group_16x128"),
    ("scaled_codes.cuh", "kGroup == kSteps * Codes::kParts ||", "true ||", "gemm_w4a4_signed_group64_64x128"),
    ("scaled_codes.cuh", "(at + 1) % kGroup", "at % kGroup", "gemm_w4a4_signed_group128_64x128"),
    (
        "scaled_codes.cuh",
        "fill(tile_.acc, kSeed);\n  }",
        "fill(tile_.acc, 0);\n  }",
        "gemm_w4a4_signed_group128_64x128",
    ),
    (
        "scaled_codes.cuh",
        "e % 2 == 0 ? scale_[j].x",
        "e / 2 == 0 ? scale_[j].x",
        "gemm_w4a8_unsigned_group_16x128",
    ),
    ("scaled_codes.cuh", "row_sums_[i][2 * half]", "row_sums_[i][0]", "gemm_w4a8_unsigned_group_16x128"),
    ("gemm_w4a16.cu", "kSixteenth = 0x2C002C00", "kSixteenth = 0x30003000", "gemm_w4a16_f16_16x128"),
    ("gemm_w4a16.cu", "parts - first * 2 % parts", "parts", "gemm_w4a16_f16_16x128"),
    ("gemm_w4a16.cu", "word >> (8 * tile)", "word >> (8 - 8 * tile)", "gemm_w4a16_bf16_16x128"),
    (
        "gemm_w4a16.cu",
        "cp_async_16(to, w, w_left > 0);",
        "cp_async_16(to, w, true);",
        "gemm_w4a16_f16_16x128",
    ),
    ("gemm_w4a16.cu", "for (int split = 1;", "for (int split = 2;", "gemm_w4a16_f16_16x128"),
]


def passes(executor: Executor, entry: str) -> bool:
    """Whether a kernel gives what it should on ragged shapes, under several orders of its warps."""
    kernel = KERNEL[entry]
    try:
        return all(_passes(executor, kernel, seed) for seed in range(4))
    except ExecutorError:
        return False


def _passes(executor: Executor, kernel, seed: int) -> bool:
    m, n, k = kernel.tile[0] + 5, kernel.tile[1] - 1, 448
    if kernel.op == "gemm_s8":
        x, weight, _, _ = s8.drawn(m, n, k, seed)
        # A power of two: some results lie halfway between codes.
        case = x, weight, torch.full((n,), 2.0**-10), torch.zeros(n)
        got = s8.run_codes(executor, kernel, *case, 119, 3, 1, 250, seed=seed)
        return torch.equal(got, s8.gemm_s8(*case, x_zero=119, y_zero=3, low=1, high=250, backend="reference"))
    if kernel.op == "gemm_s8_float":
        case = s8.drawn(m, n, k, seed)
        got = s8.run_floats(executor, kernel, *case, 119, seed=seed)
        return low_bit.same_bytes(got, s8.gemm_s8_float(*case, x_zero=119, backend="reference"))
    if kernel.op == "gemm_w4a16":
        case = w4a16.weights(n, 640, 128, False, 4, "each", seed)
        x = torch.randn(m, 640, generator=torch.Generator().manual_seed(seed)).to(
            w4a16.HALF[w4a16.dtype_of(kernel)]
        )
        got = w4a16.run(executor, kernel, x, case, 128, False, 4, 4, seed)
        return w4a16.within_the_bound(got, *w4a16.exact(x, case, 128, False, 4), 640, 5, 4)
    size = kernel.group_sizes[0]
    k = 40 if size is None else 5 * size
    case = low_bit.drawn(kernel, (m, n, k), size, False, 4, "each", True, seed)
    got = low_bit.run(executor, kernel, case, k, size, False, 4, seed)
    return low_bit.same_bytes(got, low_bit.wanted(kernel, case, k, size, False, 4))


def mutant(folder, file, old, new, entry) -> Executor:
    """The source of one kernel with one change, built in ``folder``."""
    csrc = folder / "csrc"
    for part in ("cuda", "cpu"):
        shutil.copytree(CSRC / part, csrc / part)
    path = csrc / "cuda" / file
    before = path.read_text(encoding="utf-8")
    assert before.count(old) == 1, f"{file}: the text to change occurs {before.count(old)} times"
    path.write_text(before.replace(old, new), encoding="utf-8")
    return Executor(folder, "_".join(entry.split("_")[:2]) + ".cu", csrc, ["-Wno-error"])


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is on PATH")
@pytest.mark.parametrize(
    ("file", "old", "new", "entry"),
    [*FAST, *(pytest.param(*mutation, marks=pytest.mark.slow) for mutation in SLOW)],
)
def test_a_broken_kernel_is_caught(tmp_path, file, old, new, entry):
    assert not passes(mutant(tmp_path, file, old, new, entry), entry)


def test_the_kernels_as_they_are_pass(executor):
    assert [entry for *_, entry in [*FAST, *SLOW] if not passes(executor, entry)] == []
