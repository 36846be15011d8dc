"""cp.async: copies from global to shared memory that land as late as they may, at the wait that asks for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .shared_memory import SharedMemory

Array = NDArray[np.generic]
_POISON = 0x5A


@dataclass
class _Copy:
    """What one instruction copies: lanes, their groups' numbers, places and bytes."""

    lanes: Array
    groups: Array
    offsets: Array
    width: int
    rows: Array


class AsyncCopies:
    """The copies that a block's threads have in flight."""

    def __init__(self, shared: SharedMemory, threads: int) -> None:
        self.shared = shared
        self.committed = np.zeros(threads, np.int64)
        self.flying: list[_Copy] = []

    def start(self) -> None:
        self.committed[:] = 0
        self.flying.clear()

    def issue(self, lanes: Array, addresses: Array, width: int, rows: Array) -> None:
        """Copy ``rows [n, words]`` to shared ``addresses``, into the group that each thread's next commit closes."""
        offsets = self.shared.expect(lanes, addresses, width, _POISON)
        self.flying.append(_Copy(lanes, self.committed[lanes], offsets, width, rows))

    def commit(self, lanes: Array) -> None:
        self.committed[lanes] += 1

    def wait(self, lanes: Array, pending: int | None) -> None:
        """Land all groups of these threads but the last ``pending`` committed; None: every copy, committed or not."""
        asked = np.zeros(self.committed.size, bool)
        asked[lanes] = True
        still = []
        for copy in self.flying:
            due = asked[copy.lanes]
            if pending is not None:
                due &= copy.groups < self.committed[copy.lanes] - pending
            if not due.any():
                still.append(copy)
                continue
            self.shared.land(copy.lanes[due], copy.offsets[due], copy.width, copy.rows[due])
            rest = ~due
            if rest.any():
                parts = (copy.lanes[rest], copy.groups[rest], copy.offsets[rest])
                still.append(_Copy(*parts, copy.width, copy.rows[rest]))
        self.flying = still
