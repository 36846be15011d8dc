"""gemm_w4a4's and gemm_w4a8's CUDA kernels, executed on this CPU: byte-equal to the reference."""

from __future__ import annotations

import pytest
import torch

from pyquant.errors import GridError, ShapeError
from pyquant.ops.cuda_configurations import KERNELS
from pyquant.ops.cuda_layouts import aligned_rows, weights_w4a4, weights_w4a8
from pyquant.ops.gemm_w4 import gemm_w4
from pyquant.ops.gemm_w4a4 import gemm_w4a4
from pyquant.ops.pack import pack
from tests.gpu.executor import Executor, aligned
from tests.ops.w4_cases import rows, same_bytes, weights

LOW_BIT = [(k, size) for k in KERNELS if k.op in ("gemm_w4a4", "gemm_w4a8") for size in k.group_sizes]
# M, N, groups or K: see test_executor_gemm_s8; rows have odd lengths only where there are no groups.
ROW_SHAPES = [(1, 1, 1), (17, 63, 40), (63, 33, 129), (128, 130, 256), (130, 128, 500)]
GROUP_SHAPES = [(1, 1, 1), (17, 63, 2), (63, 33, 3), (65, 130, 5), (128, 128, 9)]


def run(executor: Executor, kernel, case, k, group_size, signed, bits, seed=0):
    """What a launch does: codes in rows of whole chunks, weights packed for the kernel, results on garbage."""
    x, (m, n) = case["x"], (case["x"].shape[0], case["packed"].shape[0])
    layout = weights_w4a4 if kernel.op == "gemm_w4a4" else weights_w4a8
    w = layout(case["packed"], case["scale"], case.get("zero_point"), k, group_size, signed, bits)
    if kernel.op == "gemm_w4a4":
        x = pack(x.int(), 4)
    x = aligned(aligned_rows(x))
    row_bytes = x.shape[1] * x.element_size()
    y = aligned(torch.full((m, n), torch.nan))
    grids = [aligned(w.scale), None if w.zero is None else aligned(w.zero), aligned(w.sums)]
    groups = w.scale.shape[0]
    sizes = (
        [row_bytes, groups]
        if kernel.op == "gemm_w4a4"
        else [row_bytes, w.codes.shape[1], groups, group_size or k]
    )
    arguments = [x, aligned(w.codes), *grids, case["x_scale"], case.get("x_zero"), y, m, n, *sizes]
    executor.launch(kernel.entry, kernel.grid(m, n), arguments, seed)
    return y


def wanted(kernel, case, k, group_size, signed, bits):
    options = {"group_size": group_size, "signed": signed, "bits": bits, "backend": "reference"}
    if kernel.op == "gemm_w4a8":
        return gemm_w4(**case, **options)
    words = {**case, "x": pack(case["x"].int(), 4)}
    return gemm_w4a4(**words, length=k, x_signed=kernel.x_signed, **options)


def drawn(kernel, shape, group_size, signed, bits, zeros, x_zeros, seed):
    m, n, k = shape
    return {
        **weights(n, k, group_size, signed, bits, zeros, seed),
        **rows(m, k, kernel.x_signed, 4 if kernel.op == "gemm_w4a4" else 8, x_zeros, seed),
    }


@pytest.mark.parametrize("at", range(5))
@pytest.mark.parametrize(("kernel", "group_size"), LOW_BIT, ids=lambda v: getattr(v, "entry", str(v)))
def test_every_class_of_shape(executor, kernel, group_size, at):
    """With and without zero points on either side, signed and unsigned weights, of 4, 3 and 2 bits."""
    m, n, k = ROW_SHAPES[at] if group_size is None else GROUP_SHAPES[at]
    k *= group_size or 1
    signed, bits, zeros, x_zeros = [
        (True, 4, "none", False),
        (True, 4, "each", True),
        (False, 4, "none", True),
        (False, 3, "each", False),
        (True, 2, "none", False),
    ][at]
    case = drawn(kernel, (m, n, k), group_size, signed, bits, zeros, x_zeros, seed=at)
    got = run(executor, kernel, case, k, group_size, signed, bits, seed=at)
    assert same_bytes(got, wanted(kernel, case, k, group_size, signed, bits))


@pytest.mark.parametrize(("kernel", "group_size"), LOW_BIT, ids=lambda v: getattr(v, "entry", str(v)))
def test_bands_of_columns(executor, kernel, group_size):
    """Two bands, the second with a place that no columns are left for; two rows of tiles."""
    m, n, k = kernel.tile[0] + 1, 10 * kernel.tile[1] + 1, group_size or 32
    assert kernel.grid(m, n) == (6, 2, 2)
    case = drawn(kernel, (m, n, k), group_size, True, 4, "each", True, seed=1)
    got = run(executor, kernel, case, k, group_size, True, 4)
    assert same_bytes(got, wanted(kernel, case, k, group_size, True, 4))


@pytest.mark.parametrize(("kernel", "group_size"), LOW_BIT, ids=lambda v: getattr(v, "entry", str(v)))
def test_extremes(executor, kernel, group_size):
    """The ends of every grid against each other, where sums are as large as they get."""
    k = 2 * (group_size or 96)
    low, high = (-8, 7) if kernel.op == "gemm_w4a4" else (-128, 127)
    if not kernel.x_signed:
        low, high = 0, high - low
    dtype = torch.int8 if kernel.x_signed else torch.uint8
    x = torch.tensor([low, high, high, low], dtype=dtype)[:, None].expand(4, k).contiguous()
    groups = k // (group_size or k)
    case = {
        "x": x,
        "x_scale": torch.tensor([1.0, 0.5, 3.0, 1e-3]),
        "x_zero": torch.tensor([high, low, 0, low], dtype=torch.int32),
        "packed": pack(torch.tensor([0, 15, 7])[:, None].expand(3, k), 4),
        "scale": torch.full((3, groups), 0.1),
        "zero_point": torch.tensor([15, 0, 15])[:, None].expand(3, groups).to(torch.int32),
    }
    got = run(executor, kernel, case, k, group_size, False, 4)
    assert same_bytes(got, wanted(kernel, case, k, group_size, False, 4))


def test_what_x_has_behind_its_last_code_adds_nothing(executor):
    """A word's tail holds whatever code the packer left there; weights have their zero points against it."""
    kernel = next(k for k in KERNELS if k.op == "gemm_w4a4" and None in k.group_sizes and not k.x_signed)
    case = drawn(kernel, (5, 9, 13), None, False, 4, "each", True, seed=7)
    tail = torch.full((5, 3), 11, dtype=torch.uint8)
    got = run(executor, kernel, {**case, "x": torch.cat([case["x"], tail], 1)}, 13, None, False, 4)
    assert same_bytes(got, wanted(kernel, case, 13, None, False, 4))


def test_weights_that_a_kernel_cannot_take_are_refused():
    packed = pack(torch.full((1, 70000), -8), 4)
    one = torch.ones(1, 1)
    with pytest.raises(
        ShapeError, match="sums over 70000 codes can reach 2284800000, and the kernel holds 2147483647"
    ):
        weights_w4a8(packed, one, None, 70000, None, True)
    assert weights_w4a4(packed, one, None, 70000, None, True).zero is None
    with pytest.raises(
        ShapeError, match="sums over 64 codes can reach 9592320, and the kernel holds 4194304"
    ):
        weights_w4a4(packed[:, :8], one, torch.full((1, 1), 9984), 64, 64, True)
    with pytest.raises(GridError, match="under 2\\^-122"):
        weights_w4a8(pack(torch.ones(1, 32, dtype=torch.int32), 4), one * 2.0**-123, None, 32, None, True)
