"""The faults that are put into kernels, and how they are judged."""

from __future__ import annotations

import numpy as np
import pytest

from tests.gpu.emulator import EmulatorError, Report, run
from tests.gpu.emulator.mutate import ALWAYS, FAULTS, Mutant, Outcome, Trial, judge, propose, sample
from tests.gpu.snippets import program

MMA = "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%d0, %d1}, {%a0, %a0}, {%b0, %b1}, {%c0, %c0}"


@pytest.mark.parametrize(
    ("kind", "text", "after"),
    [
        ("barrier dropped", "bar.sync 0", [""]),
        ("wait too short", "cp.async.wait_group 2", ["cp.async.wait_group 3"]),
        ("fragment registers swapped", MMA, [MMA.replace("%d0, %d1", "%d1, %d0"), MMA.replace("%b0, %b1", "%b1, %b0")]),
        ("sign lost", MMA, [MMA.replace(".s32.s8.s8", ".s32.u8.s8"), MMA.replace(".s32.s8.s8", ".s32.s8.u8")]),
        ("sign lost", "shr.s32 %r1, %r2, 3", ["shr.u32 %r1, %r2, 3"]),
        ("sign lost", "cvt.rn.f32.s32 %f1, %r2", ["cvt.rn.f32.u32 %f1, %r2"]),
        ("bound shifted", "setp.ge.s32 %p1, %r1, %r2", ["setp.gt.s32 %p1, %r1, %r2"]),
        ("bound shifted", "setp.ge.f32 %p1, %f1, %f2", []),
        ("address off by one", "ld.shared.v2.u16 {%h1, %h2}, [%r1+8]", ["ld.shared.v2.u16 {%h1, %h2}, [%r1+12]"]),
        ("address off by one", "ld.param.u32 %r1, [size]", []),
        ("guard dropped", "@!%p1 st.global.f32 [%d1], %f1", ["st.global.f32 [%d1], %f1"]),
        ("guard dropped", "@%p1 bra DONE", []),
        ("clamp turned round", "min.s32 %r1, %r1, 255", ["max.s32 %r1, %r1, 255"]),
        ("rounding lost", "cvt.rni.f32.f32 %f1, %f2", ["cvt.rzi.f32.f32 %f1, %f2"]),
    ],
)  # fmt: skip
def test_faults(kind: str, text: str, after: list[str]) -> None:
    op = text.split()[1 if text.startswith("@") else 0]
    assert list(FAULTS[kind](text, op)) == after


def test_a_mutant_knows_its_line() -> None:
    mutant = Mutant("bound shifted", 2, "setp.lt.s32 %p1, 1, 2", "setp.le.s32 %p1, 1, 2")
    text = "one;\n\tsetp.lt.s32 \t%p1, 1, 2; // said\nthree;"
    assert mutant.apply(text) == "one;\nsetp.le.s32 %p1, 1, 2;\nthree;"
    with pytest.raises(EmulatorError, match="line 2 does not hold"):
        mutant.apply("one;\ntwo;\nthree;")


# Thread i < size stores i to place i, and i - 2 to place 16 + i, halved if it is not negative, and then to place 32 + i too.
BODY = """ld.param.u32 %r1, [size];
mov.u32 %r2, %tid.x;
setp.ge.s32 %q0, %r2, %r1;
@%q0 bra DONE;
mad.wide.u32 %d0, %r2, 4, %at0;
st.global.b32 [%d0], %r2;
sub.s32 %r3, %r2, 2;
setp.gt.s32 %q1, %r3, -1;
@!%q1 bra KEPT;
shr.s32 %r3, %r3, 1;
KEPT:
st.global.b32 [%d0+64], %r3;
@%q1 st.global.b32 [%d0+128], %r3;
DONE:"""
TEXT = program(BODY, 1).replace(".param .u64 p0", ".param .u64 p0, .param .u32 size")


def check(text: str, size: int) -> Report:
    out = np.full(48, 77, np.int32)
    report = run(text, "snippet", 1, 32, [out, size])
    want = np.full((3, 16), 77)
    index = np.arange(size)
    want[0, :size] = index
    want[1, :size] = np.where(index < 2, index - 2, (index - 2) // 2)
    want[2, 2:size] = want[1, 2:size]
    assert (out.reshape(3, 16) == want).all()
    return report


class Tries:
    """A trial of one size, and the texts it was asked to run."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.texts: list[str] = []
        self.trial = Trial(self.run, check(TEXT, size))

    def run(self, text: str) -> None:
        self.texts.append(text)
        check(text, self.size)


def found(kind: str) -> list[Mutant]:
    return propose(TEXT, "snippet", lambda instruction: True)[kind]


def test_mutants_are_judged() -> None:
    bounds, guards = found("bound shifted"), found("guard dropped")
    shifts = found("sign lost")
    assert [len(bounds), len(guards), len(shifts)] == [2, 1, 1]
    tries = Tries(9)
    outcome = judge(TEXT, [*bounds, *guards, *shifts], [tries.trial])
    # What is halved is never negative: an idle fault.
    assert outcome == Outcome(4, [], shifts)
    assert (outcome.rate, str(outcome)) == (
        1.0,
        "3 of 3 mutants caught, 0 more proven to change nothing, 1 idle",
    )
    # One thread is far from the second bound. The guard that it never meets is seen all the same.
    outcome = judge(TEXT, [*bounds, *guards], [Tries(1).trial])
    assert outcome == Outcome(3, [bounds[1]], [])
    assert str(outcome) == f"2 of 3 mutants caught, 0 more proven to change nothing, 0 idle\n  {bounds[1]}"


def test_shifts_of_what_is_never_negative_are_told_from_others() -> None:
    body = """mov.u32 %r2, %tid.x;
shr.s32 %r3, %r2, 1;
sub.s32 %r4, %r3, 4;
shr.s32 %r5, %r4, 1;
shr.s32 %r6, %r2, 2;
add.s32 %r0, %r5, %r6;
mad.wide.u32 %d0, %r2, 4, %at0;
st.global.b32 [%d0], %r0;"""
    text = program(body, 1)

    def check(text: str) -> Report:
        out = np.zeros(32, np.int32)
        report = run(text, "snippet", 1, 32, [out])
        index = np.arange(32)
        assert (out == (((index >> 1) - 4) >> 1) + (index >> 2)).all()
        return report

    first, second, third = propose(text, "snippet", lambda instruction: True)["sign lost"]
    assert judge(text, [first, second, third], [Trial(check, check(text))]) == Outcome(3, [], [first, third])


def test_proofs_are_tried_too() -> None:
    bounds = found("bound shifted")
    outcome = judge(TEXT, bounds, [Tries(1).trial], lambda mutant: "so they say")
    assert outcome == Outcome(2, [], [], [bounds[1]], [bounds[0]])
    assert outcome.rate == 1


def test_trials_that_cannot_see_a_fault_are_left_out() -> None:
    """Quick ones go first; where nothing is shifted the shift is not tried, but a guard that holds it back is."""
    long, short = Tries(9), Tries(2)
    [shift] = found("sign lost")
    judge(TEXT, [shift], [long.trial, short.trial])
    assert (len(long.texts), len(short.texts)) == (1, 0)
    [guard] = found("guard dropped")
    assert judge(TEXT, [guard], [long.trial, short.trial]).survivors == []
    assert (len(long.texts), len(short.texts)) == (1, 1)


def test_samples_hold_every_barrier_and_wait() -> None:
    mutants = {
        kind: [Mutant(kind, line, "a", "b") for line in range(30)]
        for kind in (*ALWAYS, "bound shifted", "sign lost")
    }
    drawn = sample(mutants, 12, seed=1)
    assert drawn[:60] == [mutant for kind in ALWAYS for mutant in mutants[kind]]
    assert len(set(drawn[60:])) == 12 and {mutant.kind for mutant in drawn[60:]} == {
        "bound shifted",
        "sign lost",
    }
    assert drawn == sample(mutants, 12, seed=1) != sample(mutants, 12, seed=2)
