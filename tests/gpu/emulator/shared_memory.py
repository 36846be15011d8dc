"""A block's shared memory: bounds, alignment, races, copies in flight and bank conflicts.

Between two barriers a byte may be written by one thread, or read by many; anything else depends on who comes first and is a race
(but for one value that several threads write).
Races are looked for by what each thread may know of the others, whatever order they ran in, so one run finds them all. The
bookkeeping is kept per granule, the narrowest access of the kernel: accesses are aligned to their own size, so none straddles one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .errors import EmulatorError

Array = NDArray[np.generic]
BASE = 1024  # the driver keeps the first KiB to itself: a null pointer is out of bounds here
_NOBODY = -1


def rows_of(buffer: Array, width: int) -> Array:
    """A byte buffer as ``[n, words]`` accesses of ``width`` bytes, so that one index fetches one access."""
    word = min(width, 8)
    return buffer[: buffer.size // width * width].view(f"u{word}").reshape(-1, width // word)


class SharedMemory:
    """Shared memory of one block.

    Args:
        size: bytes, static and dynamic.
        granule: bytes of the kernel's narrowest access.
        threads: threads in the block, rounded up to whole warps.
    """

    def __init__(self, size: int, granule: int, threads: int) -> None:
        self.size = size
        self.granule = granule
        self.buffer = np.zeros(-(-size // 16) * 16 + 16, np.uint8)
        self.rows = {width: rows_of(self.buffer, width) for width in (1, 2, 4, 8, 16)}
        count = self.buffer.size // granule
        self.warp_of = np.arange(threads) // 32
        self.writer = np.full(count, _NOBODY, np.int32)
        self.written_at = np.zeros(count, np.int64)
        self.readers = np.zeros((threads // 32, count), bool)
        self.in_flight = np.zeros(count, np.int16)
        self._last = np.zeros(count, np.int64)  # of one instruction's accesses the last to each granule
        self.clock = 1
        self.warp_synced = np.zeros(threads // 32, np.int64)
        self._written = self._read = False
        self._flights = 0

    def start(self, poison: np.random.Generator) -> None:
        """A new block: whatever lay here before lies here still."""
        self.buffer[:] = poison.integers(0, 256, self.buffer.size, np.uint8)
        self.in_flight[:] = 0
        self._flights = 0
        self._written = self._read = True
        self.barrier()

    def barrier(self) -> None:
        """All threads met: each knows what the others did."""
        if self._written:
            self.writer.fill(_NOBODY)
        if self._read:
            self.readers.fill(False)
        self._written = self._read = False
        self.clock += 1

    def warp_barrier(self, warps: Array) -> None:
        """The threads of these warps met."""
        self.clock += 1
        self.warp_synced[warps] = self.clock

    def read(self, lanes: Array, addresses: Array, width: int) -> Array:
        """``[n, words]``: ``width`` bytes for each of ``lanes`` (thread numbers)."""
        offsets = self._inside(addresses, width)
        granules, owners, warps = self._granules(lanes, offsets, width)
        self._landed(granules)
        if self._written:
            writer = self.writer[granules]
            foreign = (writer != _NOBODY) & (writer != owners)
            if foreign.any():
                same = self.warp_of[writer] == warps
                settled = same & (self.written_at[granules] < self.warp_synced[warps])
                self._race(foreign & ~settled, granules, "reads what thread {other} wrote", owners, writer)
        self.readers[warps, granules] = True
        self._read = True
        return self.rows[width][offsets // width]

    def write(self, lanes: Array, addresses: Array, width: int, rows: Array) -> None:
        """Store ``rows [n, words]``."""
        offsets = self._inside(addresses, width)
        granules, owners, warps = self._granules(lanes, offsets, width)
        self._landed(granules)
        index = offsets // width
        target = self.rows[width]
        there_already = np.repeat((target[index] == rows).all(axis=1), max(width // self.granule, 1))
        self._claim(granules, owners, warps, there_already)
        target[index] = rows
        if not np.array_equal(target[index], rows):
            raise EmulatorError(
                "two threads store different values to one place of shared memory in one instruction"
            )

    def expect(self, lanes: Array, addresses: Array, width: int, poison: int) -> Array:
        """A copy to here was issued: the bytes are lost until it has landed; returns the offsets."""
        offsets = self._inside(addresses, width)
        granules, owners, warps = self._granules(lanes, offsets, width)
        self._landed(granules)
        self._claim(granules, owners, warps, np.zeros(granules.size, bool))
        turn = np.arange(granules.size)
        self._last[granules] = turn
        if not np.array_equal(self._last[granules], turn):
            raise EmulatorError("two copies go to one place of shared memory at once")
        self.rows[width][offsets // width] = np.frombuffer(bytes([poison]) * 8, f"u{min(width, 8)}")[0]
        self.in_flight[granules] = 1
        self._flights += granules.size
        return offsets

    def land(self, lanes: Array, offsets: Array, width: int, rows: Array) -> None:
        """The copies of ``rows`` to ``offsets`` arrived, and their own threads may know it."""
        granules, owners, _ = self._granules(lanes, offsets, width)
        self.in_flight[granules] = 0
        self._flights -= granules.size
        self.writer[granules] = owners
        self.written_at[granules] = self.clock
        self._written = True
        self.rows[width][offsets // width] = rows

    def _inside(self, addresses: Array, width: int) -> Array:
        offsets = addresses - BASE
        if int(np.bitwise_or.reduce(offsets)) & (width - 1):
            bad = addresses[(offsets & (width - 1)) != 0][0]
            raise EmulatorError(f"{width}-byte access to shared memory at {int(bad):#x} is not aligned")
        if offsets.size and (int(offsets.min()) < 0 or int(offsets.max()) + width > self.size):
            bad = offsets[(offsets < 0) | (offsets + width > self.size)][0]
            raise EmulatorError(f"{width}-byte access at byte {int(bad)} of {self.size} of shared memory")
        return offsets

    def _granules(self, lanes: Array, offsets: Array, width: int) -> tuple[Array, Array, Array]:
        first = offsets // self.granule
        if width > self.granule:
            each = width // self.granule
            first = (first[:, None] + np.arange(each)).reshape(-1)
            lanes = np.repeat(lanes, each)
        return first, lanes, self.warp_of[lanes]

    def _landed(self, granules: Array) -> None:
        if self._flights and self.in_flight[granules].any():
            at = granules[self.in_flight[granules] > 0][0] * self.granule
            raise EmulatorError(f"byte {int(at)} of shared memory is used while a copy to it is in flight")

    def _claim(self, granules: Array, owners: Array, warps: Array, there_already: Array) -> None:
        """Write there. What another warp wrote may be written again as it is: Triton stores what several warps hold so."""
        if self._written:
            writer = self.writer[granules]
            foreign = (writer != _NOBODY) & (self.warp_of[writer] != warps) & ~there_already
            self._race(foreign, granules, "overwrites what thread {other} wrote", owners, writer)
        if self._read:
            readers = self.readers[:, granules]
            readers[warps, np.arange(granules.size)] = False
            if readers.any():
                other = readers.argmax(axis=0) * 32
                self._race(
                    readers.any(axis=0),
                    granules,
                    "overwrites what warp of thread {other} read",
                    owners,
                    other,
                )
        self.writer[granules] = owners
        self.written_at[granules] = self.clock
        self._written = True

    def _race(self, bad: Array, granules: Array, what: str, owners: Array, others: Array) -> None:
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            where = int(granules[at]) * self.granule
            told = what.format(other=int(others[at]))
            raise EmulatorError(
                f"race: thread {int(owners[at])} {told} at byte {where} of shared memory, no barrier between"
            )


def conflict_ways(addresses: Array, active: Array, width: int) -> int:
    """The worst bank conflict of one access: over how many rounds its busiest bank is read.

    32 banks of 4 bytes. A warp's 8-byte accesses go in two halves and 16-byte ones in four quarters; lanes that ask for the same
    word share it.

    Args:
        addresses: ``[warps, 32]`` byte addresses.
        active: ``[warps, 32]`` bool.
        width: bytes of one lane's access.
    """
    unit = max(width, 4)
    slots = 128 // unit
    words = np.where(active, addresses // unit, -1).reshape(-1, slots)
    words = np.sort(words, axis=1)
    fresh = words >= 0
    fresh[:, 1:] &= words[:, 1:] != words[:, :-1]
    phase, lane = np.nonzero(fresh)
    if phase.size == 0:
        return 0
    return int(np.bincount(phase * slots + words[phase, lane] % slots).max())
