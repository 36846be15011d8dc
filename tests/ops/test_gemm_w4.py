"""gemm_w4 and gemm_w4a4: every instruction set against the reference, byte for byte."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyquant.errors import DTypeError, GridError, ShapeError
from pyquant.ops.backend import missing
from pyquant.ops.gemm_w4 import gemm_w4
from pyquant.ops.gemm_w4a4 import gemm_w4a4
from pyquant.ops.pack import pack
from pyquant.ops.packed_w4 import PackedW4
from tests.ops.w4_cases import ISAS, ends, rows, same_bytes, weights

needs_cpu = pytest.mark.skipif(missing("cpu") is not None, reason=str(missing("cpu")))
SIGNS = pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])


def check(x: dict[str, Tensor], w: dict[str, Tensor], isa: str, threads: int, **options: object) -> None:
    """One instruction set against the reference."""
    want = gemm_w4(**x, **w, **options, backend="reference")
    k = x["x"].shape[1]
    layer = PackedW4(w["packed"], w["scale"], w.get("zero_point"), k, **options, isa=isa)
    got = layer.codes(x["x"], x["x_scale"], x.get("x_zero"), threads)
    assert same_bytes(got, want), (isa, x["x"].shape, w["packed"].shape, options)


@needs_cpu
@pytest.mark.parametrize("isa", ISAS)
@SIGNS
@pytest.mark.parametrize(
    ("k", "group_size"), [(1, None), (7, None), (131, None), (32, 32), (64, 32), (192, 64), (384, 128)]
)
def test_tails(isa: str, signed: bool, k: int, group_size: int | None) -> None:
    """Odd sizes; zero points of rows with int8 codes or uint8 ones, and of weights one a group."""
    for m in (1, 2, 3, 4, 5, 6, 7, 12, 13, 16, 17, 63):
        for n in (1, 16, 17, 31, 50):
            x = rows(m, k, m % 2 == 0, 8, zeros=True, seed=m + n)
            w = weights(n, k, group_size, signed, 4, "each", m * n)
            check(x, w, isa, 1 + m % 3, group_size=group_size, signed=signed, bits=4)


@needs_cpu
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(("k", "group_size"), [(45, None), (96, 32), (1100, None), (1280, 128)])
def test_bits_and_zero_points(isa: str, bits: int, k: int, group_size: int | None) -> None:
    """Each way of correcting for zero points, at few rows and at many, in K that is multiplied part by part."""
    for m in (1, 6, 20, 130):
        for zeros in ("none", "one", "each"):
            for row_zeros in (False, True):
                x = rows(m, k, True, 8, row_zeros, seed=m)
                w = weights(35, k, group_size, bits != 3, bits, zeros, bits)
                check(x, w, isa, 1 + m % 2, group_size=group_size, signed=bits != 3, bits=bits)


@needs_cpu
@pytest.mark.parametrize("isa", ISAS)
@SIGNS
@pytest.mark.parametrize("group_size", [None, 32, 128])
def test_codes_at_the_ends(isa: str, signed: bool, group_size: int | None) -> None:
    """Where 16-bit sums would saturate: all codes at an end, zero points at the other."""
    low, high = ends(4, signed)
    groups = 512 // (group_size or 512)
    for code, zero in ((low, high - 1), (high - 1, low), (low, low)):
        for x_code, x_zero in ((0, 255), (255, 0), (128, 0)):
            w = {
                "packed": pack(torch.full((17, 512), code), 4),
                "scale": torch.full((17, groups), 0.37),
                "zero_point": torch.full((17, groups), zero, dtype=torch.int32),
            }
            for m in (1, 9):
                x = {
                    "x": torch.full((m, 512), x_code, dtype=torch.uint8),
                    "x_scale": torch.full((m,), 0.91),
                    "x_zero": torch.full((m,), x_zero, dtype=torch.int32),
                }
                check(x, w, isa, 1, group_size=group_size, signed=signed, bits=4)


@needs_cpu
@pytest.mark.parametrize("isa", ISAS)
def test_zero_points_that_leave_16_bits(isa: str) -> None:
    """Far from their codes, but within what int32 sums hold."""
    for m in (1, 9):
        x, w = rows(m, 128, True, 8, True, seed=m), weights(17, 128, 64, True, 4, "each", 1)
        x["x_zero"][0] = 70000
        check(x, w, isa, 1, group_size=64, signed=True, bits=4)
        x["x_zero"][0], w["zero_point"][3] = 100, 40000
        check(x, w, isa, 1, group_size=64, signed=True, bits=4)


@needs_cpu
@pytest.mark.parametrize("isa", ISAS)
def test_many_channels(isa: str) -> None:
    """More channels than are written at once, at every way of taking rows; zero points that fit a byte and that do not."""
    for m, k, group_size in ((1, 64, 32), (5, 128, 64), (20, 96, 32), (64, 640, 128), (100, 1100, None)):
        for zero in (3, 104, -30000):
            x, w = rows(m, k, True, 8, False, seed=m), weights(301, k, group_size, True, 4, "one", k)
            w["zero_point"].fill_(zero)
            check(x, w, isa, 1 + m % 2, group_size=group_size, signed=True, bits=4)


@needs_cpu
@pytest.mark.parametrize("isa", ISAS)
def test_the_longest_row(isa: str) -> None:
    """The sum of the longest row that is allowed nearly fills int32; bare codes alone would leave it."""
    k = 561_433
    w = {"packed": pack(torch.full((1, k), 15), 4), "scale": torch.ones(1, 1)}
    x = {"x": torch.full((7, k), 255, dtype=torch.uint8), "x_scale": torch.ones(7)}
    layer = PackedW4(w["packed"], w["scale"], None, k, None, False, 4, isa)
    for m in (1, 7):
        got = layer.codes(x["x"][:m], x["x_scale"][:m], None, 1)
        assert got.tolist() == [[float(torch.tensor(k * 255 * 15).float())]] * m
    with pytest.raises(ShapeError, match="at most K=561433"):
        gemm_w4(torch.zeros(1, k + 1, dtype=torch.uint8), torch.zeros(1, -(-k // 8), dtype=torch.int32),
                torch.ones(1, 1), torch.ones(1))  # fmt: skip


def by_hand(
    x: dict[str, Tensor], w: dict[str, Tensor], signed: bool, group_size: int | None, bits: int
) -> Tensor:
    """The formula in float64, codes read bit by bit."""
    k = x["x"].shape[1]
    stream = torch.stack([(w["packed"].long() >> i) & 1 for i in range(32)], dim=2).flatten(1)[:, : k * bits]
    codes = (stream.reshape(-1, k, bits) * (1 << torch.arange(bits))).sum(2)
    codes = torch.where(codes >= 1 << (bits - 1), codes - (1 << bits), codes) if signed else codes
    size = group_size or k
    weight = (codes.double() - w["zero_point"].repeat_interleave(size, 1)) * w[
        "scale"
    ].double().repeat_interleave(size, 1)
    return (x["x"].double() - x["x_zero"].double()[:, None]) * x["x_scale"].double()[:, None] @ weight.T


@SIGNS
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(("k", "group_size"), [(131, None), (192, 64)])
def test_the_reference_is_the_formula(signed: bool, bits: int, k: int, group_size: int | None) -> None:
    x = rows(5, k, False, 8, zeros=True, seed=3)
    w = weights(9, k, group_size, signed, bits, "each", 4)
    got = gemm_w4(**x, **w, group_size=group_size, signed=signed, bits=bits, backend="reference").double()
    # Each group adds two roundings, the row's scale one: relative to the sum of the groups' magnitudes.
    size = group_size or k
    centred = (x["x"].double() - x["x_zero"].double()[:, None]).abs() * x["x_scale"].double()[:, None]
    bound = centred @ (16 * w["scale"].double().repeat_interleave(size, 1)).T * (2 * (k // size) + 2) * 2**-24
    assert bool(((got - by_hand(x, w, signed, group_size, bits)).abs() <= bound).all())


@needs_cpu
def test_auto_and_defaults() -> None:
    x, w = rows(3, 64, True, 8, zeros=False, seed=1), weights(20, 64, 32, True, 4, "none", 2)
    want = gemm_w4(**x, **w, group_size=32, backend="reference")
    assert same_bytes(gemm_w4(**x, **w, group_size=32), want)


@needs_cpu
def test_weights_are_packed_once_and_again_when_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    init = PackedW4.__init__
    monkeypatch.setattr(PackedW4, "__init__", lambda self, *args: (made.append(1), init(self, *args))[1])
    x, w = rows(3, 64, True, 8, zeros=False, seed=1), weights(20, 64, 32, True, 4, "none", 2)
    first = gemm_w4(**x, **w, group_size=32)
    assert same_bytes(gemm_w4(**x, **w, group_size=32), first) and len(made) == 1
    for name in ("scale", "packed"):
        w[name].copy_(w[name].flip(0))
        got = gemm_w4(**x, **w, group_size=32)
        assert same_bytes(got, gemm_w4(**x, **w, group_size=32, backend="reference"))
    assert len(made) == 3


@needs_cpu
@pytest.mark.parametrize("isa", ISAS)
@SIGNS
@pytest.mark.parametrize(("k", "group_size"), [(7, None), (131, None), (128, 64)])
def test_packed_activations(isa: str, signed: bool, k: int, group_size: int | None) -> None:
    for m in (1, 3, 17):
        x = rows(m, k, signed, 4, m != 3, seed=m)
        words, zero = pack(x["x"].int(), 4), x.get("x_zero")
        w = weights(21, k, group_size, True, 4, "each", 5)
        want = gemm_w4(**x, **w, group_size=group_size, backend="reference")
        layer = PackedW4(w["packed"], w["scale"], w["zero_point"], k, group_size, True, 4, isa)
        assert same_bytes(layer.words(words, x["x_scale"], zero, signed, threads=1 + m % 2), want)
        options = {"length": k, "x_zero": zero, "x_signed": signed, "group_size": group_size}
        for backend in ("auto", "reference"):
            assert same_bytes(gemm_w4a4(words, x_scale=x["x_scale"], **w, **options, backend=backend), want)


def test_opcheck() -> None:
    x, w = rows(3, 64, False, 4, zeros=True, seed=1), weights(20, 64, 32, True, 3, "each", 2)
    tensors = [x["x"], w["packed"], w["scale"], x["x_scale"], x["x_zero"], w["zero_point"]]
    torch.library.opcheck(torch.ops.pyquant.gemm_w4.default, (*tensors, 32, True, 3))
    words = pack(x["x"].int(), 4)
    tensors = [words, w["packed"], w["scale"], x["x_scale"], 64, x["x_zero"], False, w["zero_point"]]
    torch.library.opcheck(torch.ops.pyquant.gemm_w4a4.default, (*tensors, 32, True, 3))


def test_bad_input() -> None:
    t = {**rows(3, 96, False, 8, zeros=True, seed=1), **weights(20, 96, None, True, 4, "each", 2)}
    with pytest.raises(ShapeError, match=r"group_size=64 does not suit K=96"):
        gemm_w4(**t, group_size=64)
    with pytest.raises(ShapeError, match=r"scale is \[20, 1\]; gemm_w4 takes \[20, 3\]"):
        gemm_w4(**t, group_size=32)
    with pytest.raises(ShapeError, match=r"zero_point is \[20\]"):
        gemm_w4(**{**t, "zero_point": t["zero_point"][:, 0]})
    with pytest.raises(ShapeError, match="K=96 codes of 4 bits take 12"):
        gemm_w4(**{**t, "packed": t["packed"][:, :5]})
    with pytest.raises(ShapeError, match="K=96 codes of 3 bits take 9"):
        gemm_w4(**t, bits=3)
    with pytest.raises(GridError, match="bits=5; gemm_w4 takes weights of 2, 3 or 4 bits"):
        gemm_w4(**t, bits=5)
    with pytest.raises(ShapeError, match="one a row"):
        gemm_w4(**{**t, "x_scale": torch.ones(2)})
    with pytest.raises(ShapeError, match=r"x_zero is \[2\]"):
        gemm_w4(**{**t, "x_zero": t["x_zero"][:2]})
    with pytest.raises(ShapeError, match=r"\[M, K\]"):
        gemm_w4(**{**t, "x": t["x"][:0]})
    with pytest.raises(ShapeError, match=r"packed \[N"):
        gemm_w4(**{**t, "packed": t["packed"][:0]})
    with pytest.raises(DTypeError, match="uint8 or int8"):
        gemm_w4(**{**t, "x": t["x"].float()})
    with pytest.raises(DTypeError, match=r"zero_point is torch.int64"):
        gemm_w4(**{**t, "zero_point": t["zero_point"].long()})
    with pytest.raises(ShapeError, match=r"gemm_w4a4 takes \[M, 12\] words for length=96"):
        gemm_w4a4(torch.zeros(3, 11, dtype=torch.int32), t["packed"], t["scale"], t["x_scale"], length=96)
    with pytest.raises(DTypeError, match=r"x is torch\.uint8"):
        gemm_w4a4(t["x"], t["packed"], t["scale"], t["x_scale"], length=96)
