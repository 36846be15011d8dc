"""What a launch did: which instructions ran, what was moved, and where banks collided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from .source import Instruction


@dataclass(frozen=True)
class Report:
    """The account of one launch.

    Attributes:
        instructions: the kernel's instructions, in order.
        executed: how many warps ran each of them.
        loaded: bytes read from global memory, lane by lane.
        stored: bytes written to global memory.
        conflicts: number of an instruction on shared memory -> worst bank conflict (1: none).
    """

    entry: str
    instructions: tuple[Instruction, ...]
    executed: tuple[int, ...]
    loaded: int
    stored: int
    conflicts: dict[int, int]

    @cached_property
    def lines(self) -> dict[int, int]:
        """Line of the text -> how many warps ran it; lines without an instruction are missing."""
        counts: Counter[int] = Counter()
        for instruction, count in zip(self.instructions, self.executed, strict=True):
            counts[instruction.line] += count
        return dict(counts)

    @property
    def operations(self) -> Counter[str]:
        """Opcode with modifiers -> how many warps ran it."""
        counts: Counter[str] = Counter()
        for instruction, count in zip(self.instructions, self.executed, strict=True):
            counts[instruction.op] += count
        return counts

    @property
    def coverage(self) -> float:
        """Share of the instructions that ran."""
        return sum(count > 0 for count in self.executed) / len(self.executed)

    @property
    def worst_conflict(self) -> int:
        """The worst bank conflict of all: 2 means that some access takes two rounds."""
        return max(self.conflicts.values(), default=0)

    def conflicts_of(self, *opcodes: str) -> dict[str, int]:
        """Text of an instruction that begins with one of ``opcodes`` -> its worst bank conflict."""
        given = ((self.instructions[number], ways) for number, ways in self.conflicts.items())
        return {f"line {one.line}: {one.text}": ways for one, ways in given if one.op.startswith(opcodes)}

    def missed(self) -> list[Instruction]:
        """The instructions that never ran."""
        return [given for given, count in zip(self.instructions, self.executed, strict=True) if count == 0]


def together(reports: Iterable[Report]) -> Report:
    """Several launches of one kernel as one: counts added, the worst conflicts kept."""
    first, *rest = reports
    total = first
    for report in rest:
        if report.instructions != first.instructions:
            raise ValueError("reports of different kernels cannot be added")
        conflicts = {
            number: max(ways, report.conflicts.get(number, 0)) for number, ways in total.conflicts.items()
        }
        executed = tuple(a + b for a, b in zip(total.executed, report.executed, strict=True))
        moved = (total.loaded + report.loaded, total.stored + report.stored)
        total = Report(first.entry, first.instructions, executed, *moved, conflicts)
    return total
