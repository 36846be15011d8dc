"""Proofs that a fault changes nothing: they hold for what they are about, and for nothing beside it."""

from __future__ import annotations

import pytest

from tests.gpu.emulator.mutate import Mutant, propose
from tests.gpu.emulator.source import read
from tests.gpu.harmless import PARAMETERS, Proofs

_MMA = "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r20, %r21, %r22, %r23}"
_HEAD = """.version 8.8
.target sm_80
.address_size 64
.visible .entry gemm_w4a8_small("""
# A lane's bytes of K left, from its chunk of four; its first column of a pair; a store of a pair for an odd n or for an even one.
_BODY = """ld.param.u32 %r1, [row_bytes];
ld.param.u32 %r2, [n];
ld.param.u32 %r3, [m];
mov.u32 %r4, %tid.x;
shl.b32 %r5, %r4, 4;
sub.s32 %r6, %r1, %r5;
setp.lt.s32 %p1, %r6, 65;
setp.lt.s32 %p2, %r6, 64;
setp.gt.s32 %p3, %r1, 0;
setp.gt.s32 %p4, %r2, 0;
shl.b32 %r7, %r4, 1;
and.b32 %r8, %r2, 1;
setp.eq.b32 %p5, %r8, 1;
mov.pred %p12, -1;
xor.pred %p13, %p5, %p12;
not.pred %p14, %p13;
@%p14 bra ODD;
setp.ge.s32 %p6, %r7, %r2;
bra DONE;
ODD:
setp.ge.s32 %p7, %r7, %r2;
setp.ge.s32 %p8, %r7, %r3;
add.s32 %r9, %r7, 1;
setp.ge.s32 %p9, %r9, %r2;
DONE:
mov.u32 %r10, 16843009;
mov.u32 %r11, 16843010;
MMA, {%r24, %r25, %r26, %r27}, {%r10, %r10}, {%r20, %r21, %r22, %r23};
MMA, {%r24, %r25, %r26, %r27}, {%r11, %r11}, {%r20, %r21, %r22, %r23};
mov.u32 %r28, 99;
mov.u32 %r20, %r28;
mov.u32 %r21, %r28;
mov.u32 %r22, 99;
mov.u32 %r23, %r22;
MMA, {%r24, %r25, %r26, %r27}, {%r13, %r12}, {%r20, %r21, %r22, %r23};
MMA, {%r24, %r25, %r26, %r27}, {%r12, %r13}, {%r20, %r21, %r22, %r23};
add.s32 %r12, %r1, 63;
shr.s32 %r13, %r12, 31;
shr.u32 %r14, %r13, 26;
add.s32 %r15, %r12, %r14;
shr.s32 %r16, %r15, 6;
shr.s32 %r17, %r15, 5;
mov.u32 %r18, 0;
LOOP:
add.s32 %r18, %r18, 1;
setp.lt.s32 %p10, %r18, %r16;
@%p10 bra LOOP;
setp.lt.s32 %p11, %r18, %r17;
ret;
}
""".replace("MMA", _MMA)
TEXT = (
    _HEAD
    + ", ".join(
        f".param .{'u32' if name in ('m', 'n', 'row_bytes') else 'u64'} {name}"
        for name in PARAMETERS["gemm_w4a8"].split()
    )
    + ")\n{\n.reg .b32 %r<32>; .reg .pred %p<16>;\n"
    + _BODY
)
PROOFS = Proofs(TEXT, "gemm_w4a8_small")


def mutants(kind: str, text: str) -> list[Mutant]:
    """All of a kind on the lines that hold a text."""
    return [one for one in propose(TEXT, "gemm_w4a8_small", lambda _: True)[kind] if text in one.before]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("%p1,", "a multiple of 16: never 65"),
        ("%p2,", None),
        ("%p3,", "K is 1 at the least"),
        ("%p4,", None),
        ("%p6,", None),  # n is even there
        ("%p7,", "n is odd"),
        ("%p8,", None),  # m may be even
        ("%p9,", None),  # the second column is odd itself
        ("%p10,", "one slab more"),
        ("%p11,", None),  # another number of slabs
    ],
)
def test_bounds(text: str, why: str | None) -> None:
    [mutant] = mutants("bound shifted", text)
    given = PROOFS.why(mutant)
    assert given is None if why is None else why in (given or "")


def test_columns_of_ones_may_change_places() -> None:
    explained = [mutant for mutant in mutants("fragment registers swapped", "{%r10") if PROOFS.why(mutant)]
    swapped = [mutant.after.replace(" ", "") for mutant in explained]
    before = mutants("fragment registers swapped", "{%r10")[0].before.replace(" ", "")
    rows = ["{%r20,%r21,%r22,%r23}", "{%r21,%r20,%r22,%r23}", "{%r20,%r21,%r23,%r22}"]
    head, tail = before.split(rows[0], 1)
    tail = tail.removesuffix(rows[0])
    assert sorted(swapped) == sorted(
        [
            *(f"{head}{row}{tail}{rows[0]}" for row in rows[1:]),
            *(f"{head}{rows[0]}{tail}{row}" for row in rows[1:]),
        ]
    )
    assert not any(map(PROOFS.why, mutants("fragment registers swapped", "{%r11")))


def test_equal_addends_may_change_places() -> None:
    """Those of the first product after they were set; its result, and what the next one adds to, may not."""
    first, second = ("{%r13, %r12}", "{%r12, %r13}")
    explained = [one.after for one in mutants("fragment registers swapped", first) if PROOFS.why(one)]
    assert len(explained) == 3 and all(text.count("{%r20, %r21, %r22, %r23}") == 1 for text in explained)
    assert all(text.index("{%r20") < text.index("{%r24") for text in explained)
    assert not any(map(PROOFS.why, mutants("fragment registers swapped", second)))
    assert not any(map(PROOFS.why, mutants("sign lost", first)))


def test_ones_have_no_sign() -> None:
    [first, second] = mutants("sign lost", "{%r10")
    assert ".u8.s8." in first.after and PROOFS.why(first) is None
    assert ".s8.u8." in second.after and PROOFS.why(second) == "the second factor is ones"
    assert not any(map(PROOFS.why, mutants("sign lost", "{%r11")))


def test_other_kinds_have_no_proof() -> None:
    [instruction] = [
        one for one in read(TEXT, "gemm_w4a8_small").instructions if one.text.startswith("setp.gt.s32 %p3")
    ]
    mutant = Mutant("guard dropped", instruction.line, instruction.text, "setp.ge.s32 %p3, %r1, 0")
    assert PROOFS.why(mutant) is None
