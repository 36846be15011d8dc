"""Mutants of a kernel's PTX: small faults of the kind that programs of this sort have, each of which a test has to see.

A mutant is one line changed. Lines that no trial runs are left out here and reported as missed by instruction coverage instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from .errors import EmulatorError
from .report import Report
from .source import Instruction, bits, read


@dataclass(frozen=True)
class Mutant:
    """One fault: ``before`` on ``line`` becomes ``after``, or nothing at all."""

    kind: str
    line: int
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.kind}, line {self.line}: {self.before} -> {self.after or 'nothing'}"

    def apply(self, ptx: str) -> str:
        """The text with the fault in it."""
        lines = ptx.split("\n")
        given = lines[self.line - 1]
        if " ".join(given.split("//")[0].replace(";", " ").split()) != self.before:
            raise EmulatorError(f"line {self.line} does not hold {self.before!r} alone")
        lines[self.line - 1] = f"{self.after};" if self.after else ""
        return "\n".join(lines)


_BOUNDS = {"lt": "le", "le": "lt", "gt": "ge", "ge": "gt", "lo": "ls", "ls": "lo", "hi": "hs", "hs": "hi"}
_OFFSET = re.compile(r"\[([%\w$.@]+)(?:\+(-?\d+))?\]")


def _fragment(text: str, op: str) -> Iterator[str]:
    """Two registers of one operand, changed about."""
    if not op.startswith(("mma", "ldmatrix")):
        return
    for group in re.finditer(r"\{([^}]*)\}", text):
        names = [name.strip() for name in group[1].split(",")]
        for i in range(len(names) - 1):
            swapped = [*names[:i], names[i + 1], names[i], *names[i + 2 :]]
            if swapped != names:
                yield text[: group.start()] + "{" + ", ".join(swapped) + "}" + text[group.end() :]


def _sign(text: str, op: str) -> Iterator[str]:
    """Signed read as unsigned."""
    if op.startswith("mma") and ".s32.s" in op:
        yield re.sub(r"\.s32\.s([48])\.s([48])\.s32", r".s32.u\1.s\2.s32", text)
        yield re.sub(r"\.s32\.s([48])\.s([48])\.s32", r".s32.s\1.u\2.s32", text)
    elif re.match(r"shr\.s|bfe\.s|ld\.global\.(?:\w+\.)*s8", op):
        yield re.sub(r"\.s(\d+)\b", r".u\1", text, count=1)
    elif re.match(r"cvt\.rn\.f\d+\.s|cvt\.(sat\.)?s\d+\.s8", op):
        yield re.sub(r"\.s(\d+) ", r".u\1 ", text, count=1)


def _address(text: str, op: str) -> Iterator[str]:
    """The next element instead of this one."""
    if not re.match(r"(ld|st)\.(?!param)|ldmatrix|cp\.async\.c[ag]|atom|red", op):
        return
    if op.startswith("ldmatrix") or op.startswith("cp.async"):
        step = 16
    else:
        vector = re.search(r"\.v([248])\b", op)
        step = bits(op.rsplit(".", 1)[1]) // 8 * int(vector[1] if vector else 1)
    for place in _OFFSET.finditer(text):
        moved = int(place[2] or 0) + step
        yield f"{text[: place.start()]}[{place[1]}+{moved}]{text[place.end() :]}"


def _bound(text: str, op: str) -> Iterator[str]:
    """A bound off by one."""
    name = op.split(".")[1] if op.startswith("setp") else ""
    if name in _BOUNDS and ".f" not in op:
        yield text.replace(f"setp.{name}.", f"setp.{_BOUNDS[name]}.", 1)


def _guard(text: str, op: str) -> Iterator[str]:
    """Done whatever the guard says."""
    if text.startswith("@") and not op.startswith("bra"):
        yield text.split(maxsplit=1)[1]


def _clamp(text: str, op: str) -> Iterator[str]:
    """The other bound of a clamp."""
    for one, other in (("min.", "max."), ("max.", "min.")):
        if op.startswith(one):
            yield text.replace(one, other, 1)


def _rounding(text: str, op: str) -> Iterator[str]:
    """Cut instead of rounded."""
    if ".rni." in op:
        yield text.replace(".rni.", ".rzi.", 1)
    elif op.startswith("cvt.rn.bf16"):
        yield text.replace(".rn.", ".rz.", 1)


def _wait(text: str, op: str) -> Iterator[str]:
    """One group of copies more left in flight."""
    if op == "cp.async.wait_group":
        yield re.sub(r"(\d+)$", lambda m: str(int(m[1]) + 1), text)


def _barrier(text: str, op: str) -> Iterator[str]:
    """A barrier dropped."""
    if op.startswith(("bar.sync", "barrier.sync", "bar.warp.sync")):
        yield ""


FAULTS: dict[str, Callable[[str, str], Iterator[str]]] = {
    "barrier dropped": _barrier,
    "wait too short": _wait,
    "fragment registers swapped": _fragment,
    "bound shifted": _bound,
    "sign lost": _sign,
    "address off by one": _address,
    "guard dropped": _guard,
    "clamp turned round": _clamp,
    "rounding lost": _rounding,
}
ALWAYS = ("barrier dropped", "wait too short")


def propose(ptx: str, entry: str, ran: Callable[[Instruction], bool]) -> dict[str, list[Mutant]]:
    """All mutants of the instructions that ``ran``, by kind of fault."""
    found: dict[str, list[Mutant]] = {kind: [] for kind in FAULTS}
    lines = ptx.split("\n")
    for instruction in read(ptx, entry).instructions:
        alone = (
            " ".join(lines[instruction.line - 1].split("//")[0].replace(";", " ").split()) == instruction.text
        )
        if not alone or not ran(instruction):
            continue
        for kind, fault in FAULTS.items():
            for after in fault(instruction.text, instruction.op):
                if after != instruction.text:
                    found[kind].append(Mutant(kind, instruction.line, instruction.text, after))
    return found


def sample(found: dict[str, list[Mutant]], count: int, seed: int) -> list[Mutant]:
    """All mutants of barriers and waits, which are few, and ``count`` drawn evenly from the others."""
    rng = np.random.default_rng(seed)
    always = [mutant for kind in ALWAYS for mutant in found[kind]]
    others = [mutant for kind, mutants in found.items() if kind not in ALWAYS for mutant in mutants]
    return always + [others[i] for i in sorted(rng.permutation(len(others))[:count])]


@dataclass(frozen=True)
class Outcome:
    """What became of some mutants.

    Attributes:
        total: how many there were.
        survivors: those that no trial saw.
        idle: lost signs of numbers that no trial makes negative, as a trap in their place showed: mostly parts of an index. They
            change nothing, and count neither as caught nor as missed.
        proven: those that no trial saw and of which it is known why they change nothing; they do not count either.
        disproved: those that a trial saw, whatever had been proven of them.
    """

    total: int
    survivors: list[Mutant]
    idle: list[Mutant]
    proven: list[Mutant] = field(default_factory=list)
    disproved: list[Mutant] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Share of the mutants caught."""
        judged = self.total - len(self.idle) - len(self.proven)
        return (judged - len(self.survivors)) / judged

    def __str__(self) -> str:
        judged = self.total - len(self.idle) - len(self.proven)
        caught = f"{judged - len(self.survivors)} of {judged} mutants caught"
        head = f"{caught}, {len(self.proven)} more proven to change nothing, {len(self.idle)} idle"
        return "\n  ".join([head, *(str(mutant) for mutant in self.survivors)])


@dataclass(frozen=True)
class Trial:
    """One of the cases that judge mutants.

    Attributes:
        check: runs a text; raises EmulatorError or AssertionError where something is wrong.
        report: of the text as it is.
    """

    check: Callable[[str], None]
    report: Report

    def reaches(self, mutant: Mutant) -> bool:
        """Whether it may see a fault: it runs the line, or would if the line's guard let it."""
        return mutant.kind == "guard dropped" or self.report.lines.get(mutant.line, 0) > 0


def judge(
    ptx: str,
    mutants: Iterable[Mutant],
    trials: Iterable[Trial],
    why: Callable[[Mutant], str | None] = lambda mutant: None,
) -> Outcome:
    """Try mutants on the trials that come to their lines, short ones first, until one fails.

    Args:
        why: why a mutant changes nothing, or None where that is not known. What is said to change nothing is tried all the same.
    """
    quick_first = sorted(trials, key=lambda trial: sum(trial.report.executed))
    mutants = list(mutants)
    proven = [mutant for mutant in mutants if why(mutant) is not None]
    idle = _idle([mutant for mutant in mutants if mutant not in proven], ptx, quick_first)
    alive = [mutant for mutant in mutants if mutant not in idle and _passes(mutant, ptx, quick_first)]
    return Outcome(
        len(mutants),
        [mutant for mutant in alive if mutant not in proven],
        idle,
        [mutant for mutant in proven if mutant in alive],
        [mutant for mutant in proven if mutant not in alive],
    )


def _passes(mutant: Mutant, ptx: str, trials: list[Trial]) -> bool:
    text = mutant.apply(ptx)
    try:
        for trial in trials:
            if trial.reaches(mutant):
                trial.check(text)
    except (EmulatorError, AssertionError):
        return False
    return True


def _idle(mutants: list[Mutant], ptx: str, trials: list[Trial]) -> list[Mutant]:
    """The lost signs of shifted numbers that are never negative: traps for all of them at once, less each that is sprung."""
    set_traps = {}
    for mutant in mutants:
        shift = re.fullmatch(r"shr\.(s\d+) [^,]+, ([^,]+), .*", mutant.before)
        if shift is not None and mutant.kind == "sign lost":
            trap = "{{ .reg .pred negative; setp.lt.{} negative, {}, 0; @negative trap; }} {}".format(
                *shift.groups(), mutant.before
            )
            set_traps[mutant.line] = Mutant("trap", mutant.line, mutant.before, trap)
    while set_traps:
        text = ptx
        for trap in set_traps.values():
            text = trap.apply(text)
        try:
            for trial in trials:
                if any(trial.reaches(trap) for trap in set_traps.values()):
                    trial.check(text)
            break
        except EmulatorError as error:
            if error.line not in set_traps:
                raise
            del set_traps[error.line]
    return [mutant for mutant in mutants if mutant.kind == "sign lost" and mutant.line in set_traps]
