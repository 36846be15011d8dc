"""A kernel bound to a block: every instruction as something to run or somewhere to go."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from .block import Array, Block, Step, Where
from .conversions import CONVERSIONS
from .errors import EmulatorError
from .floats import COMPARISONS, FLOATS
from .integers import INTEGERS, MOVES
from .source import Instruction, Kernel, bits
from .transfers import TRANSFERS
from .warps import WARPS, warp_barrier

_ANY_TYPE = MOVES | COMPARISONS | CONVERSIONS | TRANSFERS | WARPS
_FENCES = re.compile(r"(membar|fence)(\.(sc|acq_rel|acquire|release|cta|gpu|sys|gl))+")
_BARRIERS = re.compile(r"bar\.sync|barrier(\.cta)?\.sync(\.aligned)?")
_ACCESS = re.compile(r"(?:ld|st)(?:\.\w+)*\.shared(?:::cta)?\.(?:\w+\.)*?(?:v([248])\.)?[busf]+(\d+)$")


class Flow(Enum):
    """How an instruction moves the program counter."""

    NEXT = 0
    BRANCH = 1
    EXIT = 2
    BARRIER = 3


@dataclass(frozen=True, slots=True)
class Bound:
    """An instruction ready to run.

    Attributes:
        guard: a row of predicates, or None.
        negated: it runs where the guard is false.
        step: what it does; None for control flow.
        target: where a branch goes, or the number of a barrier.
    """

    flow: Flow
    guard: Array | None
    negated: bool
    step: Step | None
    target: int


def granule(kernel: Kernel) -> int:
    """Bytes of the narrowest access to shared memory, 16 at the most."""
    least = 16
    for instruction in kernel.instructions:
        access = _ACCESS.fullmatch(instruction.op)
        if access:
            least = min(least, int(access[1] or 1) * int(access[2]) // 8)
        elif instruction.op.startswith("cp.async") and ".shared" in instruction.op:
            least = min(least, int(instruction.operands[2], 0))
        elif ".shared" in instruction.op and not instruction.op.startswith(("ldmatrix", "cvta")):
            least = 1
    return least


def _step(block: Block, instruction: Instruction) -> Step:
    opcode, *modifiers = instruction.op.split(".")
    if instruction.op == "bar.warp.sync":
        return warp_barrier(block, instruction.operands)
    if instruction.op == "trap":
        return _trap
    if _FENCES.fullmatch(instruction.op):
        return lambda where: None
    binder = _ANY_TYPE.get(opcode)
    kind = modifiers[-1] if modifiers else ""
    if binder is None:
        if not kind:
            raise EmulatorError(f"unknown instruction {instruction.op}")
        bits(kind)
        floating = kind[0] == "f" or kind.startswith("bf16")
        binder = (FLOATS if floating else INTEGERS).get(opcode)
        if binder is None:
            raise EmulatorError(f"unknown instruction {instruction.op}")
    return binder(block, modifiers[:-1], kind, instruction.operands)


def _trap(where: Where) -> None:
    raise EmulatorError("a trap was reached")


def _control(kernel: Kernel, instruction: Instruction, block: Block) -> tuple[Flow, int] | None:
    operands = instruction.operands
    if instruction.op in ("bra", "bra.uni"):
        if operands[0] not in kernel.labels:
            raise EmulatorError(f"no label {operands[0]!r}")
        return Flow.BRANCH, kernel.labels[operands[0]]
    if instruction.op in ("ret", "exit"):
        return Flow.EXIT, 0
    if _BARRIERS.fullmatch(instruction.op):
        if len(operands) != 1 or not operands[0].isdigit():
            raise EmulatorError("a barrier of some threads is not known")
        return Flow.BARRIER, int(operands[0])
    return None


def bind(kernel: Kernel, block: Block) -> list[Bound]:
    """Bind every instruction to the block's arrays.

    Raises:
        EmulatorError: an instruction, a modifier or a form of operand is not known; a register is read and never written.
    """
    program = []
    for number, instruction in enumerate(kernel.instructions):
        try:
            block.binding = number
            guard = block.registers.read(instruction.guard, "pred") if instruction.guard else None
            control = _control(kernel, instruction, block)
            flow, target = control or (Flow.NEXT, 0)
            step = None if control else _step(block, instruction)
        except EmulatorError as error:
            raise EmulatorError(f"line {instruction.line}: {error}: {instruction.text}") from None
        program.append(Bound(flow, guard, instruction.negated, step, target))
    unwritten = block.registers.never_written()
    if unwritten:
        raise EmulatorError(f"registers that nothing writes are read: {', '.join(unwritten[:5])}")
    return program
