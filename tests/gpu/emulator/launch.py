"""Launch a kernel of a PTX text on the emulator."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .block import Block
from .copies import AsyncCopies
from .errors import EmulatorError
from .global_memory import GlobalMemory
from .program import Bound, bind, granule
from .registers import Registers
from .report import Report
from .schedule import Schedule, instruction_of
from .shared_memory import SharedMemory
from .source import Kernel, bits, read

Argument = NDArray[np.generic] | int | float
Dimensions = int | Sequence[int]


def _three(given: Dimensions) -> tuple[int, int, int]:
    sizes = (given,) if isinstance(given, int) else tuple(given)
    x, y, z = (*sizes, 1, 1, 1)[:3]
    return x, y, z


def _parameters(kernel: Kernel, arguments: Sequence[Argument], memory: GlobalMemory) -> dict[str, int]:
    """The launch's arguments as codes. Pointers that the compiler added behind them (Triton's scratch) are null."""
    if len(arguments) > len(kernel.parameters):
        raise EmulatorError(
            f"{len(arguments)} arguments for {len(kernel.parameters)} parameters of {kernel.entry}"
        )
    codes = {}
    places: dict[int, int] = {}
    for (name, kind), given in zip(kernel.parameters, arguments, strict=False):
        pointer = isinstance(given, np.ndarray)
        if pointer != (bits(kind) == 64) and not isinstance(given, int):
            raise EmulatorError(f"parameter {name} is a .{kind}, not {type(given).__name__}")
        if isinstance(given, np.ndarray):
            if id(given) not in places:
                places[id(given)] = memory.place(given)
            codes[name] = places[id(given)]
        elif isinstance(given, float):
            codes[name] = int(np.array(given, f"f{bits(kind) // 8}").view(f"u{bits(kind) // 8}"))
        elif kind[0] == "f":
            raise EmulatorError(f"parameter {name} is a .{kind}: give it as a float")
        else:
            codes[name] = int(given) & ((1 << bits(kind)) - 1)
    for name, kind in kernel.parameters[len(arguments) :]:
        if bits(kind) != 64:
            raise EmulatorError(f"no argument for parameter {name} of type .{kind}")
        codes[name] = 0
    return codes


@lru_cache(maxsize=8)
def _bound(
    ptx: str, entry: str, shape: tuple[int, int, int], dynamic_shared: int
) -> tuple[Kernel, Block, list[Bound]]:
    """A kernel bound to a block of threads. Binding costs as much as a small launch, so the next launch takes the same again."""
    kernel = read(ptx, entry)
    threads = shape[0] * shape[1] * shape[2]
    if kernel.threads not in (None, threads):
        raise EmulatorError(f"{entry} is compiled for {kernel.threads} threads a block, not {threads}")
    lanes = -(-threads // 32) * 32
    shared = SharedMemory(kernel.static_shared + dynamic_shared, granule(kernel), lanes)
    state = Block(lanes, Registers(kernel, lanes, shape), shared, AsyncCopies(shared, lanes))
    return kernel, state, bind(kernel, state)


def run(
    ptx: str,
    entry: str,
    grid: Dimensions,
    block: Dimensions,
    arguments: Sequence[Argument],
    *,
    dynamic_shared: int = 0,
    seed: int = 0,
) -> Report:
    """Run every block of a grid, one after the other in random order.

    Args:
        ptx: the text that a compiler wrote for sm_80.
        entry: the kernel's name in it.
        grid: blocks in x, y and z.
        block: threads in x, y and z.
        arguments: numpy arrays are passed by reference and hold the results afterwards (the same array twice is the same memory);
            Python ints and floats by value. Trailing 64-bit parameters may be missing and are null.
        dynamic_shared: bytes of shared memory behind the kernel's own.
        seed: chooses the order of blocks and warps, the poison in registers and shared memory, and errors of approximate
            instructions. 0 runs all warps of a block in step.

    Returns:
        The account of the launch.

    Raises:
        EmulatorError: the program did something that no chip promises to bear, or holds a form that the emulator does not know.
            Arrays are as before.
    """
    shape, blocks = _three(block), _three(grid)
    threads = shape[0] * shape[1] * shape[2]
    if not 0 < threads <= 1024 or min(blocks) < 1:
        raise EmulatorError(f"a grid of {blocks} blocks of {threads} threads cannot be launched")
    rng = np.random.default_rng(seed)
    memory = GlobalMemory()
    # Lanes that do not run an instruction are computed along with the others and dropped: their overflows mean nothing.
    with np.errstate(all="ignore"):
        kernel, state, program = _bound(ptx, entry, shape, dynamic_shared)
        state.open(memory, _parameters(kernel, arguments, memory), rng)
        state.registers.open(blocks)
        schedule = Schedule(program, state, threads, rng, mixed=seed != 0)
        for index in rng.permutation(blocks[0] * blocks[1] * blocks[2]):
            x, rest = int(index) % blocks[0], int(index) // blocks[0]
            here = (x, rest % blocks[1], rest // blocks[1])
            state.number = int(index)
            _run_block(kernel, schedule, state, here)
    memory.give_back()
    return Report(
        entry,
        kernel.instructions,
        tuple(schedule.executed),
        memory.loaded,
        memory.stored,
        dict(state.conflicts),
    )


def _run_block(kernel: Kernel, schedule: Schedule, state: Block, here: tuple[int, int, int]) -> None:
    state.registers.start(here, state.rng)
    state.shared.start(state.rng)
    state.copies.start()
    try:
        schedule.run()
    except EmulatorError as error:
        number = instruction_of(error)
        if number is None:
            raise
        at = kernel.instructions[number]
        placed = EmulatorError(f"line {at.line}, block {here}: {error}: {at.text}")
        placed.line = at.line
        raise placed from None
