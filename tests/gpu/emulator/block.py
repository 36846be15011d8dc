"""The state of one block, as the instructions bound to it see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .copies import AsyncCopies
from .errors import EmulatorError
from .global_memory import GlobalMemory
from .registers import Registers
from .shared_memory import SharedMemory, conflict_ways

Array = NDArray[np.generic]
# Which threads run an instruction: True for all, else a bool a thread.
Where = Array | bool
# An instruction bound to its operands.
Step = Callable[[Where], None]
_METERED = 16


@dataclass
class Block:
    """Everything that instructions change. One object serves launch after launch of a bound program.

    Attributes:
        threads: rounded up to whole warps.
        memory, parameters, rng: the launch's own: global memory, name -> argument as a 64-bit code, and what a chip leaves open.
        conflicts: number of an instruction -> its worst bank conflict.
        metered: the same -> how many of its runs that was looked for in.
        binding: number of the instruction that is being bound.
        number: of the block that runs, among the grid's.
    """

    threads: int
    registers: Registers
    shared: SharedMemory
    copies: AsyncCopies
    memory: GlobalMemory = field(init=False)
    parameters: dict[str, int] = field(init=False)
    rng: np.random.Generator = field(init=False)
    conflicts: dict[int, int] = field(default_factory=dict)
    metered: dict[int, int] = field(default_factory=dict)
    binding: int = 0
    number: int = 0

    def __post_init__(self) -> None:
        self.all_lanes = np.arange(self.threads)

    def open(self, memory: GlobalMemory, parameters: dict[str, int], rng: np.random.Generator) -> None:
        """A new launch."""
        self.memory, self.parameters, self.rng = memory, parameters, rng
        self.conflicts = dict.fromkeys(self.conflicts, 0)
        self.metered = dict.fromkeys(self.conflicts, 0)

    def lanes(self, where: Where) -> Array:
        """The numbers of the running threads."""
        return self.all_lanes if where is True else np.flatnonzero(where)

    def whole_warps(self, where: Where, op: str) -> Array:
        """The numbers of the running warps, which have to run with all their lanes."""
        if where is True:
            return np.arange(self.threads // 32)
        count = np.asarray(where).reshape(-1, 32).sum(axis=1)
        if ((count != 0) & (count != 32)).any():
            raise EmulatorError(f"{op} with some of a warp's threads away")
        return np.flatnonzero(count)

    def bank_meter(self, width: int) -> Callable[[Array, Where], None]:
        """Looks at the addresses of one instruction's first runs, after which patterns repeat, and notes the worst conflict."""
        number = self.binding
        self.conflicts[number] = 0

        def meter(addresses: Array, where: Where) -> None:
            if self.metered[number] < _METERED:
                self.metered[number] += 1
                active = np.broadcast_to(where, self.threads).reshape(-1, 32)
                ways = conflict_ways(addresses.reshape(-1, 32), active, width)
                self.conflicts[number] = max(self.conflicts[number], ways)

        return meter


def only(modifiers: list[str], *known: str) -> set[str]:
    """The modifiers of an instruction, every one of which has to be known.

    Raises:
        EmulatorError: one is not.
    """
    strange = [modifier for modifier in modifiers if modifier not in known]
    if strange:
        raise EmulatorError(f"unknown modifier .{strange[0]}")
    return set(modifiers)


def expect_operands(operands: tuple[str, ...], count: int) -> None:
    """Raises: EmulatorError: another number of operands."""
    if len(operands) != count:
        raise EmulatorError(f"{len(operands)} operands where {count} were expected")
