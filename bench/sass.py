"""Reads what NVIDIA's assembler made of a kernel: registers, shared memory, spills, and the instructions of its main loop.

The disassembler is ``cuobjdump``, of Triton's wheel or of a CUDA toolkit. Nothing here needs a GPU, and nothing here is a time.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from bench.loops import Instruction, main_loop, reachable
from bench.machine_code import Kernel, first_word, is_load, is_tensor

LOCAL = frozenset({"LDL", "STL"})
# From sm_90 on, the driver keeps one KiB of every block that uses shared memory, and the binary counts it.
RESERVED_SHARED, RESERVED_FROM = 1024, 90

_ELF = re.compile(r"^\s*code for (sm_\w+)\s*$")
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_FUNCTION = re.compile(r"^\s*Function\s*:?\s+(\S+?):?\s*$")
_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")


class SassError(ValueError):
    """A binary or its disassembly that cannot be read; the message says what stands there."""


def read(binary: Path) -> list[Kernel]:
    """Kernels of a cubin or a fatbin, for every architecture that it holds machine code of.

    Raises:
        SassError: no disassembler, or not such a file.
    """
    tool = disassembler()
    if tool is None:
        raise SassError("no cuobjdump: it comes with Triton's wheel and with a CUDA toolkit.")
    done = subprocess.run(
        [tool, "-res-usage", "-sass", str(binary)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SassError(f"{binary}: {done.stderr.strip() or done.stdout.strip()}")
    kernels = parse(done.stdout)
    if not kernels:
        raise SassError(f"{binary} holds no machine code.")
    return kernels


@cache
def disassembler() -> Path | None:
    """``cuobjdump`` of Triton's wheel, else of the path, else None."""
    triton = find_spec("triton")
    if triton is not None and triton.origin is not None:
        wheel = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        if wheel.is_file():
            return wheel
    found = shutil.which("cuobjdump")
    return None if found is None else Path(found)


def parse(text: str) -> list[Kernel]:
    """Kernels of what ``cuobjdump -res-usage -sass`` prints.

    Raises:
        SassError: a function without figures, or a jump whose goal is not written.
    """
    kernels: list[Kernel] = []
    resources: dict[str, tuple[int, ...]] = {}
    target, name, lines = "", "", []  # type: str, str, list[str]

    def finish() -> None:
        if lines:
            kernels.append(_kernel(name, target, resources, lines))

    for line in text.splitlines():
        found = _ELF.match(line)
        if found:
            finish()
            # The figures of a binary stand before its code.
            target, name, lines = found[1], "", []
            continue
        found = _RESOURCES.search(line)
        if found:
            resources[name] = tuple(int(figure) for figure in found.groups())
            continue
        found = _FUNCTION.match(line)
        if found:
            finish()
            name, lines = found[1], []
        elif _LINE.match(line):
            lines.append(line)
    finish()
    return kernels


def instructions(name: str, lines: Sequence[str]) -> list[Instruction]:
    """Instructions of one function, and what can follow each.

    Raises:
        SassError: a jump whose goal is not written, or that lies outside.
    """
    found = [match.groups() for match in map(_LINE.match, lines) if match]
    place = {int(address, 16): index for index, (address, *_) in enumerate(found)}
    joins = {_goal(operands) for _, _, opcode, operands in found if first_word(opcode) == "BSSY"}
    code = []
    for index, (address, guard, opcode, operands) in enumerate(found):
        word, after = first_word(opcode), []
        # `BRA.U UP0, 0x70` and `BRA P1, 0x70` have their condition among the operands.
        always = guard is None and "," not in operands
        if word in ("BRA", "CALL"):
            goal = place.get(_goal(operands))
            if goal is None:
                raise SassError(f"{name}: no instruction at the goal of {opcode} {operands.strip()}.")
            after.append(goal)
        elif word in ("BRX", "BRXU", "JMP", "JMX"):
            raise SassError(f"{name}: the goal of {opcode} is known only when it runs.")
        elif word == "BSYNC" and int(address, 16) + 16 not in joins:
            raise SassError(f"{name}: {opcode} at {address} joins elsewhere than behind itself.")
        ends = word in ("BRA", "EXIT", "RET") and always
        if not ends and index + 1 < len(found):
            after.append(index + 1)
        code.append(Instruction(opcode, tuple(dict.fromkeys(after))))
    return code


def _goal(operands: str) -> int:
    written = re.findall(r"0x([0-9a-f]+)", operands)
    return int(written[-1], 16) if written else -1


def _kernel(name: str, target: str, resources: Mapping[str, tuple[int, ...]], lines: Sequence[str]) -> Kernel:
    if name not in resources:
        raise SassError(f"{name}: no figures on registers and memory.")
    registers, stack, shared, local = resources[name]
    code = instructions(name, lines)
    try:
        loop = main_loop(code, is_tensor, is_load)
    except ValueError as error:
        raise SassError(f"{name}: {error}") from error
    if int(re.sub(r"\D", "", target)) >= RESERVED_FROM and shared >= RESERVED_SHARED:
        shared -= RESERVED_SHARED
    opcodes = dict(Counter(code[index].opcode for index in reachable(code)))
    return Kernel(
        name,
        target,
        registers,
        stack + local,
        sum(count for opcode, count in opcodes.items() if first_word(opcode) in LOCAL),
        shared,
        opcodes,
        dict(Counter(code[index].opcode for index in loop)),
    )
