"""The limits of this machine: peaks of int8 and float32, bandwidths of reading and copying, on any number of threads.

The loops are in ``limits.c``, compiled when first asked for. What the machine or its compiler lacks is absent, not zero.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from bench.record import ROOT, Row, figures
from bench.timing import interleaved

SOURCE = Path(__file__).with_suffix(".c")
BUILD = ROOT / "build" / "bench"
# Names of the loops, in the order of the enumeration in limits.c.
VNNI512, VNNI256, AMX, MADD, FMA512, FMA256, READ, COPY, COPY_STREAM = LOOPS = (
    "vnni512", "vnni256", "amx", "madd", "fma512", "fma256", "read", "copy", "copy_stream",
)  # fmt: skip
COMPUTE = LOOPS[: LOOPS.index(READ)]
# One call does so much: milliseconds, next to which starting a thread is nothing.
OPERATIONS = {AMX: 2e10, FMA512: 1e9, FMA256: 1e9, MADD: 1e9}
WINDOW, CACHED = 64 << 20, 512 << 20
# What bounds integer work, by the instruction set of the kernels.
BY_ISA = {"amx": AMX, "avx512": VNNI512, "avx_vnni": VNNI256, "avx2": MADD}


class Probe:
    """One limit, to be timed among the runs of a round: call it, and it does ``work``.

    Args:
        loop: one of :data:`LOOPS`.
        threads: how many threads share the work.
        size: bytes of the area that is read, or of each of the two that are copied; None: an area of its own for every
            call, out of more memory than the last cache holds. Ignored by loops that compute.
        places: addresses of a caller's two areas of ``size`` bytes, in place of areas of our own.

    Attributes:
        work: operations (a multiply-add is two) or bytes of one call.
    """

    def __init__(
        self, loop: str, threads: int = 1, size: int | None = None, places: tuple[int, int] | None = None
    ) -> None:
        self._run = _library().limit_run  # type: ignore[union-attr]
        self._which, self._threads = LOOPS.index(loop), threads
        self._repeats, self._size, self._areas, self._turn = 1, size or WINDOW, 1, 0
        self._from, self._to = 0, 0
        if loop in COMPUTE:
            self._repeats = max(1, round(OPERATIONS.get(loop, 4e9) * threads / self._call(1)))
        elif places is not None:
            self._from, self._to = places
        else:
            half, self._from, self._to = _memory()
            if size is None:
                self._areas = half // WINDOW
            elif size < WINDOW // 4:
                self._repeats = CACHED // size
        self.work = self._call(self._repeats)

    def __call__(self) -> None:
        """Do the work once."""
        self._call(self._repeats)

    def _call(self, repeats: int) -> float:
        self._turn = (self._turn + 1) % self._areas
        offset = self._turn * self._size
        places = (self._from + offset, self._to + offset)
        return self._run(self._which, self._threads, repeats, *places, self._size)


def available() -> list[str]:
    """Those of :data:`LOOPS` that run here; none without a C compiler."""
    library = _library()
    return [] if library is None else [n for i, n in enumerate(LOOPS) if library.limit_available(i)]


def best_int8() -> str | None:
    """The loop that does the most int8 work a second here."""
    return next((name for name in (AMX, VNNI512, VNNI256, MADD) if name in available()), None)


def best_fp32() -> str | None:
    """The loop that does the most float32 work a second here."""
    return next((name for name in (FMA512, FMA256) if name in available()), None)


def rows(threads: Sequence[int], quick: bool, peers: bool) -> Iterator[Row]:
    """Every limit; the machine has no peers."""
    first, second, _ = caches()
    for count in threads:
        sizes = {READ: None, COPY: None, COPY_STREAM: None}
        probes = {name: Probe(name, count, sizes.get(name)) for name in available()}
        if probes:
            probes |= {
                "read_l1": Probe(READ, count, count * first // 2),
                "read_l2": Probe(READ, count, count * second // 2),
            }
        for name, timing in interleaved(probes, count, rounds=3 if quick else 15).items():
            kind = "operations" if name in COMPUTE else "traffic"
            yield {
                "case": name,
                "backend": "machine",
                "threads": count,
                **figures(timing, **{kind: probes[name].work}),
            }


def caches() -> tuple[int, int, int]:
    """Bytes of the first, second and last cache; usual ones where the system does not say."""
    library = _library()
    found = [0, 0, 0] if library is None else [library.limit_cache(level) for level in (1, 2, 3)]
    first, second, last = (
        max(size, 0) or usual for size, usual in zip(found, (32 << 10, 1 << 20, 32 << 20), strict=True)
    )
    return first, second, last


@cache
def _memory() -> tuple[int, int, int]:
    """Two areas of the same size, together twice the last cache, but at most a quarter of the machine's memory."""
    quarter = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    half = max(WINDOW, min(caches()[2] // WINDOW * WINDOW + WINDOW, quarter // 2 // WINDOW * WINDOW))
    address = _library().limit_memory(2 * half)  # type: ignore[union-attr]
    if not address:
        raise MemoryError(f"no {2 * half >> 20} MiB of memory for the limits of the machine.")
    return half, address, address + half


@cache
def _library() -> ctypes.CDLL | None:
    """``limits.c``, compiled once for each of its versions; None where no compiler makes anything of it."""
    compiler = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if compiler is None:
        return None
    made = BUILD / f"limits-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}.so"
    if not made.is_file():
        made.parent.mkdir(parents=True, exist_ok=True)
        fresh = made.with_suffix(f".{os.getpid()}")
        words = [compiler, "-O3", "-w", "-shared", "-fPIC", "-pthread", str(SOURCE), "-o", str(fresh)]
        # An assembler of before 2021 knows neither tiles nor AVX-VNNI; without them it has the rest.
        for extra in (["-DNEW_INSTRUCTIONS"], []):
            if subprocess.run(words + extra, capture_output=True, check=False).returncode == 0:
                break
        else:
            return None
        fresh.replace(made)
    library = ctypes.CDLL(str(made))
    library.limit_memory.restype, library.limit_memory.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.limit_cache.restype, library.limit_cache.argtypes = ctypes.c_long, [ctypes.c_int]
    library.limit_run.restype = ctypes.c_double
    library.limit_run.argtypes = [
        ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t,
    ]  # fmt: skip
    return library
