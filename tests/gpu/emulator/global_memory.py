"""Global memory: numpy arrays at made-up addresses, with nothing usable between them."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

from .errors import EmulatorError
from .shared_memory import rows_of

Array = NDArray[np.generic]
_FIRST = 0x7F00_0000_0000
_APART = 1 << 32  # between two arrays: no index of 32 bits leads from one into the other unseen


class _Allocation:
    """One array's bytes, padded to whole 16-byte accesses."""

    def __init__(self, array: Array, base: int) -> None:
        self.array = array
        self.base = base
        self.size = array.nbytes
        self.buffer = np.zeros(-(-array.nbytes // 16) * 16, np.uint8)
        self.buffer[: self.size] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.rows = {width: rows_of(self.buffer, width) for width in (1, 2, 4, 8, 16)}
        self.written = False
        self.owner: Array | None = None  # the thread that stored each byte, from 1

    def give_back(self) -> None:
        if self.written:
            data = self.buffer[: self.size].view(self.array.dtype)
            self.array[...] = data.reshape(self.array.shape)


class GlobalMemory:
    """All arrays of one launch. Counts what is moved."""

    def __init__(self) -> None:
        self.allocations: list[_Allocation] = []
        self.bases: list[int] = []
        self.loaded = 0
        self.stored = 0

    def place(self, array: Array) -> int:
        """Put an array there; returns its address, a multiple of 256."""
        base = _FIRST + _APART * len(self.allocations)
        self.allocations.append(_Allocation(array, base))
        self.bases.append(base)
        return base

    def give_back(self) -> None:
        """Copy what was stored into the caller's arrays."""
        for allocation in self.allocations:
            allocation.give_back()

    def load(self, addresses: Array, width: int) -> Array:
        """``[n, words]``: ``width`` bytes from each address."""
        self.loaded += addresses.size * width
        only = self._only(addresses, width)
        if only is not None:
            return only.rows[width][(addresses - np.uint64(only.base)) // np.uint64(width)]
        result = np.empty((addresses.size, max(width // 8, 1)), f"u{min(width, 8)}")
        for allocation, lanes in self._each(addresses, width):
            result[lanes] = allocation.rows[width][
                (addresses[lanes] - np.uint64(allocation.base)) // np.uint64(width)
            ]
        return result

    def store(self, addresses: Array, width: int, rows: Array, threads: Array | None = None) -> None:
        """Store ``rows [n, words]``.

        Args:
            threads: the grid's numbers of the threads that store, from 1. What one stored no other may change: which of them came
                last is left to chance. None for atomic instructions, whose order does not matter.
        """
        self.stored += addresses.size * width
        for allocation, lanes in self._each(addresses, width):
            index = (addresses[lanes] - np.uint64(allocation.base)) // np.uint64(width)
            if threads is not None:
                self._own(allocation, index, width, rows[lanes], threads[lanes])
            allocation.rows[width][index] = rows[lanes]
            allocation.written = True
            if not np.array_equal(allocation.rows[width][index], rows[lanes]):
                raise EmulatorError(
                    "two threads store different values to one place of global memory in one instruction"
                )

    @staticmethod
    def _own(allocation: _Allocation, index: Array, width: int, rows: Array, threads: Array) -> None:
        if allocation.owner is None:
            allocation.owner = np.zeros(allocation.buffer.size, np.int64)
        owners = allocation.owner.reshape(-1, width)[index]
        foreign = ((owners != 0) & (owners != threads[:, None])).any(axis=1)
        if (foreign & (allocation.rows[width][index] != rows).any(axis=1)).any():
            at = int(index[foreign][0]) * width
            raise EmulatorError(
                f"race: two threads store different values at byte {at} of an array of {allocation.size}"
            )
        allocation.owner.reshape(-1, width)[index] = threads[:, None]

    def _only(self, addresses: Array, width: int) -> _Allocation | None:
        """The allocation that holds all accesses; None where they are spread or wrong."""
        if addresses.size == 0:
            return None
        self._aligned(addresses, width)
        first, last = int(addresses.min()), int(addresses.max())
        at = bisect_right(self.bases, first) - 1
        if at >= 0:
            allocation = self.allocations[at]
            if last + width <= allocation.base + allocation.size:
                return allocation
        return None

    def _each(self, addresses: Array, width: int) -> list[tuple[_Allocation, Array]]:
        only = self._only(addresses, width)
        if only is not None:
            return [(only, np.arange(addresses.size))]
        spread = []
        found = np.searchsorted(np.array(self.bases, np.uint64), addresses, side="right") - 1
        for at in np.unique(found):
            lanes = np.flatnonzero(found == at)
            allocation = self.allocations[at] if at >= 0 else None
            last = int(addresses[lanes].max())
            if allocation is None or last + width > allocation.base + allocation.size:
                raise EmulatorError(self._outside(last, width, allocation))
            spread.append((allocation, lanes))
        return spread

    @staticmethod
    def _outside(address: int, width: int, allocation: _Allocation | None) -> str:
        if allocation is None:
            return f"{width}-byte access to global memory at {address:#x}, before every array"
        off = address - allocation.base
        return f"{width}-byte access to global memory at byte {off} of an array of {allocation.size} bytes"

    @staticmethod
    def _aligned(addresses: Array, width: int) -> None:
        if int(np.bitwise_or.reduce(addresses)) & (width - 1):
            bad = addresses[(addresses & np.uint64(width - 1)) != 0][0]
            raise EmulatorError(f"{width}-byte access to global memory at {int(bad):#x} is not aligned")
