"""Buffers between pages that no one may touch, and a child process that walks cases over them and says where it died.

A buffer lies flush against the page behind it, then against the page before it: a byte read or written past either end is a fault.
"""

import ctypes
import faulthandler
import mmap
import os
import signal
import struct
import traceback

import numpy as np

PAGE = mmap.PAGESIZE
PLACES = ("end", "start")
_UNTOUCHED = 0xA5  # what lies beside a result inside its pages
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Guarded:
    """``size`` bytes between two guard pages.

    Args:
        size: the most bytes that a buffer in it takes.
    """

    def __init__(self, size):
        self.size = max(-(-size // PAGE), 1) * PAGE
        self.pages = mmap.mmap(-1, self.size + 2 * PAGE)
        whole = np.frombuffer(self.pages, np.uint8)
        first = whole.ctypes.data
        for guard in (first, first + PAGE + self.size):
            if _libc.mprotect(guard, PAGE, 0) != 0:
                raise OSError(ctypes.get_errno(), "mprotect")
        self.body = whole[PAGE : PAGE + self.size]
        self.address = first + PAGE

    def span(self, size, place):
        """Address of ``size`` bytes that lie flush against one guard page, and the bytes."""
        begin = self.size - size if place == "end" else 0
        return self.address + begin, self.body[begin : begin + size]

    def put(self, array, place):
        """Copy an array there; returns its address."""
        data = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        address, room = self.span(data.size, place)
        room[:] = data
        return address

    def expect(self, expected, place):
        """Make room for a result: every byte of it wrong, and a mark beside it; returns its address."""
        address, room = self.span(expected.size, place)
        np.bitwise_xor(expected, 0xFF, out=room)
        self._beside(expected.size, place)[:] = _UNTOUCHED
        return address

    def holds(self, expected, place):
        """Whether the result is there, and nothing was written beside it."""
        _, room = self.span(expected.size, place)
        return room.tobytes() == expected.tobytes() and bool(
            (self._beside(expected.size, place) == _UNTOUCHED).all()
        )

    def _beside(self, size, place):
        """Up to 128 bytes on the open side of a buffer."""
        if place == "end":
            return self.body[max(0, self.size - size - 128) : self.size - size]
        return self.body[size : size + 128]


def bytes_of(array):
    """An array's bytes in a row."""
    return np.ascontiguousarray(array).view(np.uint8).reshape(-1)


class Report:
    """Where the child is, in memory that its parent shares."""

    def __init__(self):
        self.memory = mmap.mmap(-1, PAGE)

    def at(self, *case):
        """Note the case that comes next: numbers and short words, as ``say`` gave them."""
        text = repr(case).encode()[: PAGE - 8]
        self.memory[: 4 + len(text)] = struct.pack("i", len(text)) + text

    def read(self):
        (length,) = struct.unpack("i", self.memory[:4])
        return self.memory[4 : 4 + length].decode()


def walk(cases):
    """Run ``cases(report)`` in a child process; None, or one line that says which case failed and how.

    ``cases`` notes each case with ``report.at`` before it runs it, and raises AssertionError where a result is wrong.
    """
    report = Report()
    child = os.fork()
    if child == 0:
        # The case says more than a dump, and comes out by itself.
        faulthandler.disable()
        status = 1
        try:
            cases(report)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if status == 0:
        return None
    if os.WIFSIGNALED(status):
        return f"{signal.Signals(os.WTERMSIG(status)).name} at {report.read()}"
    return f"exit {os.WEXITSTATUS(status)} at {report.read()}"
