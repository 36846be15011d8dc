"""gemm_s8 against a Python-integer product and the reference, byte for byte."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyquant import reference
from pyquant.errors import BackendError, DTypeError, ShapeError
from pyquant.ops.backend import extension, missing
from pyquant.ops.gemm_s8 import gemm_s8, gemm_s8_float
from pyquant.ops.packed_conv import PackedConv

needs_cpu = pytest.mark.skipif(missing("cpu") is not None, reason=str(missing("cpu")))
ISAS = extension().available_isas() if extension() is not None else []


def case(m: int, n: int, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(m * 10007 + n * 101 + k)
    x = torch.randint(0, 256, (m, k), generator=generator, dtype=torch.uint8)
    weight = torch.randint(-128, 128, (n, k), generator=generator).to(torch.int8)
    multiplier = (torch.rand(n, generator=generator) + 0.2) / (90 * k**0.5)
    return x, weight, multiplier, torch.randn(n, generator=generator) * 20


@needs_cpu
@pytest.mark.parametrize("isa", ISAS)
def test_tails(isa: str) -> None:
    options = {
        "stride": (1, 1),
        "padding": (0, 0, 0, 0),
        "dilation": (1, 1),
        "groups": 1,
        "y_zero": 90,
        "low": 3,
        "high": 250,
    }
    for m in range(1, 21):
        for n in (1, 15, 16, 17, 33, 48):
            for k in (1, 3, 4, 17, 64):
                x, weight, multiplier, bias = case(m, n, k)
                layer = PackedConv(weight, multiplier, bias, (1, 1, k), isa=isa, x_zero=131, **options)
                acc = (x.long() - 131) @ weight.long().T
                want = reference.requantize(acc, multiplier, bias, 90, 3, 250)
                assert torch.equal(layer(x, threads=1 + m % 2).reshape(m, n), want), (m, n, k)


@needs_cpu
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("steepness", "offset"), [(1.0, 0.0), (1e7, 0.0), (0.01, 3e9), (0.01, -3e9)])
def test_results_beyond_an_integer_are_clamped(isa: str, steepness: float, offset: float) -> None:
    """Codes 0 to 255 may be clamped as they are packed, but not where a result does not fit into an int32."""
    m, n, k = 14, 48, 64
    x, weight, multiplier, bias = case(m, n, k)
    multiplier, bias = multiplier * steepness, bias + offset
    layer = PackedConv(
        weight,
        multiplier,
        bias,
        (1, 1, k),
        isa=isa,
        stride=(1, 1),
        padding=(0, 0, 0, 0),
        dilation=(1, 1),
        groups=1,
        x_zero=131,
        y_zero=90,
        low=0,
        high=255,
    )
    want = reference.requantize((x.long() - 131) @ weight.long().T, multiplier, bias, 90, 0, 255)
    assert torch.equal(layer(x, threads=1).reshape(m, n), want)


@needs_cpu
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (7, 33, 130), (64, 96, 515), (3, 1000, 1280)])
def test_backends_agree(m: int, n: int, k: int) -> None:
    tensors = case(m, n, k)
    zeros = {"x_zero": 11, "y_zero": 128}
    want = gemm_s8(*tensors, **zeros, backend="reference")
    assert torch.equal(gemm_s8(*tensors, **zeros, backend="cpu"), want)
    assert torch.equal(gemm_s8(*tensors, **zeros), want)
    assert len(want.unique()) > 1 or want.numel() == 1
    want = gemm_s8_float(*tensors, x_zero=11, backend="reference")
    assert torch.equal(gemm_s8_float(*tensors, x_zero=11, backend="cpu"), want)


@needs_cpu
def test_a_changed_weight_is_packed_anew() -> None:
    x, weight, multiplier, bias = case(4, 20, 40)
    first = gemm_s8_float(x, weight, multiplier, bias, x_zero=0, backend="cpu")
    weight.neg_()
    second = gemm_s8_float(x, weight, multiplier, bias, x_zero=0, backend="cpu")
    assert torch.equal(second, gemm_s8_float(x, weight, multiplier, bias, x_zero=0, backend="reference"))
    assert not torch.equal(first, second)


def test_opcheck() -> None:
    tensors = case(5, 18, 9)
    torch.library.opcheck(torch.ops.pyquant.gemm_s8.default, (*tensors, 3, 128, 0, 255))
    torch.library.opcheck(torch.ops.pyquant.gemm_s8_float.default, (*tensors, 3))


def test_sums_that_could_leave_int32_are_refused() -> None:
    weight = torch.full((1, 65794), -128, dtype=torch.int8)
    x = torch.full((1, 65794), 255, dtype=torch.uint8)
    one = torch.ones(1)
    with pytest.raises(ShapeError, match="at most K=65793"):
        gemm_s8_float(x, weight, one, one, x_zero=0)
    # One product fewer is allowed, and exact: here the sum is the most negative that fits.
    y = gemm_s8_float(x[:, 1:], weight[:, 1:].contiguous(), one, torch.zeros(1), x_zero=0)
    assert y.item() == float(torch.tensor(-128 * 255 * 65793).float())


def test_bad_input() -> None:
    x, weight, multiplier, bias = case(2, 3, 4)
    with pytest.raises(DTypeError, match=r"torch\.uint8"):
        gemm_s8(x.float(), weight, multiplier, bias, x_zero=0, y_zero=0)
    with pytest.raises(ShapeError, match=r"\[M, K\]"):
        gemm_s8(x[:, :3], weight, multiplier, bias, x_zero=0, y_zero=0)
    with pytest.raises(ShapeError, match=r"\[M, K\]"):
        gemm_s8(x[:0], weight, multiplier, bias, x_zero=0, y_zero=0)
    with pytest.raises(ShapeError, match="multiplier"):
        gemm_s8(x, weight, multiplier[:2], bias, x_zero=0, y_zero=0)
    with pytest.raises(BackendError, match=r"0\.\.255"):
        gemm_s8(x, weight, multiplier, bias, x_zero=256, y_zero=0)
    with pytest.raises(BackendError, match=r"0\.\.255"):
        gemm_s8_float(x, weight, multiplier, bias, x_zero=256)
    with pytest.raises(BackendError, match="cuda"):
        gemm_s8(x, weight, multiplier, bias, x_zero=0, y_zero=0, backend="cuda")
