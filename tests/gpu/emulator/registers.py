"""Registers and operands: one numpy row a register, one column a thread.

An instruction is bound once: its operands become arrays whose contents change under it. So running an instruction costs a numpy call
or two for all threads of the block.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from .errors import EmulatorError
from .shared_memory import BASE
from .source import Kernel, bits

Array = NDArray[np.generic]
_ADDRESS = re.compile(r"\[\s*([%\w$.@]+)\s*(?:\+\s*(-?\w+))?\s*\]")
_NUMBER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|\d+)U?")


def dtype_of(kind: str) -> np.dtype:
    """The numpy type that holds a PTX type: bfloat16, packed pairs and untyped bits as unsigned codes."""
    if kind == "pred":
        return np.dtype(bool)
    if kind in ("f16", "f32", "f64"):
        return np.dtype(f"f{bits(kind) // 8}")
    return np.dtype(f"{'i' if kind[0] == 's' else 'u'}{bits(kind) // 8}")


def vector(operand: str) -> list[str]:
    """``{a, b}`` as its parts, anything else as one."""
    return [part.strip() for part in operand[1:-1].split(",")] if operand.startswith("{") else [operand]


class Registers:
    """The registers of one block's threads, and everything else that an operand may name.

    Args:
        kernel: what declares them.
        threads: threads, rounded up to whole warps.
        block: threads in x, y and z.
    """

    def __init__(self, kernel: Kernel, threads: int, block: tuple[int, int, int]) -> None:
        self.kernel = kernel
        self.threads = threads
        self._files: list[Array] = []
        self._named: dict[str, Array] = {}
        for width in sorted({bits(kind) for kind in kernel.registers.values()}):
            names = [name for name, kind in kernel.registers.items() if bits(kind) == width]
            storage = bool if width == 1 else f"u{width // 8}"
            file = np.zeros((len(names), threads), storage)
            self._files.append(file)
            self._named |= {name: file[i] for i, name in enumerate(names)}
        self.written: set[str] = set()
        self.used: set[str] = set()
        index = np.arange(threads, dtype=np.uint32)
        self._block_index = [np.zeros(threads, np.uint32) for _ in range(3)]
        self._grid = [np.zeros(threads, np.uint32) for _ in range(3)]
        self._special: dict[str, Array] = {
            "%laneid": index % np.uint32(32),
            "%warpid": index // np.uint32(32),
            "%tid.x": index % np.uint32(block[0]),
            "%tid.y": index // np.uint32(block[0]) % np.uint32(block[1]),
            "%tid.z": index // np.uint32(block[0] * block[1]),
        }
        for axis, name in enumerate("xyz"):
            self._special[f"%ctaid.{name}"] = self._block_index[axis]
            self._special[f"%ntid.{name}"] = np.full(threads, block[axis], np.uint32)
            self._special[f"%nctaid.{name}"] = self._grid[axis]

    def open(self, grid: tuple[int, int, int]) -> None:
        """A new launch, of ``grid`` blocks in x, y and z."""
        for axis, count in enumerate(grid):
            self._grid[axis][:] = count

    def start(self, block_index: tuple[int, int, int], poison: np.random.Generator) -> None:
        """A new block: registers hold what another program left there."""
        for file in self._files:
            file.view(np.uint8)[:] = poison.integers(
                0, 2 if file.dtype == bool else 256, file.nbytes, np.uint8
            ).reshape(file.shape[0], -1)
        for axis, index in enumerate(block_index):
            self._block_index[axis][:] = index

    def never_written(self) -> list[str]:
        """Registers that some instruction reads and none writes."""
        return sorted(self.used - self.written)

    def read(self, operand: str, kind: str, *, wider: bool = False) -> Array:
        """An operand of a PTX type, as an array over the threads that follows the register.

        Args:
            wider: the register may be wider than the type, whose bits are its lowest (ld, st and cvt).
        """
        if operand in self._named:
            self.used.add(operand)
            return self._view(operand, kind, wider)
        if operand in self._special:
            if bits(kind) != 32:
                raise EmulatorError(f"{operand} of 32 bits is used as .{kind}")
            return self._special[operand].view(dtype_of(kind))
        if operand in self.kernel.shared:
            return np.full(self.threads, BASE + self.kernel.shared[operand], dtype_of(kind))
        return np.full(self.threads, self._constant(operand, kind))

    def constant(self, operand: str) -> bool:
        """Whether an operand is the same for all threads and all time."""
        return operand not in self._named and operand not in self._special

    def write(self, operand: str, kind: str, *, wider: bool = False) -> Array:
        """A destination register, as an array of the type's form; ``wider``: as wide as the register is."""
        if operand == "_":
            return np.zeros(self.threads, dtype_of(kind))
        if operand not in self._named:
            raise EmulatorError(f"no register {operand!r}")
        self.written.add(operand)
        if wider and bits(kind) < bits(self.kernel.registers[operand]):
            signed = "i" if kind[0] == "s" else "u"
            return self._named[operand].view(f"{signed}{bits(self.kernel.registers[operand]) // 8}")
        return self._view(operand, kind, wider=False)

    def address(self, operand: str) -> tuple[Array, int]:
        """``[base+offset]``: the base's register as unsigned numbers, and the offset."""
        match = _ADDRESS.fullmatch(operand)
        if match is None:
            raise EmulatorError(f"unknown form of address {operand!r}")
        name = match[1]
        width = bits(self.kernel.registers[name]) if name in self._named else 64
        return self.read(name, f"u{width}"), int(match[2] or "0", 0)

    def _view(self, name: str, kind: str, wider: bool) -> Array:
        declared = bits(self.kernel.registers[name])
        row = self._named[name]
        if declared == bits(kind):
            return row.view(dtype_of(kind))
        if not wider or declared < bits(kind) or "pred" in (kind, self.kernel.registers[name]):
            raise EmulatorError(f"{name} of {declared} bits is used as .{kind}")
        return row.view(dtype_of(kind))[:: declared // bits(kind)]

    def _constant(self, operand: str, kind: str) -> np.generic:
        kind_of = dtype_of(kind)
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", operand):
            code = np.uint32(int(operand[2:], 16))
            if kind_of.itemsize != 4:
                raise EmulatorError(f"{operand} is a .f32, not a .{kind}")
            return code.view(kind_of)
        if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", operand):
            return np.uint64(int(operand[2:], 16)).view(kind_of)
        if kind == "pred" and operand in ("0", "1", "-1"):
            return np.bool_(operand != "0")
        if _NUMBER.fullmatch(operand) and kind_of.kind in "iub":
            unsigned = int(operand.rstrip("U"), 0) & ((1 << bits(kind)) - 1)
            return np.array(unsigned, f"u{kind_of.itemsize}").view(kind_of)[()]
        if _NUMBER.fullmatch(operand) and kind_of == np.float16:
            return np.uint16(int(operand.rstrip("U"), 0) & 0xFFFF).view(np.float16)
        raise EmulatorError(f"unknown operand {operand!r} of type .{kind}")
