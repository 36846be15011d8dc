"""The emulator's integer instructions against Python's integers, on the values where they go wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from tests.gpu.emulator import EmulatorError
from tests.gpu.snippets import each

_EDGES = {
    "s32": [0, 1, -1, 2, -2, 7, 31, 32, 33, 255, -128, 65535, 2**31 - 1, -(2**31), 123456789, -987654321],
    "u32": [0, 1, 2, 7, 31, 32, 33, 255, 256, 65535, 2**31, 2**32 - 1, 123456789, 0xDEADBEEF],
    "s16": [0, 1, -1, 127, -128, 32767, -32768],
    "s64": [0, 1, -1, 2**31, -(2**31), 2**63 - 1, -(2**63), 0x123456789ABCDEF],
    "u64": [0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1],
}
_TYPES = {"s32": np.int32, "u32": np.uint32, "s16": np.int16, "s64": np.int64, "u64": np.uint64}
_REGISTERS = {"s32": "%r", "u32": "%r", "s16": "%h", "s64": "%d", "u64": "%d"}


def wrap(value: int, kind: str) -> int:
    """A Python integer as the type holds it."""
    width = int(kind[1:])
    value &= (1 << width) - 1
    return value - (1 << width) if kind[0] == "s" and value >> (width - 1) else value


def quotient(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


_TWO: list[tuple[str, str, Callable[[int, int], int]]] = [
    ("add", "s32", lambda a, b: a + b),
    ("add", "s16", lambda a, b: a + b),
    ("sub", "u64", lambda a, b: a - b),
    ("mul.lo", "s32", lambda a, b: a * b),
    ("mul.lo", "s64", lambda a, b: a * b),
    ("mul.hi", "s32", lambda a, b: a * b >> 32),
    ("mul.hi", "u32", lambda a, b: a * b >> 32),
    ("mul.hi", "u64", lambda a, b: a * b >> 64),
    ("mul.hi", "s64", lambda a, b: a * b >> 64),
    ("min", "s32", min),
    ("min", "u32", min),
    ("max", "s32", max),
    ("max", "u32", max),
    ("and", "u32", lambda a, b: a & b),
    ("or", "u64", lambda a, b: a | b),
    ("xor", "u32", lambda a, b: a ^ b),
    ("div", "s32", quotient),
    ("div", "u32", quotient),
    ("div", "s64", quotient),
    ("rem", "s32", lambda a, b: a - quotient(a, b) * b),
    ("rem", "u64", lambda a, b: a - quotient(a, b) * b),
]


@pytest.mark.parametrize(("op", "kind", "expected"), _TWO, ids=[f"{op}.{kind}" for op, kind, _ in _TWO])
def test_two_operands(op: str, kind: str, expected: Callable[[int, int], int]) -> None:
    pairs = [
        (a, b) for a, b in itertools.product(_EDGES[kind], repeat=2) if b or not op.startswith(("div", "rem"))
    ]
    a, b = (np.array(side, _TYPES[kind]) for side in zip(*pairs, strict=True))
    register = _REGISTERS[kind]
    suffix = f"b{kind[1:]}" if op in ("and", "or", "xor") else kind
    result = each(f"{op}.{suffix} {register}0, {register}1, {register}2;", [a, b], _TYPES[kind])
    assert result.tolist() == [wrap(expected(x, y), kind) for x, y in pairs]


_DISTANCES = [0, 1, 5, 15, 31, 32, 33, 200, 2**32 - 1]


@pytest.mark.parametrize(
    ("op", "kind", "expected"),
    [
        ("shl.b32", "u32", lambda a, n: a << min(n, 64)),
        ("shr.u32", "u32", lambda a, n: a >> min(n, 64)),
        ("shr.s32", "s32", lambda a, n: a >> min(n, 64)),
        ("shr.s16", "s16", lambda a, n: a >> min(n, 64)),
        ("shr.s64", "s64", lambda a, n: a >> min(n, 64)),
        ("shl.b64", "u64", lambda a, n: a << min(n, 64)),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
def test_shifts_by_any_distance(op: str, kind: str, expected: Callable[[int, int], int]) -> None:
    pairs = list(itertools.product(_EDGES[kind], _DISTANCES))
    a = np.array([x for x, _ in pairs], _TYPES[kind])
    by = np.array([n for _, n in pairs], np.uint32)
    register = _REGISTERS[kind]
    result = each(f"{op} {register}0, {register}1, {'%r2'};", [a, by], _TYPES[kind])
    assert result.tolist() == [wrap(expected(x, n), kind) for x, n in pairs]
    if op == "shr.s32":
        fixed = each("shr.s32 %r0, %r1, 5;", [a], np.int32)
        assert fixed.tolist() == [x >> 5 for x, _ in pairs]


def test_products_with_a_sum() -> None:
    values = list(itertools.product(_EDGES["s32"], [-3, 2**31 - 1], [5, -(2**31)]))
    a, b, c = (np.array(side, np.int32) for side in zip(*values, strict=True))
    low = each("mad.lo.s32 %r0, %r1, %r2, %r3;", [a, b, c], np.int32)
    assert low.tolist() == [wrap(x * y + z, "s32") for x, y, z in values]
    wide = each("cvt.s64.s32 %d3, %r3;\nmad.wide.s32 %d0, %r1, %r2, %d3;", [a, b, c], np.int64)
    assert wide.tolist() == [x * y + z for x, y, z in values]
    unsigned = each("mul.wide.u32 %d0, %r1, %r2;", [a, b], np.uint64)
    assert unsigned.tolist() == [(x & 0xFFFFFFFF) * (y & 0xFFFFFFFF) for x, y, _ in values]


def test_lop3_by_its_table() -> None:
    a, b, c = (np.array([code], np.uint32) for code in (0xF0F01234, 0xCCCC5678, 0xAAAA9ABC))
    for table in (0x00, 0x80, 0xEA, 0x6A, 0x96, 0xF8, 0xFF):
        expected = 0
        for bit in range(32):
            row = (int(a[0]) >> bit & 1) << 2 | (int(b[0]) >> bit & 1) << 1 | (int(c[0]) >> bit & 1)
            expected |= (table >> row & 1) << bit
        assert each(f"lop3.b32 %r0, %r1, %r2, %r3, {table};", [a, b, c], np.uint32)[0] == expected


def test_prmt_picks_bytes_and_signs() -> None:
    a, b = np.array([0x83726150], np.uint32), np.array([0xF7E6D5C4], np.uint32)
    pool = [0x50, 0x61, 0x72, 0x83, 0xC4, 0xD5, 0xE6, 0xF7]
    for selector in (0x3210, 0x7654, 0x5140, 0xFB93, 0x0A2C):
        expected = 0
        for i in range(4):
            pick = selector >> 4 * i & 15
            byte = pool[pick & 7] if pick < 8 else (0xFF if pool[pick & 7] & 0x80 else 0)
            expected |= byte << 8 * i
        assert each(f"prmt.b32 %r0, %r1, %r2, {selector:#x};", [a, b], np.uint32)[0] == expected


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_bfe_fields(kind: str) -> None:
    width = int(kind[1:])
    values = list(
        itertools.product(_EDGES[kind], [0, 1, 8, width - 4, width - 1, width, 255], [0, 1, 4, 8, width, 255])
    )
    a = np.array([x for x, _, _ in values], _TYPES[kind])
    start, length = (np.array([v[i] for v in values], np.uint32) for i in (1, 2))
    register = _REGISTERS[kind]
    result = each(f"bfe.{kind} {register}0, {register}1, %r2, %r3;", [a, start, length], _TYPES[kind])

    def field(x: int, first: int, count: int) -> int:
        code = [(x & (2**width - 1)) >> i & 1 for i in range(width)]
        sign = code[min(first + count - 1, width - 1)] if kind[0] == "s" and count else 0
        chosen = [code[first + i] if i < count and first + i < width else sign for i in range(width)]
        return wrap(sum(bit << i for i, bit in enumerate(chosen)), kind)

    assert result.tolist() == [field(*v) for v in values]


def test_bfi_puts_a_field() -> None:
    values = list(itertools.product([0x12345678, 0xFFFFFFFF], [0, 0xA5A5A5A5], [0, 8, 28], [0, 4, 8, 32]))
    columns = [np.array(side, np.uint32) for side in zip(*values, strict=True)]
    result = each("bfi.b32 %r0, %r1, %r2, %r3, %r4;", columns, np.uint32)

    def put(a: int, b: int, first: int, count: int) -> int:
        mask = ((1 << count) - 1) << first & 0xFFFFFFFF
        return b & ~mask | a << first & mask

    assert result.tolist() == [put(*v) for v in values]


def test_funnel_shift_and_counts() -> None:
    low, high = np.array([0x89ABCDEF], np.uint32), np.array([0x01234567], np.uint32)
    pair = 0x0123456789ABCDEF
    for by in (0, 4, 31, 36):
        wrapped = by % 32
        by_array = np.array([by], np.uint32)
        left = each("shf.l.wrap.b32 %r0, %r1, %r2, %r3;", [low, high, by_array], np.uint32)
        right = each("shf.r.wrap.b32 %r0, %r1, %r2, %r3;", [low, high, by_array], np.uint32)
        clamped = each("shf.r.clamp.b32 %r0, %r1, %r2, %r3;", [low, high, by_array], np.uint32)
        assert left[0] == (pair << wrapped) >> 32 & 0xFFFFFFFF
        assert right[0] == pair >> wrapped & 0xFFFFFFFF
        assert clamped[0] == pair >> min(by, 32) & 0xFFFFFFFF
    values = np.array(_EDGES["u32"], np.uint32)
    assert each("clz.b32 %r0, %r1;", [values], np.uint32).tolist() == [
        32 - int(v).bit_length() for v in values
    ]
    assert each("popc.b32 %r0, %r1;", [values], np.uint32).tolist() == [int(v).bit_count() for v in values]


@pytest.mark.parametrize(("left", "right"), [("s32", "s32"), ("u32", "s32"), ("u32", "u32")])
def test_dp4a(left: str, right: str) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (64, 4), np.uint8) for _ in range(2))
    c = rng.integers(-1000, 1000, 64).astype(np.int32)
    forms = {"s32": np.int8, "u32": np.uint8}
    expected = (a.view(forms[left]).astype(np.int64) * b.view(forms[right]).astype(np.int64)).sum(1) + c
    words = [x.view(np.uint32).reshape(-1) for x in (a, b)]
    result = each(f"dp4a.{left}.{right} %r0, %r1, %r2, %r3;", [*words, c], np.int32)
    assert result.tolist() == expected.tolist()


def test_comparisons_select_and_join() -> None:
    values = list(itertools.product(_EDGES["s32"], repeat=2))
    a, b = (np.array(side, np.int32) for side in zip(*values, strict=True))
    forms = {
        "lt.s32": lambda x, y: x < y,
        "le.u32": lambda x, y: x & 0xFFFFFFFF <= y & 0xFFFFFFFF,
        "hi.u32": lambda x, y: x & 0xFFFFFFFF > y & 0xFFFFFFFF,
        "ne.b32": lambda x, y: x != y,
        "ge.s32": lambda x, y: x >= y,
    }
    for form, expected in forms.items():
        result = each(f"setp.{form} %q1, %r1, %r2;\nselp.b32 %r0, %r1, %r2, %q1;", [a, b], np.int32)
        assert result.tolist() == [x if expected(x, y) else y for x, y in values], form
    joined = "setp.gt.s32 %q1, %r1, 0;\nsetp.lt.and.s32 %q2|%q3, %r1, %r2, !%q1;\n"
    first = each(joined + "selp.b32 %r0, 1, 0, %q2;", [a, b], np.int32)
    second = each(joined + "selp.b32 %r0, 1, 0, %q3;", [a, b], np.int32)
    assert first.tolist() == [int(x < y and not x > 0) for x, y in values]
    assert second.tolist() == [int(x >= y and not x > 0) for x, y in values]


def test_registers_split_and_join() -> None:
    a = np.array([0x1122334455667788], np.uint64)
    assert each("mov.b64 {%r1, %r2}, %d1;\nmov.b64 %d0, {%r2, %r1};", [a], np.uint64)[0] == 0x5566778811223344
    b = np.array([0x11223344], np.uint32)
    assert each("mov.b32 {%h1, %h2}, %r1;\nmov.b32 %r0, {%h2, %h1};", [b], np.uint32)[0] == 0x33441122


def test_guards_keep_other_lanes() -> None:
    a = np.arange(32, dtype=np.int32)
    body = "mov.b32 %r0, -1;\nsetp.lt.s32 %q1, %r1, 7;\n@%q1 mov.b32 %r0, %r1;\n@!%q1 add.s32 %r0, %r1, 100;"
    assert each(body, [a], np.int32).tolist() == [x if x < 7 else x + 100 for x in range(32)]


def test_division_by_zero_is_an_error_of_running_lanes() -> None:
    a = np.arange(32, dtype=np.int32)
    guarded = "mov.b32 %r0, 0;\nsetp.ne.s32 %q1, %r1, 0;\n@%q1 div.s32 %r0, 100, %r1;"
    assert each(guarded, [a], np.int32).tolist() == [0, *(100 // x for x in range(1, 32))]
    with pytest.raises(EmulatorError, match="by zero"):
        each("div.s32 %r0, 100, %r1;", [a], np.int32)
