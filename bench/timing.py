"""Timing: interleaved rounds on one clock, medians with their spread.

On a shared machine the wall clock of one thread reads half the true speed under load, and the CPU time of the process does not:
so one thread is timed by CPU time (median), several threads by the wall clock (minimum).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

SAMPLE_SECONDS = 0.02


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
        runs: name -> what to time, without arguments.
        threads: how many threads the calls use; chooses the clock.
        rounds: samples of each, at least 2.
    """
    name, clock = ("cpu", time.process_time) if threads == 1 else ("wall", time.perf_counter)
    calls = {key: _calls(run, clock) for key, run in runs.items()}
    samples: dict[str, list[float]] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            run()
            begin = clock()
            for _ in range(calls[key]):
                run()
            samples[key].append((clock() - begin) / calls[key] * 1e6)
    return {key: _timing(times, name) for key, times in samples.items()}


def _calls(run: Callable[[], Any], clock: Callable[[], float]) -> int:
    """How many calls fill a sample."""
    run()
    calls = 1
    while True:
        begin = clock()
        for _ in range(calls):
            run()
        seconds = clock() - begin
        if seconds >= SAMPLE_SECONDS / 4:
            return max(1, round(calls * SAMPLE_SECONDS / seconds))
        calls *= 4


def _timing(times: list[float], clock: str) -> Timing:
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(middle if clock == "cpu" else min(times), (high - low) / middle, clock)
