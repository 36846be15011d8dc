"""linear_w4: float rows through low-bit weights, every instruction set against the reference, byte for byte."""

from __future__ import annotations

import pytest
import torch

from pyquant.errors import DTypeError, GridError, ShapeError
from pyquant.ops.backend import missing
from pyquant.ops.linear_w4 import LinearW4, linear_w4
from pyquant.ops.pack import unpack
from tests.ops.w4_cases import ISAS, same_bytes, weights

needs_cpu = pytest.mark.skipif(missing("cpu") is not None, reason=str(missing("cpu")))
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def floats(m: int, k: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(m * 1000 + k)
    return (torch.randn(m, k, generator=generator) * (1 + torch.arange(m)[:, None])).to(dtype)


@needs_cpu
@DTYPES
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_kernels_give_the_reference_bytes(isa: str, bits: int, dtype: torch.dtype) -> None:
    for k, group_size, zeros in (
        (32, 32, "none"),
        (77, None, "each"),
        (640, None, "one"),
        (384, 128, "each"),
    ):
        w = weights(33, k, group_size, True, bits, zeros, 7)
        options = {"group_size": group_size, "bits": bits, "zero_point": w.pop("zero_point", None)}
        layer = LinearW4(**w, length=k, **options, isa=isa)
        for m in (1, 3, 4, 5, 16, 17, 63, 128, 131):
            x = floats(m, k, dtype)
            want = linear_w4(x, **w, **options, backend="reference")
            assert same_bytes(layer(x, threads=1 + m % 3), want), (m, k)


@DTYPES
@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_cpu)])
def test_as_near_to_the_product_of_the_numbers_as_codes_allow(backend: str, dtype: torch.dtype) -> None:
    """No element of a row is off by more than half its step."""
    w = weights(20, 128, 32, True, 4, "each", 1)
    x = floats(9, 128, dtype)
    got = linear_w4(x, **w, group_size=32, backend=backend).double()
    real = (unpack(w["packed"], 4, True, 128) - w["zero_point"].repeat_interleave(32, 1)) * w[
        "scale"
    ].double().repeat_interleave(32, 1)
    half_step = x.double().abs().amax(1) / 254
    magnitude = x.double().abs() @ real.abs().T
    # Half a step of each input, four groups of two roundings and three more, and the last one to the dtype.
    bound = half_step[:, None] * real.abs().sum(1) + magnitude * (12 * 2**-24 + torch.finfo(dtype).eps)
    assert bool(((got - x.double() @ real.T).abs() <= bound).all())


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_cpu)])
def test_a_row_that_is_not_finite_comes_out_as_nan_and_touches_no_other(backend: str) -> None:
    w = weights(20, 64, 32, True, 4, "none", 1)
    x = floats(20, 64, torch.float32)
    clean = linear_w4(x, **w, group_size=32, backend=backend)
    x[2, 5], x[7, 63], x[19, 0] = float("nan"), float("inf"), float("-inf")
    got = linear_w4(x, **w, group_size=32, backend=backend)
    bad = torch.zeros(20, dtype=torch.bool).index_fill(0, torch.tensor([2, 7, 19]), True)
    assert bool(got[bad].isnan().all()) and same_bytes(got[~bad], clean[~bad])


@needs_cpu
def test_leading_dimensions_and_strides() -> None:
    w = weights(20, 64, 32, True, 4, "none", 1)
    x = floats(12, 64, torch.bfloat16).reshape(3, 4, 64)
    want = linear_w4(x, **w, group_size=32, backend="reference")
    layer = LinearW4(**w, length=64, group_size=32)
    assert want.shape == (3, 4, 20)
    for call in (layer, lambda x: linear_w4(x, **w, group_size=32)):
        assert same_bytes(call(x), want)
        assert same_bytes(call(x[0, 0]), want[0, 0])
        strided = x.transpose(0, 1)
        assert same_bytes(call(strided), want.transpose(0, 1).contiguous())
        assert same_bytes(call(x.reshape(12, 64).T.contiguous().T), want.reshape(12, 20))


@needs_cpu
def test_a_packed_layer_needs_its_tensors_no_longer() -> None:
    w = weights(20, 64, 32, True, 4, "each", 1)
    x = floats(3, 64, torch.float32)
    layer = LinearW4(**w, length=64, group_size=32)
    want = linear_w4(x, **w, group_size=32, backend="reference")
    for tensor in w.values():
        tensor.zero_()
    assert same_bytes(layer(x), want)


def test_opcheck() -> None:
    w = weights(20, 64, 32, True, 4, "each", 1)
    args = (floats(3, 64, torch.float32), w["packed"], w["scale"], w["zero_point"], 32, True, 4)
    torch.library.opcheck(torch.ops.pyquant.linear_w4.default, args)


def test_bad_input() -> None:
    w = weights(20, 64, 32, True, 4, "none", 1)
    with pytest.raises(
        DTypeError, match=r"x is torch\.float64; linear_w4 takes float32, bfloat16 or float16"
    ):
        linear_w4(torch.zeros(2, 64, dtype=torch.float64), **w, group_size=32)
    with pytest.raises(ShapeError, match=r"x is \[0, 64\]; linear_w4 takes at least one row"):
        linear_w4(torch.zeros(0, 64), **w, group_size=32)
    with pytest.raises(ShapeError, match="packed has 8 words a row; K=72"):
        linear_w4(torch.zeros(2, 72), **w, group_size=32)
    with pytest.raises(GridError, match="bits=8"):
        LinearW4(**w, length=64, group_size=32, bits=8)


@needs_cpu
def test_bad_input_of_a_packed_layer() -> None:
    layer = LinearW4(**weights(20, 64, 32, True, 4, "none", 1), length=64, group_size=32)
    with pytest.raises(ShapeError, match=r"x is \[2, 63\]; this layer takes rows of K=64"):
        layer(torch.zeros(2, 63))
    with pytest.raises(DTypeError, match=r"x is torch.int8"):
        layer(torch.zeros(2, 64, dtype=torch.int8))
