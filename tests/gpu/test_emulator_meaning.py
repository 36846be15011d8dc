"""What registers hold, read off the program."""

from __future__ import annotations

import pytest

from tests.gpu.emulator.meaning import Meaning
from tests.gpu.emulator.source import read
from tests.gpu.snippets import program

BODY = """ld.param.u32 %r0, [size];
mov.u32 %r1, %tid.x;
and.b32 %r2, %r1, -4;
sub.s32 %r3, %r1, %r2;
shl.b32 %r4, %r3, 4;
sub.s32 %r5, %r0, %r4;
mov.u32 %r6, %r5;
LOOP:
setp.lt.s32 %q0, %r6, 65;
add.s32 %r6, %r6, -64;
@%q0 bra LOOP;
mul.lo.s32 %r7, %r0, 6;
mul.hi.s32 %r8, %r0, 6;
selp.b32 %r9, %r0, 24, %q0;
@%q0 mov.u32 %r10, 7;
shr.u32 %r11, %r0, 1;
or.b32 %r12, %r0, 96;
and.b32 %r13, %r0, 0;"""
TEXT = program(BODY, 1).replace(".param .u64 p0", ".param .u64 p0, .param .u32 size")


def meaning(multiple: int) -> Meaning:
    return Meaning(read(TEXT, "snippet"), ("out", "length"), {"length": multiple})


@pytest.mark.parametrize(
    ("register", "depth", "text"),
    [
        ("%r0", 6, "length"),
        ("%r5", 6, "sub(length, shl(sub(tid.x, and(tid.x, -4)), 4))"),
        ("%r5", 2, "sub(length, shl(?, 4))"),
        ("%r6", 6, "?"),
        ("%r10", 6, "?"),
        ("65", 6, "65"),
    ],
)
def test_of(register: str, depth: int, text: str) -> None:
    assert meaning(1).of(register, depth) == text


def test_text() -> None:
    [compared] = [one for one in read(TEXT, "snippet").instructions if one.op.startswith("setp")]
    assert meaning(1).text(compared) == "setp.lt.s32 ?, 65"


@pytest.mark.parametrize(
    ("register", "before", "constant"),
    [
        ("%r10", "mov.u32 %r12", "5"),
        ("%r11", "mov.u32 %r12", "5"),
        ("%r10", "mov.u32 %r13", "6"),
        ("%r11", "mov.u32 %r13", "5"),
        ("%r12", "mov.u32 %r14", None),  # written where %q0 says so
        ("%r11", "mov.u32 %r15", None),  # from elsewhere too
        ("%r10", "mov.u32 %r16", None),  # added to
        ("7", "mov.u32 %r16", "7"),
    ],
)
def test_constant_before(register: str, before: str, constant: str | None) -> None:
    body = """mov.u32 %r10, 5;
mov.u32 %r11, %r10;
setp.eq.s32 %q0, %r10, 5;
mov.u32 %r12, %r10;
mov.u32 %r10, 6;
mov.u32 %r13, %r10;
@%q0 mov.u32 %r12, 3;
mov.u32 %r14, 1;
BACK:
mov.u32 %r15, 1;
add.s32 %r10, %r10, 1;
mov.u32 %r16, %r10;
@%q0 bra BACK;"""
    kernel = read(program(body, 1), "snippet")
    [number] = [i for i, one in enumerate(kernel.instructions) if one.text.startswith(before)]
    assert Meaning(kernel).constant_before(number, register) == constant


@pytest.mark.parametrize(
    ("register", "of_length", "multiple"),
    [
        ("%r1", 16, 1),
        ("%r2", 16, 4),
        ("%r12", 48, 16),
        ("%r13", 1, 0),
        ("%r4", 1, 16),
        ("%r5", 1, 1),
        ("%r5", 8, 8),
        ("%r5", 64, 16),
        ("%r6", 64, 16),  # round the loop too
        ("%r6", 8, 8),
        ("%r7", 5, 2),  # 30 times something may overflow
        ("%r7", 8, 16),
        ("%r8", 16, 1),  # the high half of a product
        ("%r9", 16, 8),
        ("%r11", 16, 1),
        ("-48", 16, 16),
        ("0", 16, 0),
    ],
)
def test_multiple(register: str, of_length: int, multiple: int) -> None:
    assert meaning(of_length).multiple(register) == multiple
