"""Loops of machine code: what runs again and again, which the text of a program does not say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Instruction:
    """One machine instruction.

    Args:
        opcode: with its modifiers: ``LDG.E.128``.
        follows: indices of the instructions that can run after it; a return or an exit has none.
    """

    opcode: str
    follows: tuple[int, ...]


def reachable(code: Sequence[Instruction]) -> list[int]:
    """Indices of what can run at all, entry first, each before what follows it but for the jumps back of loops.

    Padding behind the last instruction is not among them. Code has one instruction at least.
    """
    seen, done, work = {0}, [], [(0, iter(code[0].follows))]
    while work:
        index, rest = work[-1]
        after = next((at for at in rest if at not in seen), None)
        if after is None:
            done.append(index)
            work.pop()
        else:
            seen.add(after)
            work.append((after, iter(code[after].follows)))
    return done[::-1]


def natural_loops(code: Sequence[Instruction]) -> dict[int, frozenset[int]]:
    """First instruction of each loop -> all that are part of it, inner loops too.

    A jump back is not yet a loop: compilers put waiting out of line, behind the end of a kernel, and jump back from there. A loop
    is a jump back to an instruction that every way to the jump passes through.

    Raises:
        ValueError: a loop has two ways in, so that none of its instructions is its first.
    """
    order = reachable(code)
    rank = {index: place for place, index in enumerate(order)}
    before: dict[int, list[int]] = {index: [] for index in order}
    for index in order:
        for after in code[index].follows:
            before[after].append(index)
    dominator = _dominators(order, rank, before)
    loops: dict[int, set[int]] = {}
    for last in order:
        for first in code[last].follows:
            if rank[first] > rank[last]:
                continue
            if not _dominates(first, last, dominator, rank):
                raise ValueError(f"the loop that closes at instruction {last} has more than one way in.")
            loops[first] = loops.get(first, {first}) | _body(first, last, before)
    return {first: frozenset(body) for first, body in loops.items()}


def main_loop(code: Sequence[Instruction], *wanted: Callable[[str], bool]) -> frozenset[int]:
    """The loop that holds most of what is wanted, not counting what a loop within it holds; empty where no loop holds any.

    Args:
        code: of one kernel.
        wanted: tells opcodes that count; the next is asked only where no loop holds one of the former.
    """
    loops = natural_loops(code)
    # Where loops share an instruction, the smallest is the innermost.
    inner: dict[int, int] = {}
    for first, body in sorted(loops.items(), key=lambda loop: len(loop[1])):
        for index in body:
            inner.setdefault(index, first)
    for counts in wanted:
        found: dict[int, int] = {}
        for index, first in inner.items():
            if counts(code[index].opcode):
                found[first] = found.get(first, 0) + 1
        if found:
            return loops[max(found, key=lambda first: (found[first], -first))]
    return frozenset()


def _dominators(order: Sequence[int], rank: dict[int, int], before: dict[int, list[int]]) -> dict[int, int]:
    """Instruction -> the last one that every way to it passes through (Cooper, Harvey and Kennedy, 2001)."""
    dominator = {order[0]: order[0]}
    changed = True
    while changed:
        changed = False
        for index in order[1:]:
            known = [at for at in before[index] if at in dominator]
            new = known[0]
            for at in known[1:]:
                other = at
                while new != other:
                    if rank[new] > rank[other]:
                        new = dominator[new]
                    else:
                        other = dominator[other]
            if dominator.get(index) != new:
                dominator[index] = new
                changed = True
    return dominator


def _dominates(first: int, index: int, dominator: dict[int, int], rank: dict[int, int]) -> bool:
    while rank[index] > rank[first]:
        index = dominator[index]
    return index == first


def _body(first: int, last: int, before: dict[int, list[int]]) -> set[int]:
    body, work = {first, last}, [last]
    while work:
        index = work.pop()
        if index == first:
            continue
        new = [at for at in before[index] if at not in body]
        body.update(new)
        work += new
    return body
