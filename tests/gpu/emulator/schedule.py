"""The order in which a block's warps run: any that the hardware may choose, by a seed.

Threads that stand at one instruction run it together, as a convoy. Warps are dealt into teams; a team's convoys go lowest program
counter first and join where they meet, so that the lanes of a warp which a branch parted come together again behind it. Which team
goes next, and how far, is drawn. At every barrier the teams are dealt anew. Seed 0 keeps all warps in one team, which is fastest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .block import Block, Where
from .errors import EmulatorError
from .program import Bound, Flow

_BURSTS = (1, 7, 50, 100_000)
_ENDLESS = 200_000  # instructions of a block, or of each of its warps, after which it is said to hang


class _Convoy:
    """Threads at one instruction.

    Attributes:
        where: which threads, True for all.
        warps: how many warps they are of.
        waiting: the barrier at which they stand, or None.
    """

    __slots__ = ("pc", "waiting", "warps", "where")

    def __init__(self, pc: int, where: NDArray[np.bool_]) -> None:
        self.pc = pc
        self.where: Where = True if where.all() else where
        self.warps = int(where.reshape(-1, 32).any(axis=1).sum())
        self.waiting: int | None = None


class Schedule:
    """Runs the blocks of a launch on one bound program.

    Args:
        program: the bound instructions.
        block: what they change.
        threads: threads of a block, not rounded up.
        rng: decides who goes first.
        mixed: whether warps are dealt into teams at all.
    """

    def __init__(
        self, program: list[Bound], block: Block, threads: int, rng: np.random.Generator, mixed: bool
    ) -> None:
        self.program = program
        self.block = block
        self.present = np.arange(block.threads) < threads
        self.rng = rng
        self.mixed = mixed
        self.executed = [0] * len(program)

    def run(self) -> None:
        """Run one block from its first instruction until all of its threads have left."""
        self.gone = ~self.present
        self.left = _ENDLESS * (self.block.threads // 32 if self.mixed else 1)
        teams = self._deal([_Convoy(0, self.present)])
        while teams:
            ready = [team for team in teams if any(convoy.waiting is None for convoy in team)]
            if not ready:
                teams = self._release([convoy for team in teams for convoy in team])
                continue
            team = ready[self.rng.integers(len(ready))] if len(ready) > 1 else ready[0]
            self._advance(team, int(self.rng.choice(_BURSTS)) if len(teams) > 1 else _ENDLESS)
            teams = [team for team in teams if team]

    def _deal(self, convoys: list[_Convoy]) -> list[list[_Convoy]]:
        """Teams of random warps. All convoys stand at one place of the program, or hold whole warps."""
        count = self.block.threads // 32
        number = int(self.rng.choice((1, 2, count))) if self.mixed else 1
        team_of = np.repeat(self.rng.integers(0, number, count), 32)
        teams = []
        for index in range(number):
            parts = [(convoy.pc, (team_of == index) & convoy.where) for convoy in convoys]
            team = [_Convoy(pc, where) for pc, where in parts if where.any()]
            if team:
                teams.append(team)
        return teams

    def _release(self, convoys: list[_Convoy]) -> list[list[_Convoy]]:
        """Everyone waits: the barrier opens."""
        if len({convoy.waiting for convoy in convoys}) != 1:
            raise EmulatorError("warps wait at barriers of different numbers: nobody can go on")
        if (self.gone & self.present).any():
            raise EmulatorError("some threads wait at a barrier and others have left")
        self.block.shared.barrier()
        places: dict[int, NDArray[np.bool_]] = {}
        for convoy in convoys:
            places.setdefault(convoy.pc, np.zeros(self.block.threads, bool))[...] |= convoy.where
        return self._deal([_Convoy(pc + 1, where) for pc, where in places.items()])

    def _advance(self, team: list[_Convoy], burst: int) -> None:
        """Move the hindmost convoy of a team, until it meets another one or the burst ends."""
        going = [convoy for convoy in team if convoy.waiting is None]
        last = min(going, key=lambda convoy: convoy.pc)
        for other in going:
            if other is not last and other.pc == last.pc:
                self._join(team, last, other)
                return
        limit = min((convoy.pc for convoy in going if convoy is not last), default=len(self.program))
        self._run(team, last, limit, burst)

    @staticmethod
    def _join(team: list[_Convoy], one: _Convoy, other: _Convoy) -> None:
        team.remove(one)
        team.remove(other)
        team.append(_Convoy(one.pc, np.asarray(one.where) | np.asarray(other.where)))

    def _run(self, team: list[_Convoy], convoy: _Convoy, limit: int, burst: int) -> None:
        program, executed, pc, everyone, warps = (
            self.program,
            self.executed,
            convoy.pc,
            convoy.where,
            convoy.warps,
        )
        stop = self.left - burst
        try:
            while pc < limit and self.left > stop:
                bound = program[pc]
                self.left -= 1
                where = everyone
                if bound.guard is not None:
                    where = (~bound.guard if bound.negated else bound.guard) & everyone
                    if bound.flow is Flow.NEXT and not where.any():
                        pc += 1
                        continue
                executed[pc] += warps
                if bound.flow is Flow.NEXT:
                    bound.step(where)
                    pc += 1
                    continue
                convoy.pc = pc
                taken = True if bound.guard is None else self._taken(where, everyone)
                if bound.flow is Flow.BARRIER:
                    self._arrive(convoy, bound, taken)
                    return
                if taken is None:
                    self._part(team, convoy, where, bound)
                    return
                if bound.flow is Flow.EXIT and taken:
                    self.gone |= everyone
                    team.remove(convoy)
                    return
                pc = bound.target if taken else pc + 1
        except EmulatorError as error:
            raise _At(pc, str(error)) from None
        convoy.pc = pc
        if pc >= len(program):
            raise _At(len(program) - 1, "the program runs past its end")
        if self.left <= 0:
            raise _At(pc, f"no end after {_ENDLESS} instructions of one block")

    @staticmethod
    def _taken(where: NDArray[np.bool_], everyone: Where) -> bool | None:
        """True if all threads of the convoy do it, False if none, None if some."""
        taking = np.count_nonzero(where)
        if taking == 0:
            return False
        asked = where.size if everyone is True else np.count_nonzero(everyone)
        return True if taking == asked else None

    def _part(self, team: list[_Convoy], convoy: _Convoy, where: NDArray[np.bool_], bound: Bound) -> None:
        """A branch that some take and some do not."""
        team.remove(convoy)
        team.append(_Convoy(convoy.pc + 1, np.asarray(convoy.where) & ~where))
        if bound.flow is Flow.EXIT:
            self.gone |= where
        else:
            team.append(_Convoy(bound.target, where))

    def _arrive(self, convoy: _Convoy, bound: Bound, taken: bool | None) -> None:
        if taken is not True:
            raise EmulatorError("a barrier under a condition that not all threads meet")
        here = np.broadcast_to(convoy.where, self.block.threads).reshape(-1, 32)
        expected = (self.present & ~self.gone).reshape(-1, 32)
        if (here.any(axis=1) & (here != expected).any(axis=1)).any():
            raise EmulatorError("some threads of a warp are at a barrier and others elsewhere")
        convoy.waiting = bound.target


class _At(EmulatorError):
    """An error with the number of the instruction where it happened."""

    def __init__(self, pc: int, message: str) -> None:
        super().__init__(message)
        self.pc = pc


def instruction_of(error: EmulatorError) -> int | None:
    """The number of the instruction where an error happened, if it did at one."""
    return error.pc if isinstance(error, _At) else None
