"""What a warp does together: matrix products on fragments, matrix loads, shuffles, votes, barriers, and ways that part and join."""

from __future__ import annotations

import numpy as np
import pytest

from tests.gpu.emulator import EmulatorError, Report, run, schedule, together
from tests.gpu.snippets import each, launch, program

_RNG = np.random.default_rng(11)


def fragment_words(matrix: np.ndarray, bits: int) -> np.ndarray:
    """``[rows, K]`` codes as ``[rows, K * bits / 32]`` words, low code first."""
    if bits == 4:
        codes = matrix.astype(np.uint8) & 15
        matrix = (codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8)
    return np.ascontiguousarray(matrix).view(np.uint32)


def product(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, form: str, bits: int, total: str = "s32"
) -> np.ndarray:
    """``a [16, K] b [8, K].T + c [16, 8]`` by one mma, loaded as the manual's figures say, element by element."""
    words_a, words_b = fragment_words(a, bits), fragment_words(b, bits)
    parts = words_a.shape[1] // 4
    fragments = np.zeros((32, 3 * parts + 4), np.uint32)
    for lane in range(32):
        group, quad = divmod(lane, 4)
        for part in range(parts):
            fragments[lane, 2 * part] = words_a[group, 4 * part + quad]
            fragments[lane, 2 * part + 1] = words_a[group + 8, 4 * part + quad]
            fragments[lane, 2 * parts + part] = words_b[group, 4 * part + quad]
        for i in range(4):
            value = c[group + 8 * (i // 2), 2 * quad + i % 2]
            fragments[lane, 3 * parts + i] = np.array(value).view(np.uint32)
    count = fragments.shape[1]
    loads = "\n".join(f"ld.global.b32 %r{i}, [%d1+{4 * i}];" for i in range(count))

    def names(first: int, size: int) -> str:
        return "{" + ", ".join(f"%r{first + i}" for i in range(size)) + "}"

    sources = f"{names(0, 2 * parts)}, {names(2 * parts, parts)}, {names(3 * parts, 4)}"
    stores = "\n".join(f"st.global.b32 [%d0+{4 * i}], %r{20 + i};" for i in range(4))
    body = f"""mov.u32 %r31, %tid.x;
mad.wide.u32 %d1, %r31, {4 * count}, %at1;
mad.wide.u32 %d0, %r31, 16, %at0;
{loads}
mma.sync.aligned.{form} {names(20, 4)}, {sources};
{stores}"""
    out = np.zeros((32, 4), c.dtype)
    launch(body, [out, fragments])
    result = np.zeros((16, 8), c.dtype)
    for lane in range(32):
        for i in range(4):
            result[lane // 4 + 8 * (i // 2), 2 * (lane % 4) + i % 2] = out[lane, i]
    return result


@pytest.mark.parametrize(
    ("form", "bits", "low", "high"),
    [
        ("m16n8k32.row.col.s32.s8.s8.s32", 8, (-128, -128), (128, 128)),
        ("m16n8k32.row.col.s32.u8.s8.s32", 8, (0, -128), (256, 128)),
        ("m16n8k16.row.col.s32.s8.s8.s32", 8, (-128, -128), (128, 128)),
        ("m16n8k64.row.col.s32.s4.s4.s32", 4, (-8, -8), (8, 8)),
        ("m16n8k64.row.col.s32.u4.s4.s32", 4, (0, -8), (16, 8)),
        ("m16n8k32.row.col.s32.s4.s4.s32", 4, (-8, -8), (8, 8)),
    ],
)
def test_integer_mma(form: str, bits: int, low: tuple[int, int], high: tuple[int, int]) -> None:
    k = int(form.split("k")[1].split(".", maxsplit=1)[0])
    a = _RNG.integers(low[0], high[0], (16, k)).astype(np.uint8 if low[0] == 0 else np.int8)
    b = _RNG.integers(low[1], high[1], (8, k)).astype(np.int8)
    c = _RNG.integers(-(2**20), 2**20, (16, 8)).astype(np.int32)
    expected = a.astype(np.int64) @ b.astype(np.int64).T + c
    assert product(a, b, c, form, bits).tolist() == expected.tolist()


def test_integer_mma_wraps_or_saturates() -> None:
    a, b = np.full((16, 32), 127, np.int8), np.full((8, 32), 127, np.int8)
    c = np.full((16, 8), 2**31 - 5, np.int32)
    wrapped = product(a, b, c, "m16n8k32.row.col.s32.s8.s8.s32", 8)
    assert set(wrapped.ravel().tolist()) == {2**31 - 5 + 127 * 127 * 32 - 2**32}
    kept = product(a, b, c, "m16n8k32.row.col.satfinite.s32.s8.s8.s32", 8)
    assert set(kept.ravel().tolist()) == {2**31 - 1}


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_float_mma_is_the_exact_sum_truncated(kind: str) -> None:
    a, b = (_RNG.standard_normal((rows, 16)).astype(np.float16) for rows in (16, 8))
    c = _RNG.standard_normal((16, 8)).astype(np.float32)
    codes = [a, b]
    if kind == "bf16":
        words = [(x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16) for x in (a, b)]
        codes = words
        a, b = ((x.astype(np.uint32) << 16).view(np.float32) for x in words)
    result = product(*codes, c, f"m16n8k16.row.col.f32.{kind}.{kind}.f32", 16)
    exact = a.astype(np.float64) @ b.astype(np.float64).T + c
    step = np.abs(np.spacing(exact.astype(np.float32)).astype(np.float64))
    assert (np.abs(result) <= np.abs(exact)).all()
    assert (np.abs(result - exact) < step * (1 + 1e-9)).all()
    assert (result != exact.astype(np.float32)).any(), "truncated, not rounded"


def test_mma_with_lanes_away() -> None:
    body = """mov.u32 %r0, %tid.x;
setp.lt.s32 %q1, %r0, 31;
@%q1 mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%r1,%r2,%r3,%r4}, {%r0,%r0}, {%r0}, {%r0,%r0,%r0,%r0};"""
    with pytest.raises(EmulatorError, match="threads away"):
        launch(body, [np.zeros(4, np.int32)])


@pytest.mark.parametrize("trans", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(count: int, trans: bool) -> None:
    tile = np.arange(count * 64, dtype=np.uint16).reshape(count, 8, 8)
    names = ", ".join(f"%r{i}" for i in range(4, 4 + count))
    stores = "\n".join(f"st.global.b32 [%d0+{4 * i}], %r{4 + i};" for i in range(count))
    fill = "\n".join(
        f"ld.global.b32 %r1, [%d1+{128 * i}];\nst.shared.b32 [%r3+{128 * i}], %r1;" for i in range(count)
    )
    body = f"""mov.u32 %r0, %tid.x;
mov.u32 %r2, tile;
mad.lo.s32 %r3, %r0, 4, %r2;
mad.wide.u32 %d1, %r0, 4, %at1;
{fill}
bar.sync 0;
and.b32 %r1, %r0, {8 * count - 1};
mad.lo.s32 %r2, %r1, 16, %r2;
ldmatrix.sync.aligned.m8n8.x{count}{".trans" if trans else ""}.shared.b16 {{{names}}}, [%r2];
mad.wide.u32 %d0, %r0, {4 * count}, %at0;
{stores}"""
    out = np.zeros((32, count, 2), np.uint16)
    report = launch(body, [out, tile], shared=128 * count)
    for lane in range(32):
        for i in range(count):
            row, column = lane // 4, 2 * (lane % 4)
            matrix = tile[i].T if trans else tile[i]
            assert out[lane, i].tolist() == matrix[row, column : column + 2].tolist()
    assert report.worst_conflict == 1


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("bfly.b32 %r0, %r1, 5, 31", lambda i: i ^ 5),
        ("down.b32 %r0, %r1, 3, 31", lambda i: i + 3 if i + 3 < 32 else i),
        ("up.b32 %r0, %r1, 3, 0", lambda i: i - 3 if i >= 3 else i),
        ("idx.b32 %r0, %r1, 7, 31", lambda i: 7),
        ("idx.b32 %r0, %r1, 2, 6175", lambda i: i // 8 * 8 + 2),
        ("down.b32 %r0, %r1, 1, 6175", lambda i: i + 1 if i % 8 < 7 else i),
    ],
)
def test_shuffles(form: str, expected) -> None:
    values = np.arange(100, 132, dtype=np.int32)
    result = each(f"shfl.sync.{form}, -1;", [np.tile(values, 2)], np.int32)
    assert result.tolist() == [100 + expected(i) for i in range(32)] * 2
    flagged = form.replace("%r0,", "%r0|%q1,")
    valid = each(f"shfl.sync.{flagged}, -1;\nselp.b32 %r0, 1, 0, %q1;", [values], np.int32)
    own = "down" in form or "up" in form
    assert valid.tolist() == [int(not own or expected(i) != i) for i in range(32)]


def test_votes_and_reductions() -> None:
    values = np.arange(-16, 16, dtype=np.int32)
    ballot = each("setp.gt.s32 %q1, %r1, 3;\nvote.sync.ballot.b32 %r0, %q1, -1;", [values], np.uint32)
    assert set(ballot.tolist()) == {sum(1 << i for i, v in enumerate(values.tolist()) if v > 3)}
    for mode, expected in (("any", 1), ("all", 0)):
        body = f"setp.gt.s32 %q1, %r1, 3;\nvote.sync.{mode}.pred %q2, %q1, -1;\nselp.b32 %r0, 1, 0, %q2;"
        assert set(each(body, [values], np.int32).tolist()) == {expected}
    for op, expected in (("add", int(values.sum())), ("max", 15), ("min", -16)):
        assert set(each(f"redux.sync.{op}.s32 %r0, %r1, -1;", [values], np.int32).tolist()) == {expected}


def test_part_of_a_warp_cannot_shuffle() -> None:
    body = "mov.u32 %r0, %tid.x;\nsetp.lt.s32 %q1, %r0, 8;\n@%q1 shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1;"
    with pytest.raises(EmulatorError, match="threads away"):
        launch(body, [np.zeros(4, np.int32)])


# Each thread counts down from its number mod 5 in a loop of its own length, then all meet at a shuffle.
_LOOP = """mov.u32 %r0, %tid.x;
rem.u32 %r1, %r0, 5;
mov.b32 %r2, 0;
again:
setp.eq.s32 %q1, %r1, 0;
@%q1 bra out;
add.s32 %r2, %r2, %r1;
sub.s32 %r1, %r1, 1;
bra again;
out:
shfl.sync.bfly.b32 %r3, %r2, 1, 31, -1;
mad.wide.u32 %d0, %r0, 4, %at0;
st.global.b32 [%d0], %r3;"""


@pytest.mark.parametrize("seed", range(4))
def test_ways_part_and_join(seed: int) -> None:
    out = np.zeros(96, np.int32)
    report = launch(_LOOP, [out], threads=96, seed=seed)
    assert out.tolist() == [sum(range((i ^ 1) % 5 + 1)) for i in range(96)]
    assert report.coverage == 1


def barrier(condition: str, branch: str) -> Report:
    body = f"mov.u32 %r0, %tid.x;\nsetp.{condition} %q1, %r0, 40;\n{branch}\nskip:\nbar.sync 0;"
    return launch(body, [np.zeros(4, np.int32)], threads=64)


def test_barriers_that_not_all_reach() -> None:
    with pytest.raises(EmulatorError, match="under a condition"):
        barrier("lt.s32", "@%q1 bar.sync 0;")
    with pytest.raises(EmulatorError, match="others elsewhere"):
        barrier("lt.s32", "@%q1 bra skip;\nbar.sync 0;\nbar.sync 0;")
    with pytest.raises(EmulatorError, match="others have left"):
        launch(
            "mov.u32 %r0, %tid.x;\nsetp.lt.s32 %q1, %r0, 32;\n@%q1 ret;\nbar.sync 0;",
            [np.zeros(4, np.int32)],
            threads=64,
        )
    with pytest.raises(EmulatorError, match="some threads is not known"):
        launch("bar.sync 1, 32;", [np.zeros(4, np.int32)], threads=64)
    assert barrier("lt.s32", "@%q1 bra skip;").operations["bar.sync"] == 2


def test_a_program_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_ENDLESS", 1000)
    with pytest.raises(EmulatorError, match="no end after"):
        launch("again:\nbra again;", [np.zeros(4, np.int32)])


def test_report_counts_lines_and_adds_up() -> None:
    out = np.zeros(96, np.int32)
    short = launch(_LOOP, [out], threads=96)
    assert short.operations["shfl.sync.bfly.b32"] == 3
    assert max(short.lines.values()) > 3
    body = "mov.u32 %r0, %tid.x;\nsetp.GE.s32 %q1, %r0, 32;\n@%q1 bra out;\nadd.s32 %r1, %r0, 1;\nout:\nadd.s32 %r1, %r0, 2;"
    text = program(body, 1)
    some = run(text.replace("GE", "lt"), "snippet", 1, 32, [out])
    assert [missed.text for missed in some.missed()] == ["add.s32 %r1, %r0, 1"]
    assert some.coverage == pytest.approx(1 - 1 / len(some.instructions))
    assert text.splitlines()[some.missed()[0].line - 1] == "add.s32 %r1, %r0, 1;"
    twice = together([some, some])
    assert twice.executed == tuple(2 * count for count in some.executed)
    with pytest.raises(ValueError, match="different kernels"):
        together([some, short])
