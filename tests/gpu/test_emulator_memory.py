"""The emulator's memories: what may not be done is refused, and what may is done late, poisoned and in any order."""

from __future__ import annotations

import numpy as np
import pytest

from tests.gpu.emulator import EmulatorError, run
from tests.gpu.snippets import launch, program

# %r0: the thread, %r1: its 4-byte place in the tile; %d0: its 4-byte place in the first array.
_PLACES = """mov.u32 %r0, %tid.x;
mov.u32 %r1, tile;
mad.lo.s32 %r1, %r0, 4, %r1;
mad.wide.u32 %d0, %r0, 4, %at0;
"""
_GLOBAL = "mov.u32 %r0, %tid.x;\nmad.wide.u32 %d0, %r0, 4, %at0;\n"


def ints(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.int32)


def test_loads_stores_and_what_they_move() -> None:
    source = np.arange(-64, 64, dtype=np.int8)
    out = np.zeros(32, np.int32)
    body = """mov.u32 %r0, %tid.x;
mad.wide.u32 %d1, %r0, 4, %at1;
ld.global.v4.s8 {%h0, %h1, %h2, %h3}, [%d1];
add.s16 %h0, %h0, %h3;
cvt.s32.s16 %r1, %h0;
mad.wide.u32 %d0, %r0, 4, %at0;
st.global.b32 [%d0], %r1;"""
    report = launch(body, [out, source])
    rows = source.reshape(-1, 4).astype(np.int32)
    assert out.tolist() == (rows[:, 0] + rows[:, 3]).tolist()
    assert (report.loaded, report.stored) == (128, 128)


@pytest.mark.parametrize("offset", [4, -4, 1 << 20])
@pytest.mark.parametrize("op", ["ld.global.b32 %r3, [%d0+OFFSET];", "st.global.b32 [%d0+OFFSET], %r0;"])
def test_global_bounds(op: str, offset: int) -> None:
    with pytest.raises(EmulatorError, match=r"line .* of an array of 128 bytes|before every array"):
        launch(_GLOBAL + op.replace("OFFSET", str(offset)), [ints(32)])
    launch(_GLOBAL + op.replace("OFFSET", "4"), [ints(33)])


def test_global_alignment_and_null() -> None:
    with pytest.raises(EmulatorError, match=r"8-byte access .* not aligned"):
        launch(_GLOBAL + "ld.global.v2.b32 {%r3, %r4}, [%d0];", [ints(64)])
    with pytest.raises(EmulatorError, match="before every array"):
        run(program("ld.global.b32 %r0, [%at0];", 1), "snippet", 1, 32, [0])


def test_lanes_off_touch_nothing() -> None:
    short = ints(20)
    out = np.full(32, -5, np.int32)
    body = (
        _GLOBAL
        + "mad.wide.u32 %d1, %r0, 4, %at1;\nsetp.LT.s32 %q1, %r0, 20;\n@%q1 ld.global.b32 %r3, [%d1];\n"
    )
    body += "@%q1 st.global.b32 [%d0], %r3;"
    launch(body.replace("LT", "lt"), [out, short])
    assert out.tolist() == [*range(20), *[-5] * 12]
    with pytest.raises(EmulatorError, match="byte 80 of an array of 80"):
        launch(body.replace("LT", "le"), [out, short])


def test_arrays_change_only_after_success() -> None:
    out = ints(32)
    with pytest.raises(EmulatorError):
        launch(_GLOBAL + "st.global.b32 [%d0], -1;\nst.global.b32 [%d0+4096], -1;", [out])
    assert out.tolist() == list(range(32))


def test_one_place_takes_one_value() -> None:
    with pytest.raises(EmulatorError, match="different values to one place of global"):
        launch("mov.u32 %r0, %tid.x;\nst.global.b32 [%at0], %r0;", [ints(4)])
    launch("st.global.b32 [%at0], 7;", [ints(4)])


@pytest.mark.parametrize("seed", range(3))
def test_no_thread_changes_what_another_stored(seed: int) -> None:
    """Each thread stores its number in its place and VALUE in the next one's, which may come before or after."""
    body = _GLOBAL + "ADD\nst.global.b32 [%d0], %r1;\nadd.s32 %r1, %r1, STEP;\nst.global.b32 [%d0+4], %r1;"
    body = body.replace("ADD", "add.s32 %r1, %r0, 0;")
    launch(body.replace("STEP", "1"), [ints(65)], threads=64, seed=seed)
    with pytest.raises(EmulatorError, match="race: two threads store different values at byte"):
        launch(body.replace("STEP", "2"), [ints(65)], threads=64, seed=seed)


def test_registers_and_shared_memory_start_poisoned() -> None:
    body = _PLACES + "{INIT}setp.eq.s32 %q1, %r0, 99;\n@%q1 mov.b32 %r5, 1;\nst.global.b32 [%d0], %r5;"
    seen = set()
    for seed in range(3):
        out = ints(32)
        launch(body.replace("{INIT}", ""), [out], shared=128, seed=seed)
        seen.add(tuple(out.tolist()))
    assert len(seen) == 3
    for seed in range(3):
        out = ints(32)
        launch(_PLACES + "ld.shared.b32 %r5, [%r1];\nst.global.b32 [%d0], %r5;", [out], shared=128, seed=seed)
        seen.add(tuple(out.tolist()))
    assert len(seen) == 6


def test_a_register_that_nothing_writes() -> None:
    with pytest.raises(EmulatorError, match=r"nothing writes .*%r7"):
        launch("add.s32 %r0, %r7, 1;", [ints(4)])


@pytest.mark.parametrize(
    ("op", "message"),
    [
        ("ld.shared.b32 %r3, [%r1+4];", "byte 256 of 256"),
        ("st.shared.b32 [%r1+-2048], %r0;", "byte -2048 of 256"),
        ("st.shared.b16 [%r1+1], %h1;", "not aligned"),
        ("ld.shared.v4.b32 {%r3, %r4, %r5, %r6}, [%r1];", "not aligned"),
    ],
)
def test_shared_bounds_and_alignment(op: str, message: str) -> None:
    with pytest.raises(EmulatorError, match=message):
        launch(_PLACES + "mov.b16 %h1, 0;\n" + op, [ints(64)], threads=64, shared=256)


# Threads hand their number to thread + STEP by way of the tile.
_HAND_OVER = (
    _PLACES
    + """st.shared.b32 [%r1], %r0;
SYNC
add.s32 %r2, %r0, STEP;
and.b32 %r2, %r2, 63;
mov.u32 %r3, tile;
mad.lo.s32 %r3, %r2, 4, %r3;
ld.shared.b32 %r4, [%r3];
AGAIN
st.global.b32 [%d0], %r4;"""
)


def hand_over(step: int, sync: str, again: str = "", seed: int = 0) -> np.ndarray:
    out = np.full(64, -1, np.int32)
    body = _HAND_OVER.replace("STEP", str(step)).replace("SYNC", sync).replace("AGAIN", again)
    launch(body, [out], threads=64, shared=256, seed=seed)
    return out


@pytest.mark.parametrize("seed", range(4))
def test_a_barrier_hands_values_over(seed: int) -> None:
    assert hand_over(40, "bar.sync 0;", seed=seed).tolist() == [(i + 40) % 64 for i in range(64)]


@pytest.mark.parametrize("seed", range(4))
def test_races_are_found_in_any_order(seed: int) -> None:
    with pytest.raises(EmulatorError, match=r"race: thread .* reads what thread .* wrote"):
        hand_over(40, "", seed=seed)
    with pytest.raises(EmulatorError, match=r"race: .* (overwrites what warp|reads what thread)"):
        hand_over(40, "bar.sync 0;", "st.shared.b32 [%r1], %r4;", seed=seed)
    same_place = "mov.u32 %r1, tile;\nmov.u32 %r0, %tid.x;\nshr.u32 %r0, %r0, 5;\nst.shared.b32 [%r1], VALUE;"
    with pytest.raises(EmulatorError, match=r"race: .* overwrites what thread|different values"):
        launch(same_place.replace("VALUE", "%r0"), [ints(4)], threads=64, shared=16, seed=seed)
    launch(same_place.replace("VALUE", "7"), [ints(4)], threads=64, shared=16, seed=seed)
    hand_over(40, "bar.sync 0;", "bar.sync 0;\nst.shared.b32 [%r1], %r4;", seed=seed)


def test_a_warp_needs_its_own_barrier() -> None:
    body = _HAND_OVER.replace("AGAIN", "").replace("STEP", "9").replace("63", "31")
    out = np.zeros(32, np.int32)
    launch(body.replace("SYNC", "bar.warp.sync -1;"), [out], shared=128)
    assert out.tolist() == [(i + 9) % 32 for i in range(32)]
    with pytest.raises(EmulatorError, match="race"):
        launch(body.replace("SYNC", ""), [out], shared=128)


def test_neighbouring_bytes_are_no_race() -> None:
    body = """mov.u32 %r0, %tid.x;
mov.u32 %r1, tile;
add.s32 %r1, %r1, %r0;
cvt.u16.u32 %h1, %r0;
st.shared.b8 [%r1], %h1;
bar.sync 0;
mov.u32 %r2, tile;
ld.shared.b32 %r3, [%r2+28];
mad.wide.u32 %d0, %r0, 4, %at0;
st.global.b32 [%d0], %r3;"""
    out = np.zeros(64, np.int32)
    launch(body, [out], threads=64, shared=64, seed=5)
    assert set(out.tolist()) == {0x1F1E1D1C}


# 16 bytes a thread from the second array into the tile, and one of them back.
_COPY = """mov.u32 %r0, %tid.x;
mov.u32 %r1, tile;
mad.lo.s32 %r1, %r0, 16, %r1;
mad.wide.u32 %d1, %r0, 16, %at1;
mad.wide.u32 %d0, %r0, 4, %at0;
cp.async.cg.shared.global [%r1], [%d1], 16, SIZE;
cp.async.commit_group;
WAIT
ld.shared.b32 %r4, [%r1+12];
st.global.b32 [%d0], %r4;"""


def copied(wait: str, size: str = "16") -> np.ndarray:
    out = np.zeros(32, np.int32)
    launch(_COPY.replace("WAIT", wait).replace("SIZE", size), [out, ints(128)], shared=512)
    return out


def test_copies_land_at_their_wait() -> None:
    assert copied("cp.async.wait_group 0;").tolist() == list(range(3, 128, 4))
    assert copied("cp.async.wait_all;").tolist() == list(range(3, 128, 4))
    assert copied("cp.async.wait_group 0;", "8").tolist() == [0] * 32, "what is not read is zero"
    for late in ("", "cp.async.wait_group 1;"):
        with pytest.raises(EmulatorError, match="while a copy to it is in flight"):
            copied(late)


def test_a_wait_is_not_enough_for_other_threads() -> None:
    body = _COPY.replace("SIZE", "16").replace("[%r1+12]", "[tile+12]")
    out = np.zeros(32, np.int32)
    with pytest.raises(EmulatorError, match="race"):
        launch(body.replace("WAIT", "cp.async.wait_group 0;"), [out, ints(128)], shared=512)
    launch(body.replace("WAIT", "cp.async.wait_group 0;\nbar.sync 0;"), [out, ints(128)], shared=512)
    assert set(out.tolist()) == {3}


def test_groups_land_in_order() -> None:
    body = _COPY.replace("SIZE", "16").replace(
        "WAIT",
        "cp.async.cg.shared.global [%r1+512], [%d1], 16;\ncp.async.commit_group;\ncp.async.wait_group 1;",
    )
    out = np.zeros(32, np.int32)
    launch(body, [out, ints(128)], shared=1024)
    assert out.tolist() == list(range(3, 128, 4))
    with pytest.raises(EmulatorError, match="in flight"):
        launch(body.replace("[%r1+12]", "[%r1+524]"), [out, ints(128)], shared=1024)


def test_two_copies_to_one_place() -> None:
    body = (
        _COPY.replace("SIZE", "16")
        .replace("%r0, 16, %r1;", "0, 16, %r1;")
        .replace("WAIT", "cp.async.wait_all;")
    )
    with pytest.raises(EmulatorError, match="two copies go to one place"):
        launch(body, [np.zeros(32, np.int32), ints(128)], shared=512)


def test_a_copy_of_nothing_reads_nothing() -> None:
    body = _COPY.replace("WAIT", "cp.async.wait_all;").replace("16, SIZE", "16, 0").replace("%at1;", "4096;")
    out = np.ones(32, np.int32)
    launch(body, [out, ints(4)], shared=512)
    assert not out.any()


@pytest.mark.parametrize(
    ("stride", "width", "ways"),
    [(4, 4, 1), (8, 4, 2), (128, 4, 32), (0, 4, 1), (132, 4, 1), (16, 16, 1), (64, 16, 4), (80, 16, 1)],
)
def test_bank_conflicts_by_address(stride: int, width: int, ways: int) -> None:
    kind = {4: "b32", 16: "v4.b32"}[width]
    target = {4: "%r4", 16: "{%r4, %r5, %r6, %r7}"}[width]
    body = f"mov.u32 %r0, %tid.x;\nmov.u32 %r1, tile;\nmad.lo.s32 %r1, %r0, {stride}, %r1;\nld.shared.{kind} {target}, [%r1];"
    report = launch(body, [ints(4)], shared=31 * max(stride, 1) + 16)
    assert report.worst_conflict == ways


@pytest.mark.parametrize("seed", [0, 1])
def test_atomics_add_up(seed: int) -> None:
    counts, last = np.zeros(4, np.int32), np.zeros(64, np.int32)
    body = """mov.u32 %r0, %tid.x;
and.b32 %r1, %r0, 3;
mad.wide.u32 %d0, %r1, 4, %at0;
atom.global.gpu.acq_rel.add.s32 %r2, [%d0], %r0;
mad.wide.u32 %d1, %r0, 4, %at1;
st.global.b32 [%d1], %r2;"""
    launch(body, [counts, last], threads=64, seed=seed)
    assert counts.tolist() == [sum(range(i, 64, 4)) for i in range(4)]
    for i in range(4):
        assert len(set(last[i::4].tolist())) > 10, "each adds to what another left"


def test_blocks_run_in_random_order() -> None:
    body = """mov.u32 %r0, %ctaid.x;
setp.eq.s32 %q1, %r0, 99;
atom.global.add.s32 %r2, [%at1], 1;
mad.wide.u32 %d0, %r0, 4, %at0;
st.global.b32 [%d0], %r2;"""
    orders = set()
    for seed in range(3):
        out = np.zeros(8, np.int32)
        run(program(body), "snippet", 8, 1, [out, np.zeros(1, np.int32)], seed=seed)
        assert sorted(out.tolist()) == list(range(8))
        orders.add(tuple(out.tolist()))
    assert len(orders) == 3
