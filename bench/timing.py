"""Timing: interleaved rounds on one clock, medians with their spread.

On a shared machine the wall clock of one thread reads half the true speed under load, and the CPU time of the process does not:
so one thread is timed by CPU time (median), several threads by the wall clock (minimum).
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

SAMPLE_SECONDS = 0.02


def keep_memory() -> None:
    """Have malloc keep what is freed: else every fresh tensor of some megabytes costs page faults, more than the work on it."""
    malloc = ctypes.CDLL(None)
    if hasattr(malloc, "mallopt"):
        trim_threshold, mmap_threshold, most = -1, -3, 1 << 30
        malloc.mallopt(mmap_threshold, most)
        malloc.mallopt(trim_threshold, most)


@runtime_checkable
class Elsewhere(Protocol):
    """A run in another process, which times itself: :func:`calls_of` and :func:`seconds_of` there."""

    def calls(self, clock: str) -> int: ...

    def seconds(self, calls: int, clock: str) -> float: ...


@dataclass(frozen=True)
class Timing:
    """Time of one call.

    Args:
        us: microseconds; the median over the rounds, or the minimum where ``clock`` is ``"wall"``.
        spread: interquartile range over the median.
        clock: ``"cpu"`` (time of the process) or ``"wall"``.
    """

    us: float
    spread: float
    clock: str


def interleaved(runs: Mapping[str, Callable[[], Any]], threads: int, rounds: int = 9) -> dict[str, Timing]:
    """Time calls against each other: every round times each of them once, so that all see the same machine.

    A sample repeats a call until it lasts :data:`SAMPLE_SECONDS`, after one call that is not counted: that one warms the caches and
    waits out the spinning threads of the peer before it.

    Args:
        runs: name -> what to time, without arguments, here or in another process.
        threads: how many threads the calls use; chooses the clock.
        rounds: samples of each, at least 2.
    """
    clock = "cpu" if threads == 1 else "wall"
    calls = {
        key: run.calls(clock) if isinstance(run, Elsewhere) else calls_of(run, clock)
        for key, run in runs.items()
    }
    samples: dict[str, list[float]] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            sample = run.seconds if isinstance(run, Elsewhere) else partial(seconds_of, run)
            samples[key].append(sample(calls[key], clock) / calls[key] * 1e6)
    return {key: _timing(times, clock) for key, times in samples.items()}


def seconds_of(run: Callable[[], Any], calls: int, clock: str) -> float:
    """Time so many calls, after one that is not counted."""
    now = _clock(clock)
    run()
    begin = now()
    for _ in range(calls):
        run()
    return now() - begin


def calls_of(run: Callable[[], Any], clock: str) -> int:
    """How many calls fill a sample."""
    now = _clock(clock)
    run()
    calls = 1
    while True:
        begin = now()
        for _ in range(calls):
            run()
        seconds = now() - begin
        if seconds >= SAMPLE_SECONDS / 4:
            return max(1, round(calls * SAMPLE_SECONDS / seconds))
        calls *= 4


def _clock(name: str) -> Callable[[], float]:
    return time.process_time if name == "cpu" else time.perf_counter


def _timing(times: list[float], clock: str) -> Timing:
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(middle if clock == "cpu" else min(times), (high - low) / middle, clock)
