"""The emulator's floating point against exact rational numbers, rounded once."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch

from tests.gpu.emulator import EmulatorError
from tests.gpu.snippets import each

_RNG = np.random.default_rng(3)
_EDGES32 = np.array(
    [0.0, -0.0, 1.0, -1.5, 3.4e38, 1.2e-38, 1e-45, -7e-42, np.inf, -np.inf, np.nan, 1 / 3], np.float32
)


def neighbours(kind: str) -> np.ndarray:
    """Every finite number of a 16-bit type, in order, as float64."""
    codes = np.arange(2**16, dtype=np.uint16)
    values = codes.view(np.float16) if kind == "f16" else (codes.astype(np.uint32) << 16).view(np.float32)
    finite = values[np.isfinite(values)].astype(np.float64)
    return np.unique(finite)


def nearest32(exact: Fraction) -> np.float32:
    """An exact number rounded to float32: of its neighbours the nearer one, of two the even one."""
    guess = np.float32(float(exact))
    choices = [np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf))]
    return min(choices, key=lambda c: (abs(Fraction(float(c)) - exact), int(c.view(np.uint32)) & 1))


def same(result: np.ndarray, expected: np.ndarray) -> bool:
    """Equal bytes, any NaN being any other."""
    codes = f"u{result.dtype.itemsize}"
    nan = np.isnan(result) & np.isnan(expected)
    return bool((nan | (result.view(codes) == expected.view(codes))).all())


def test_fma_rounds_once() -> None:
    a = _RNG.standard_normal(300).astype(np.float32)
    b = _RNG.standard_normal(300).astype(np.float32)
    near = -(a * b)
    # (1 + 2^-15)(1 - 2^-15) 2^-24 falls short of half a step of 1 + 2^-23 by 2^-54, which float64 does not see.
    short = np.float32(1 - 2.0**-15) * np.float32(2.0**-24) * np.array([1, -1], np.float32)
    a = np.concatenate([a, np.full(2, 1 + 2.0**-15, np.float32)])
    b = np.concatenate([b, short])
    c = np.concatenate([near, np.full(2, 1 + 2.0**-23, np.float32)])
    result = each("fma.rn.f32 %r0, %r1, %r2, %r3;", [a, b, c], np.float32)
    exact = [
        Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)) for x, y, z in zip(a, b, c, strict=True)
    ]
    assert same(result, np.array([nearest32(value) for value in exact], np.float32))
    twice = (a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(np.float32)
    assert not same(a * b + c, result), "these numbers do not tell an fma from a product and a sum"
    assert not same(twice, result), "these numbers do not tell one rounding from two"


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_fma_of_sixteen_bits_rounds_once(kind: str) -> None:
    grid = neighbours(kind)
    usable = grid[(np.abs(grid) > 1e-3) & (np.abs(grid) < 100)]
    a, b, c = (_RNG.choice(usable, 400) for _ in range(3))
    c[:200] = _RNG.choice(grid[np.abs(grid) < 1e-6], 200)  # a tail that only the exact sum remembers
    narrow = [torch.from_numpy(x).to(torch.float16 if kind == "f16" else torch.bfloat16) for x in (a, b, c)]
    codes = [x.view(torch.int16).numpy().view(np.uint16) for x in narrow]
    result = each(f"fma.rn.{kind} %h0, %h1, %h2, %h3;", codes, np.uint16)
    values = result.view(np.float16) if kind == "f16" else (result.astype(np.uint32) << 16).view(np.float32)
    for x, y, z, got in zip(a, b, c, values.astype(np.float64), strict=True):
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        at = int(np.searchsorted(grid, float(exact)))
        around = grid[max(at - 2, 0) : at + 2]
        best = min(abs(Fraction(v) - exact) for v in around)
        assert abs(Fraction(got) - exact) == best, (x, y, z, got)


@pytest.mark.parametrize("op", ["add", "sub", "mul", "div.rn", "add.rn"])
def test_single_operations(op: str) -> None:
    pairs = list(itertools.product(_EDGES32, repeat=2))
    a, b = (np.array(side, np.float32) for side in zip(*pairs, strict=True))
    a, b = (np.concatenate([x, _RNG.standard_normal(100).astype(np.float32)]) for x in (a, b))
    numpy_op = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[
        op.split(".", maxsplit=1)[0]
    ]
    with np.errstate(all="ignore"):
        expected = numpy_op(a, b)
    assert same(each(f"{op}.f32 %r0, %r1, %r2;", [a, b], np.float32), expected)


def test_minimum_and_maximum_know_zeros_and_nan() -> None:
    nan = np.nan
    a = np.array([0.0, -0.0, nan, 1.0, nan, -1.0, np.inf], np.float32)
    b = np.array([-0.0, 0.0, 2.0, nan, nan, 1.0, 5.0], np.float32)
    least = np.array([-0.0, -0.0, 2.0, 1.0, nan, -1.0, 5.0], np.float32)
    greatest = np.array([0.0, 0.0, 2.0, 1.0, nan, 1.0, np.inf], np.float32)
    assert same(each("min.f32 %r0, %r1, %r2;", [a, b], np.float32), least)
    assert same(each("max.f32 %r0, %r1, %r2;", [a, b], np.float32), greatest)


def test_packed_pairs() -> None:
    a, b = (_RNG.standard_normal(256).astype(np.float16) for _ in range(2))
    words = [x.view(np.uint32) for x in (a, b)]
    for op, function in (("add", np.add), ("mul", np.multiply), ("sub", np.subtract), ("max", np.maximum)):
        modifier = "" if op == "max" else ".rn"
        result = each(f"{op}{modifier}.f16x2 %r0, %r1, %r2;", words, np.uint32)
        assert same(result.view(np.float16), function(a, b)), op
    negated = each("neg.f16x2 %r0, %r1;", words[:1], np.uint32)
    assert same(negated.view(np.float16), -a)


def test_narrowing_conversions() -> None:
    x = np.concatenate([_EDGES32, _RNG.standard_normal(200).astype(np.float32)])
    ties = (np.arange(0x3F80, 0x3FC0, dtype=np.uint32) << 16 | 0x8000).view(np.float32)
    x = np.concatenate([x, ties, ties * np.float32(2.0**-10)])
    brain = torch.from_numpy(x).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    got = each("cvt.rn.bf16.f32 %h0, %r1;", [x], np.uint16)
    numbers = ~np.isnan(x)
    assert (got[numbers] == brain[numbers]).all()
    cut = each("cvt.rz.bf16.f32 %h0, %r1;", [x], np.uint16)
    assert (cut[numbers] == (x.view(np.uint32) >> 16).astype(np.uint16)[numbers]).all()
    with np.errstate(over="ignore"):
        half = x.astype(np.float16)
    assert same(each("cvt.rn.f16.f32 %h0, %r1;", [x], np.float16), half)
    assert same(each("cvt.f32.f16 %r0, %h1;", [half], np.float32), half.astype(np.float32))
    pair = each("mov.b32 %r2, 0f40000000;\ncvt.rn.f16x2.f32 %r0, %r1, %r2;", [x], np.uint32)
    assert same((pair >> 16).astype(np.uint16).view(np.float16), half), "the first operand is the high half"
    assert ((pair & 0xFFFF) == 0x4000).all()


@pytest.mark.parametrize(
    ("rounding", "function"), [("rni", np.rint), ("rzi", np.trunc), ("rmi", np.floor), ("rpi", np.ceil)]
)
def test_rounding_to_integers(rounding: str, function: np.ufunc) -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 2.4999998, -2.7, 1e6 + 0.5, 127.5, -128.5], np.float32)
    assert same(each(f"cvt.{rounding}.f32.f32 %r0, %r1;", [x], np.float32), function(x))
    assert (
        each(f"cvt.{rounding}.s32.f32 %r0, %r1;", [x], np.int32).tolist()
        == function(x).astype(np.int32).tolist()
    )


def test_float_to_integer_saturates() -> None:
    x = np.array(
        [1e20, -1e20, np.inf, -np.inf, np.nan, 2147483648.0, -2147483648.0, 2147483520.0], np.float32
    )
    top, bottom = 2**31 - 1, -(2**31)
    expected = [top, bottom, top, bottom, 0, top, bottom, 2147483520]
    assert each("cvt.rni.s32.f32 %r0, %r1;", [x], np.int32).tolist() == expected
    assert each("cvt.rzi.u32.f32 %r0, %r1;", [x], np.uint32).tolist()[:5] == [2**32 - 1, 0, 2**32 - 1, 0, 0]


def test_integer_conversions() -> None:
    x = np.array([0, 1, -1, 127, 128, 300, -129, 2**31 - 1, -(2**31), 16777217, 16777219], np.int32)
    assert each("cvt.sat.s8.s32 %r0, %r1;", [x], np.int32).tolist() == np.clip(x, -128, 127).tolist()
    assert each("cvt.s8.s32 %r0, %r1;", [x], np.int32).tolist() == x.astype(np.int8).tolist()
    assert each("cvt.u8.u32 %r0, %r1;", [x], np.uint32).tolist() == (x & 255).tolist()
    exact = [nearest32(Fraction(int(value))) for value in x]
    assert same(each("cvt.rn.f32.s32 %r0, %r1;", [x], np.float32), np.array(exact, np.float32))
    assert (
        each("cvt.u64.u32 %d0, %r1;", [x], np.uint64).tolist() == (x.astype(np.int64) & 0xFFFFFFFF).tolist()
    )
    assert each("cvt.s64.s32 %d0, %r1;", [x], np.int64).tolist() == x.tolist()


def test_unordered_comparisons() -> None:
    a, b = np.array([1, np.nan, 2], np.float32), np.array([2, 1, np.nan], np.float32)
    for form, expected in {
        "lt": [1, 0, 0],
        "ltu": [1, 1, 1],
        "ne": [1, 0, 0],
        "neu": [1, 1, 1],
        "num": [1, 0, 0],
        "nan": [0, 1, 1],
        "geu": [0, 1, 1],
    }.items():
        result = each(f"setp.{form}.f32 %q1, %r1, %r2;\nselp.b32 %r0, 1, 0, %q1;", [a, b], np.int32)
        assert result.tolist() == expected, form


@pytest.mark.parametrize(
    ("op", "ulps"), [("div.full", 2), ("div.approx", 2), ("rcp.approx", 1), ("ex2.approx", 2)]
)
def test_approximations_err_within_their_bound(op: str, ulps: int) -> None:
    a = _RNG.uniform(0.1, 9, 2000).astype(np.float32)
    b = _RNG.uniform(0.1, 9, 2000).astype(np.float32)
    one = op.startswith(("rcp", "ex2"))
    source = [a] if one else [a, b]
    names = ", ".join(f"%r{i}" for i in range(len(source) + 1))
    exact = {
        "d": lambda: a.astype(np.float64) / b,
        "r": lambda: 1 / a.astype(np.float64),
        "e": lambda: np.exp2(a.astype(np.float64)),
    }
    correct = exact[op[0]]().astype(np.float32)
    results = [each(f"{op}.f32 {names};", source, np.float32, seed=seed) for seed in (1, 2)]
    for result in results:
        off = result.view(np.int32) - correct.view(np.int32)
        assert sorted(set(off.tolist())) == list(range(-ulps, ulps + 1))
    assert not same(*results)


def test_flush_to_zero_only_where_written() -> None:
    tiny = np.array([1e-40, -1e-40, 1.0], np.float32)
    one = np.ones(3, np.float32)
    assert same(each("mul.f32 %r0, %r1, %r2;", [tiny, one], np.float32), tiny)
    flushed = np.array([0.0, -0.0, 1.0], np.float32)
    assert same(each("mul.ftz.f32 %r0, %r1, %r2;", [tiny, one], np.float32), flushed)


@pytest.mark.parametrize(
    "body",
    [
        "add.rz.f32 %r0, %r1, %r1;",
        "div.f32 %r0, %r1, %r1;",
        "cvt.f16.f32 %h0, %r1;",
        "cvt.s32.f32 %r0, %r1;",
        "mul.s32 %r0, %r1, %r1;",
        "ex2.f32 %r0, %r1;",
        "tanh.approx.f32 %r0, %r1;",
        "add.f32 %r0, %r1, %h1;",
        "add.f32 %r0, %r1;",
    ],
)
def test_unknown_forms_are_refused(body: str) -> None:
    with pytest.raises(EmulatorError, match="line"):
        each(body.replace("%h1;", "%h5;"), [np.ones(4, np.float32)], np.float32)
