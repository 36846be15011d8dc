"""Limits of the machine: the loops do the work they count, and no rate is out of proportion to another."""

import ctypes
import shutil
import subprocess
from itertools import pairwise

import pytest

from bench import limits
from bench.limits import COMPUTE, COPY, COPY_STREAM, READ, Probe, available, caches
from bench.timing import interleaved

pytestmark = pytest.mark.skipif(not available(), reason="no C compiler for bench/limits.c")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("loop", [COPY, COPY_STREAM])
def test_copies_move_every_byte_of_their_area_and_no_other(loop, threads):
    if loop not in available():
        pytest.skip(f"no {loop} here")
    _, source, target = limits._memory()
    size = 3 * 256 * 100
    ctypes.memset(source, 7, size)
    ctypes.memset(target, 0, size + 1)
    probe = Probe(loop, threads, size)
    probe()
    assert ctypes.string_at(target, size) == bytes([7]) * size
    assert ctypes.string_at(target + size, 1) == bytes(1)
    assert probe.work == 2 * size * probe._repeats


def test_work_is_counted_for_all_threads_and_repeats():
    for name in available():
        one, two = Probe(name, 1, 1 << 16), Probe(name, 2, 1 << 16)
        per_repeat = one.work / one._repeats
        assert two.work / two._repeats == per_repeat * (2 if name in COMPUTE else 1), name
        assert one.work > 9e8 or name not in COMPUTE


def test_rates_are_in_proportion():
    """A miscounted loop, or one that a compiler emptied, is out of these by a factor of two or more; measured in one run."""
    loops = {name: Probe(name) for name in available() if name in COMPUTE}
    loops["l1"], loops["memory"] = Probe(READ, 1, caches()[0] // 2), Probe(READ)
    timings = interleaved(loops, threads=1, rounds=5)
    rate = {name: loops[name].work / timing.us for name, timing in timings.items()}
    # Four int8 products in the room of one float32, at the same instructions a cycle.
    for integer, real in (("vnni512", "fma512"), ("vnni256", "fma256")):
        if integer in rate and real in rate:
            assert 2.8 < rate[integer] / rate[real] < 5.7
    for wide, narrow in pairwise(name for name in ("fma512", "fma256") if name in rate):
        assert 0.7 < rate[wide] / rate[narrow] < 2.8
    if "amx" in rate and "vnni512" in rate:
        assert 5 < rate["amx"] / rate["vnni512"] < 17
    if "madd" in rate and "fma256" in rate:
        # Half as many lanes doing twice as much, and an addition of its own: between half and twice the float32 peak.
        assert 0.7 < rate["madd"] / rate["fma256"] < 2.8
    assert rate["l1"] > 2 * rate["memory"]


def test_the_caches_are_those_that_the_system_names():
    """By the C library's own command; where it names none, usual sizes stand in."""
    if shutil.which("getconf") is None:
        pytest.skip("no getconf here")
    names = ("LEVEL1_DCACHE_SIZE", "LEVEL2_CACHE_SIZE", "LEVEL3_CACHE_SIZE")
    for size, name in zip(caches(), names, strict=True):
        said = subprocess.run(["getconf", name], capture_output=True, text=True, check=False).stdout.strip()
        assert size == int(said) if said.isdigit() and int(said) > 0 else size >= 32 << 10


def test_what_the_machine_lacks_is_absent(monkeypatch):
    monkeypatch.setattr(limits, "_library", lambda: None)
    assert available() == [] and limits.best_int8() is None
    assert list(limits.rows((1,), True, False)) == []


def test_best_is_the_first_that_is_there(monkeypatch):
    monkeypatch.setattr(limits, "available", lambda: ["madd", "vnni256", "fma256"])
    assert limits.best_int8() == "vnni256" and limits.best_fp32() == "fma256"
