"""Reading PTX: names, scopes and lines are kept, and what is not understood is refused."""

from __future__ import annotations

import numpy as np
import pytest

from tests.gpu.emulator import EmulatorError, run
from tests.gpu.emulator.source import alone, read
from tests.gpu.snippets import launch, program


def test_blocks_have_registers_of_their_own() -> None:
    out = np.zeros(32, np.int32)
    body = """mov.b32 %r0, 5;
{ .reg .b32 t; .reg .b64 u; mov.b32 t, 7; add.s32 %r0, %r0, t; }
{ .reg .b64 t; mov.b64 t, 1; cvt.u32.u64 %r1, t; add.s32 %r0, %r0, %r1; }
mov.u32 %r2, %tid.x;
mad.wide.u32 %d0, %r2, 4, %at0;
st.global.b32 [%d0], %r0;"""
    launch(body, [out])
    assert set(out.tolist()) == {13}


def test_lines_survive_comments_and_directives() -> None:
    text = program(
        '/* two\nlines */ // bra away;\n.loc 1 2 3\n.pragma "nounroll";\nadd.s32 %r1, 1, 2; // one\nadd.s32 %r2, 3, 4;'
    )
    kernel = read(text, "snippet")
    added = [given for given in kernel.instructions if given.op == "add.s32"]
    assert [text.splitlines()[given.line - 1].split(";")[0] for given in added] == [
        given.text for given in added
    ]


def test_static_arrays_lie_aligned_and_dynamic_memory_behind_them() -> None:
    text = program(".shared .align 4 .b8 first[6];\n.shared .align 16 .b8 second[32];\nmov.u32 %r1, second;")
    text = text.replace(".visible", ".extern .shared .align 16 .b8 more[];\n.visible")
    kernel = read(text, "snippet")
    assert kernel.shared == {"first": 0, "second": 16, "more": 48}
    assert kernel.static_shared == 48


def test_other_entries_are_left_alone() -> None:
    text = program(".shared .align 16 .b8 mine[64];\nmov.u32 %r1, mine;")
    both = (
        text + text.replace("snippet", "other").replace("mine[64]", "mine[128]").split(".address_size 64")[1]
    )
    assert read(both, "snippet").static_shared == 64
    assert read(both, "other").static_shared == 128
    with pytest.raises(EmulatorError, match=r"no entry 'neither'; there are \['snippet', 'other'\]"):
        read(both, "neither")
    for entry in ("snippet", "other"):
        cut = alone(both, entry)
        assert len(cut.splitlines()) == len(both.splitlines())
        assert read(cut, entry) == read(both, entry)
    with pytest.raises(EmulatorError, match=r"there are \['other'\]"):
        read(cut, "snippet")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("frob.s32 %r0, %r1;", "unknown instruction frob.s32"),
        ("add.wild.s32 %r0, 1, 2;", r"unknown modifier \.wild"),
        ("bra nowhere;", "no label 'nowhere'"),
        ("call foo;", "unknown instruction call|unknown type"),
        ("ld.b32 %r0, [%at0];", "generic addresses are not known"),
        ("ld.global.v2.b32 %r0, [%at0];", "1 registers for a vector of 2"),
        ("ld.local.b32 %r0, [%at0];", r"unknown modifier \.local"),
        ("mov.b32 %r0, {%r1, %r2, %r3};", "line"),
        ("mov.b32 %z0, 1;", "no register '%z0'"),
        ("add.s32 %r0, %nosuch, 1;", "unknown operand '%nosuch'"),
        ("mov.b64 %d0, %r1;", "of 32 bits is used as .b64"),
        ("setp.like.s32 %q1, 1, 2;", "unknown comparison"),
        ("cp.async.bulk.shared.global [%r0], [%at0], 16;", "unknown form cp.async.bulk"),
        ("cp.async.cg.shared.global [%r0], [%at0], 8;", "copies no 8 bytes"),
        ("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%r0}, {%r1}, {%r2}, {%r3};", "line"),
        (".branchtargets a, b;", "unknown directive"),
    ],
)
def test_what_is_not_understood_is_refused(body: str, message: str) -> None:
    with pytest.raises(EmulatorError, match=message):
        launch("mov.b32 %r1, 0;\n" + body, [np.zeros(4, np.int32)])


def test_arguments_have_to_fit() -> None:
    text = program("mov.b32 %r0, 1;", 1).replace(
        ".param .u64 p0", ".param .u64 p0, .param .u32 size, .param .f32 scale"
    )
    out = np.zeros(4, np.int32)
    run(text, "snippet", 1, 32, [out, 3, 1.5])
    for arguments, message in [
        ([out, 3, 1.5, 4], "4 arguments for 3 parameters"),
        ([out, 3], "no argument for parameter scale"),
        ([out, out, 1.5], "parameter size is a .u32, not ndarray"),
        ([out, 3, 2], "give it as a float"),
        ([1.5, 3, 1.5], "parameter p0 is a .u64, not float"),
    ]:
        with pytest.raises(EmulatorError, match=message):
            run(text, "snippet", 1, 32, arguments)
    with pytest.raises(EmulatorError, match="cannot be launched"):
        run(text, "snippet", 1, 2048, [out, 3, 1.5])
    bound = text.replace(")\n{", ")\n.reqntid 64\n{")
    with pytest.raises(EmulatorError, match="compiled for 64 threads a block, not 32"):
        run(bound, "snippet", 1, 32, [out, 3, 1.5])


@pytest.mark.parametrize("kind", ["f32", "s32"])
def test_parameters_arrive_by_value(kind: str) -> None:
    body = f"ld.param.{kind} %r0, [value];\nmov.u32 %r2, %tid.x;\nmad.wide.u32 %d0, %r2, 4, %at0;\nst.global.b32 [%d0], %r0;"
    text = program(body, 1).replace(".param .u64 p0", f".param .u64 p0, .param .{kind} value")
    value = -2.75 if kind == "f32" else -3
    out = np.zeros(32, np.float32 if kind == "f32" else np.int32)
    run(text, "snippet", 1, 32, [out, value])
    assert set(out.tolist()) == {value}
