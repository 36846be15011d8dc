"""gemm_w4: every instruction set against the reference, byte for byte."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyquant.errors import DTypeError, ShapeError
from pyquant.ops.backend import extension, missing
from pyquant.ops.gemm_w4 import PackedW4, gemm_w4
from pyquant.ops.pack import pack

needs_cpu = pytest.mark.skipif(missing("cpu") is not None, reason=str(missing("cpu")))
ISAS = extension().available_isas() if extension() is not None else []


def case(m: int, n: int, k: int, group_size: int | None, x_signed: bool, signed: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(m * 10007 + n * 101 + k)
    low, high = (-128, 128) if x_signed else (0, 256)
    groups = k // (group_size or k)
    start = -8 if signed else 0
    codes = torch.randint(start, start + 16, (n, k), generator=generator)
    return {
        "x": torch.randint(low, high, (m, k), generator=generator).to(
            torch.int8 if x_signed else torch.uint8
        ),
        "packed": pack(codes, 4),
        "scale": torch.rand(n, groups, generator=generator) * 0.01,
        "x_scale": torch.rand(m, generator=generator) * 0.1,
        "x_zero": torch.randint(low, high, (m,), generator=generator, dtype=torch.int32),
        "zero_point": torch.randint(start, start + 16, (n, groups), generator=generator, dtype=torch.int32),
    }


def by_hand(t: dict[str, Tensor], signed: bool, group_size: int | None) -> Tensor:
    """The formula in float64, codes read nibble by nibble."""
    k = t["x"].shape[1]
    nibbles = torch.stack([(t["packed"].long() >> (4 * i)) & 15 for i in range(8)], dim=2).reshape(
        t["packed"].shape[0], -1
    )[:, :k]
    codes = torch.where(nibbles > 7, nibbles - 16, nibbles) if signed else nibbles
    size = group_size or k
    weight = (codes.double() - t["zero_point"].repeat_interleave(size, 1)) * t[
        "scale"
    ].double().repeat_interleave(size, 1)
    return (t["x"].double() - t["x_zero"].double()[:, None]) * t["x_scale"].double()[:, None] @ weight.T


@needs_cpu
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize(
    ("k", "group_size"), [(1, None), (7, None), (131, None), (64, 32), (192, 64), (384, 128)]
)
def test_tails(isa: str, signed: bool, k: int, group_size: int | None) -> None:
    for m in (*range(1, 10), 65):
        for n in (1, 16, 17, 31, 50):
            t = case(m, n, k, group_size, x_signed=m % 2 == 0, signed=signed)
            want = gemm_w4(**t, group_size=group_size, signed=signed, backend="reference")
            layer = PackedW4(t["packed"], t["scale"], t["zero_point"], k, group_size, signed, isa)
            assert torch.equal(layer(t["x"], t["x_scale"], t["x_zero"], threads=1 + m % 2), want), (m, n)


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize(("k", "group_size"), [(131, None), (192, 64)])
def test_the_reference_is_the_formula(signed: bool, k: int, group_size: int | None) -> None:
    t = case(5, 9, k, group_size, x_signed=False, signed=signed)
    got = gemm_w4(**t, group_size=group_size, signed=signed, backend="reference").double()
    # Each group adds two roundings, the row's scale one: relative to the sum of the groups' magnitudes.
    size = group_size or k
    centred = (t["x"].double() - t["x_zero"].double()[:, None]).abs() * t["x_scale"].double()[:, None]
    bound = centred @ (16 * t["scale"].double().repeat_interleave(size, 1)).T * (2 * (k // size) + 2) * 2**-24
    assert bool(((got - by_hand(t, signed, group_size)).abs() <= bound).all())


@needs_cpu
def test_auto_and_defaults() -> None:
    t = case(3, 20, 64, 32, x_signed=True, signed=True)
    del t["x_zero"], t["zero_point"]
    assert torch.equal(gemm_w4(**t, group_size=32), gemm_w4(**t, group_size=32, backend="reference"))


def test_opcheck() -> None:
    t = case(3, 20, 64, 32, x_signed=False, signed=True)
    tensors = [t[name] for name in ("x", "packed", "scale", "x_scale", "x_zero", "zero_point")]
    torch.library.opcheck(torch.ops.pyquant.gemm_w4.default, (*tensors, 32, True))


def test_bad_input() -> None:
    t = case(3, 20, 96, None, x_signed=False, signed=True)
    with pytest.raises(ShapeError, match=r"group_size=64 does not suit K=96"):
        gemm_w4(**t, group_size=64)
    with pytest.raises(ShapeError, match="scale"):
        gemm_w4(**t, group_size=32)
    with pytest.raises(ShapeError, match="words"):
        gemm_w4(**{**t, "packed": t["packed"][:, :5]})
    with pytest.raises(ShapeError, match="one a row"):
        gemm_w4(**{**t, "x_scale": torch.ones(2)})
    with pytest.raises(ShapeError, match=r"\[M, K\]"):
        gemm_w4(**{**t, "x": t["x"][:0]})
    with pytest.raises(DTypeError, match="uint8 or int8"):
        gemm_w4(**{**t, "x": t["x"].float()})
    long = torch.zeros(1, 65800, dtype=torch.uint8)
    words = torch.zeros(1, 8225, dtype=torch.int32)
    with pytest.raises(ShapeError, match="at most K=65793"):
        gemm_w4(long, words, torch.ones(1, 1), torch.ones(1))
