"""Launches of one kernel one after the other: each as if it were the first."""

from __future__ import annotations

import numpy as np
import pytest

from tests.gpu.emulator import EmulatorError, run
from tests.gpu.snippets import program

# p0[i] = %nctaid.x + value, which thread i wrote to word i of shared memory and another reads at byte i * stride.
BODY = """ld.param.s32 %r3, [value];
mov.u32 %r2, %tid.x;
mov.u32 %r4, %nctaid.x;
add.s32 %r4, %r4, %r3;
mov.u32 %r6, tile;
mad.lo.s32 %r7, %r2, 4, %r6;
st.shared.b32 [%r7], %r4;
bar.sync 0;
ld.param.s32 %r8, [stride];
mad.lo.s32 %r7, %r2, %r8, %r6;
ld.shared.b32 %r0, [%r7];
mad.wide.u32 %d0, %r2, 4, %at0;
st.global.b32 [%d0], %r0;"""
TEXT = program(BODY, 1, 4096).replace(
    ".param .u64 p0", ".param .u64 p0, .param .s32 value, .param .s32 stride"
)


def test_a_launch_has_its_own_arguments_grid_and_meters() -> None:
    for grid, value, stride, ways in [(1, 5, 4, 1), (3, -9, 0, 1), (1, 40, 8, 2), (2, 5, 4, 1)]:
        out = np.zeros(64, np.int32)
        report = run(TEXT, "snippet", grid, 64, [out, value, stride])
        # A stride of two words takes two rounds of the banks, and its second half reads poison.
        assert (out[:32] == grid + value).all() and (out[32:] == grid + value).all() == (stride < 8)
        assert (report.worst_conflict, report.executed[0]) == (ways, 2 * grid)


def test_a_launch_that_failed_leaves_nothing_behind() -> None:
    out = np.zeros(64, np.int32)
    with pytest.raises(EmulatorError, match="of shared memory"):
        run(TEXT, "snippet", 1, 64, [out, 1, 4096])
    run(TEXT, "snippet", 1, 64, [out, 1, 4])
    assert (out == 2).all()


def test_arrays_of_one_launch_are_not_those_of_the_next() -> None:
    first, second = np.zeros(64, np.int32), np.zeros(64, np.int32)
    run(TEXT, "snippet", 1, 64, [first, 1, 4])
    run(TEXT, "snippet", 1, 64, [second, 2, 4])
    assert (first == 2).all() and (second == 3).all()


def test_copies_in_flight_end_with_their_launch() -> None:
    """Without a wait the copy never lands; the next launch copies to the same place."""
    body = """mov.u32 %r1, tile;
cp.async.ca.shared.global [%r1], [%at0], 16, 16;
cp.async.commit_group;"""
    one = program(
        "mov.u32 %r2, %tid.x;\nsetp.ne.s32 %q0, %r2, 0;\n@%q0 bra DONE;\n" + body + "\nDONE:", 1, 64
    )
    out = np.zeros(64, np.int32)
    for _ in range(2):
        run(one, "snippet", 1, 32, [out])
