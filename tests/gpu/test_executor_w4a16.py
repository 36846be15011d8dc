"""gemm_w4a16's CUDA kernels, executed on this CPU: within the bound of float32 sums, whatever the order."""

from __future__ import annotations

import pytest
import torch

from pyquant.ops.cuda_configurations import KERNELS, w4a16_splits
from pyquant.ops.cuda_layouts import aligned_rows, weights_w4a16
from pyquant.ops.pack import pack, unpack
from tests.gpu.executor import Executor, aligned
from tests.ops.w4_cases import weights

MULTIPLY = [k for k in KERNELS if k.op == "gemm_w4a16"]
HALF = {"f16": torch.float16, "bf16": torch.bfloat16}
# M, N, K, group size, splits: K of a chunk, under a slab, under the pipeline; a split that begins within a group; one without K;
# more splits than the compiler sums in one turn of its loop; groups that end within a slab, with zero points.
CASES = [
    (1, 1, 1, None, 1),
    (17, 63, 40, None, 2),
    (1, 129, 32, 32, 1),
    (63, 130, 320, 32, 3),
    (16, 128, 512, 64, 4),
    (64, 33, 640, 128, 4),
    (65, 64, 1024, 128, 1),
    (3, 70, 576, 64, 6),
    (9, 130, 224, 32, 1),
]


def dtype_of(kernel):
    return kernel.entry.split("_")[2]


def run(executor: Executor, kernel, x, case, group_size, signed, bits, splits, seed=0):
    """What a launch does; the partial sums and the result start as NaN."""
    (m, k), n = x.shape, case["packed"].shape[0]
    w = weights_w4a16(case["packed"], case["scale"], case.get("zero_point"), k, group_size, signed, bits)
    rows = aligned(aligned_rows(x))
    y = aligned(torch.full((m, n), torch.nan, dtype=x.dtype))
    partial = aligned(torch.full((splits, m, n), torch.nan))
    zero = None if w.zero is None else aligned(w.zero)
    arguments = [
        rows, aligned(w.codes), aligned(w.scale), zero, y, partial, m, n, rows.shape[1], w.scale.shape[0],
        group_size or k,
    ]  # fmt: skip
    executor.launch(kernel.entry, (*kernel.grid(m, n)[:2], splits), arguments, seed)
    if splits > 1:
        name = f"gemm_w4a16_sum_{dtype_of(kernel)}"
        executor.launch(name, (-(-m * n // 256), 1, 1), [partial, y, m * n, splits], seed)
    return y


def exact(x, case, group_size, signed, bits):
    """The product in float64, and how large the terms of its sums are together."""
    n, k = case["packed"].shape[0], x.shape[1]
    codes = unpack(case["packed"], bits, signed, k).double().reshape(n, -1, group_size or k)
    if "zero_point" in case:
        codes = codes - case["zero_point"].double()[:, :, None]
    w = (codes * case["scale"].double()[:, :, None]).reshape(n, k)
    return x.double() @ w.T, x.double().abs() @ w.abs().T


def within_the_bound(got, want, terms, k, groups, splits):
    """Each of fewer than ``k + groups + splits`` additions loses at most 2^-23 of the terms' sum, truncation included.

    The products of codes are exact. At the end a float16 loses half of its last place, 2^-11 of it or 2^-25, a bfloat16 2^-8.
    """
    sums = (k + groups + splits) * 2.0**-23 * terms
    last, least = (2.0**-11, 2.0**-25) if got.dtype == torch.float16 else (2.0**-8, 0.0)
    return bool(((got.double() - want).abs() <= sums + last * (want.abs() + sums) + least).all())


@pytest.mark.parametrize("at", range(len(CASES)))
@pytest.mark.parametrize("kernel", MULTIPLY, ids=lambda k: k.entry)
def test_every_class_of_shape(executor, kernel, at):
    """Signed and unsigned weights of 4 and 3 bits, with zero points and without."""
    m, n, k, group_size, splits = CASES[at]
    signed, bits, zeros = [(True, 4, "none"), (False, 4, "each"), (True, 3, "each")][at % 3]
    case = weights(n, k, group_size, signed, bits, zeros, seed=at)
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(at)).to(HALF[dtype_of(kernel)])
    got = run(executor, kernel, x, case, group_size, signed, bits, splits, seed=at)
    want, terms = exact(x, case, group_size, signed, bits)
    assert within_the_bound(got, want, terms, k, case["scale"].shape[1], splits)


@pytest.mark.parametrize("kernel", MULTIPLY, ids=lambda k: k.entry)
def test_every_code_comes_out_exact(executor, kernel):
    """Every code times one, for every zero point: whole numbers, to the last bit; and a NaN stays in its row."""
    n, k = 16, 64
    codes = torch.arange(16)[None, :].repeat(n, k // 16)
    case = {
        "packed": pack(codes, 4),
        "scale": torch.ones(n, 2),
        "zero_point": torch.arange(16, dtype=torch.int32)[:, None].repeat(1, 2),
    }
    x = torch.eye(k)[[0, 1, 2, 15, 16, 17, 40, 63, 5]].to(HALF[dtype_of(kernel)])
    x[8] = torch.nan
    got = run(executor, kernel, x, case, 32, False, 4, 1)
    want = (codes - case["zero_point"][:, :1]).T[[0, 1, 2, 15, 16, 17, 40, 63]].to(got.dtype)
    assert torch.equal(got[:8], want)
    assert bool(got[8].isnan().all())


def test_runs_give_the_same_bytes_whatever_the_order(executor):
    kernel = MULTIPLY[0]
    case = weights(100, 640, 128, True, 4, "none", seed=3)
    x = torch.randn(5, 640, generator=torch.Generator().manual_seed(3)).half()
    first, *others = [run(executor, kernel, x, case, 128, True, 4, 3, seed=s) for s in range(4)]
    assert all(torch.equal(first, other) for other in others)


def test_splits_fill_the_device_and_keep_some_depth():
    kernel = MULTIPLY[0]
    assert w4a16_splits(kernel, 1, 4096, 4096, 108) == 6
    assert w4a16_splits(kernel, 1, 128, 256, 108) == 1
    assert w4a16_splits(kernel, 1, 128, 4096, 108) == 16
    assert w4a16_splits(kernel, 64, 128 * 300, 4096, 108) == 1
