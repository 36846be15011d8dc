"""What a register holds, read off the program: enough of it to say why a fault there changes nothing.

A register's name is the compiler's whim and changes with every release. What it was computed from is the kernel's own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from .registers import vector
from .source import Instruction, Kernel

_NUMBER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|\d+)U?")
_STORES = ("st", "bra", "bar", "barrier", "ret", "cp", "red", "exit", "trap")
_MOVES = ("mov", "cvta", "cvt")
_SUMS = ("add", "sub", "selp", "min", "max", *_MOVES)


def _targets(instruction: Instruction) -> list[str]:
    """The registers that an instruction writes."""
    if instruction.op.split(".")[0] in _STORES or not instruction.operands:
        return []
    return [name for target in instruction.operands[0].split("|") for name in vector(target.strip())]


class Meaning:
    """Names for what a kernel's registers hold.

    Args:
        kernel: the program.
        parameters: names of its parameters, in order; fewer will do.
        multiples: name of a parameter -> a number that every launch's argument is a multiple of.
    """

    def __init__(
        self, kernel: Kernel, parameters: Sequence[str] = (), multiples: Mapping[str, int] | None = None
    ) -> None:
        self.multiples = multiples or {}
        given = [name for name, _ in kernel.parameters]
        self.parameters = {
            **dict(zip(given, given, strict=True)),
            **dict(zip(given, parameters, strict=False)),
        }
        self.writers: dict[str, list[Instruction]] = {}
        for instruction in kernel.instructions:
            for name in _targets(instruction):
                self.writers.setdefault(name, []).append(instruction)
        self.kernel = kernel

    def of(self, operand: str, depth: int = 6) -> str:
        """``add(row_bytes, 63)``: an operand by what it was computed from, where only one instruction ever writes it.

        A register with several writers, one of a loop say, and what lies deeper than ``depth`` instructions is ``?``.
        """
        if operand not in self.writers:
            return operand.removeprefix("%")
        writers = self.writers[operand]
        if len(writers) > 1 or writers[0].guard is not None:
            return "?"
        op, (_, *sources) = writers[0].op.split(".")[0], writers[0].operands
        if ".param" in writers[0].op:
            return self.parameters[sources[0].strip("[]")]
        if op in _MOVES and len(sources) == 1:
            return self.of(sources[0], depth)
        if depth == 0:
            return "?"
        return f"{op}({', '.join(self.of(source, depth - 1) for source in sources)})"

    def text(self, instruction: Instruction, depth: int = 6) -> str:
        """``setp.gt.s32 row_bytes, 0``: an instruction by what it reads."""
        return f"{instruction.op} {', '.join(self.of(source, depth) for source in instruction.operands[1:])}"

    def constant_before(self, number: int, operand: str) -> str | None:
        """The number that an operand is just before an instruction, if the straight run of code up to there says so."""
        begins = set(self.kernel.labels.values())
        while not _NUMBER.fullmatch(operand):
            if number in begins or number == 0:
                return None
            number -= 1
            writer = self.kernel.instructions[number]
            if operand in _targets(writer):
                if writer.op.split(".")[0] != "mov" or writer.guard is not None:
                    return None
                operand = writer.operands[1]
        return operand

    def multiple(self, operand: str) -> int:
        """A power of two that every value of an operand is a multiple of, overflown or not; 0 if it is always 0.

        Whatever writes a register, and however often a loop does, it is a sum of multiples of what this finds at the leaves.
        """
        found = self._multiple(operand, frozenset())
        return found & -found

    def _multiple(self, operand: str, under_way: frozenset[str]) -> int:
        if operand in under_way:
            return 0
        if _NUMBER.fullmatch(operand):
            return abs(int(operand.rstrip("U"), 0))
        if operand not in self.writers:
            return 1
        return math.gcd(*(self._written(one, under_way | {operand}) for one in self.writers[operand]))

    def _written(self, instruction: Instruction, under_way: frozenset[str]) -> int:
        op, sources = instruction.op.split(".")[0], instruction.operands[1:]
        if ".param" in instruction.op:
            return self.multiples.get(self.parameters[sources[0].strip("[]")], 1)
        if op in _SUMS and not any("{" in part for part in instruction.operands):
            counted = sources[:2] if op == "selp" else sources
            return math.gcd(*(self._multiple(source, under_way) for source in counted))
        if op == "shl" and sources[1].isdigit():
            return self._multiple(sources[0], under_way) << int(sources[1])
        if op == "mul" and (".lo." in instruction.op or ".wide." in instruction.op):
            return math.prod(self._multiple(source, under_way) for source in sources)
        if op in ("and", "or", "xor"):
            # Below a power of two, bits are 0.
            one, other = (
                given & -given for given in (self._multiple(source, under_way) for source in sources)
            )
            return math.lcm(one, other) if op == "and" else math.gcd(one, other)
        return 1
