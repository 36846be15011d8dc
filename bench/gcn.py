"""Reads AMD's assembly, as Triton keeps it beside the binary: registers, spills, LDS, and the instructions of the main loop."""

from __future__ import annotations

import re
from collections import Counter

from bench.loops import Instruction, main_loop, reachable
from bench.machine_code import Kernel, is_load, is_tensor

_TARGET = re.compile(r'\.amdgcn_target\s+"[^"]*-(gfx\w+)')
_LABEL = re.compile(r"^([.\w$]+):")
_LINE = re.compile(r"^\s+([a-z]\w+)\s*([^;]*)")
# A call comes back.
_ENDS = ("s_endpgm", "s_branch", "s_setpc_b64")


class AssemblyError(ValueError):
    """Assembly that cannot be read; the message says what stands there."""


def parse(text: str) -> Kernel:
    """The one kernel of an assembly file.

    Raises:
        AssemblyError: no kernel, no figures, or a jump to a label that is not there.
    """
    target = _TARGET.search(text)
    name = re.search(r"^\s+\.globl\s+([\w$]+)", text, re.MULTILINE)
    if target is None or name is None:
        raise AssemblyError("not the assembly of a kernel: no target, or no name.")
    code = _instructions(text, name[1])
    try:
        loop = main_loop(code, is_tensor, is_load)
    except ValueError as error:
        raise AssemblyError(f"{name[1]}: {error}") from error
    return Kernel(
        name[1],
        target[1],
        _figure(text, "vgpr_count"),
        _figure(text, "private_segment_fixed_size"),
        _figure(text, "vgpr_spill_count"),
        _figure(text, "group_segment_fixed_size"),
        dict(Counter(code[index].opcode for index in reachable(code))),
        dict(Counter(code[index].opcode for index in loop)),
    )


def _instructions(text: str, name: str) -> list[Instruction]:
    found: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    inside = False
    for line in text.splitlines():
        label = _LABEL.match(line)
        if label:
            inside = (inside or label[1] == name) and not label[1].startswith(".Lfunc_end")
            if inside:
                labels[label[1]] = len(found)
        elif inside:
            match = _LINE.match(line)
            if match:
                found.append((match[1], match[2].strip()))
    if not found:
        raise AssemblyError(f"no code of {name} in the assembly.")
    code = []
    for index, (opcode, operands) in enumerate(found):
        after = []
        if opcode == "s_branch" or opcode.startswith("s_cbranch_"):
            if operands not in labels:
                raise AssemblyError(f"{name}: no label {operands!r}, the goal of {opcode}.")
            after.append(labels[operands])
        if opcode not in _ENDS and index + 1 < len(found):
            after.append(index + 1)
        code.append(Instruction(opcode, tuple(dict.fromkeys(after))))
    return code


def _figure(text: str, key: str) -> int:
    found = re.search(rf"^\s+(?:- )?\.{key}:\s+(\d+)$", text, re.MULTILINE)
    if found is None:
        raise AssemblyError(f"no figure .{key} in the assembly.")
    return int(found[1])
