"""Timing on a GPU: CUDA graphs replayed in interleaved rounds between events, medians with their spread.

Products are timed with a cold L2: a sample is a graph of calls, each behind a write over twice the L2 cache, less a graph of those
writes alone. What is left is the calls, which find nothing in the cache; and what they make the cache write back, the next write
need not. Networks are timed as they are served, one batch behind the other.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.timing import Timing
from pyquant.errors import BackendError

ROUNDS, QUICK_ROUNDS, CALLS = 15, 5, 20
# Some drivers do not say how large the cache is; no cache known is as large as this.
LEAST_FLUSH = 256 << 20
Call = Callable[[], Any]


def flush_of(device: torch.device) -> Tensor:
    """What to write over for the L2 cache to hold nothing else."""
    known = torch.cuda.get_device_properties(device).L2_cache_size
    return torch.empty(2 * known or LEAST_FLUSH, dtype=torch.uint8, device=device)


def captured(call: Call, before: Call, calls: int = CALLS) -> Call:
    """Replays a graph of ``before`` and ``call`` by turns; both ran twice before it was captured, to compile and load.

    Raises:
        RuntimeError: no memory is left, or the call does what no graph can hold.
    """
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            before()
            call()
        with torch.cuda.graph(graph, stream=side):
            for _ in range(calls):
                before()
                call()
    torch.cuda.current_stream().wait_stream(side)
    graph.replay()
    # What goes wrong in a call shows up here, with the one that did it.
    torch.cuda.synchronize()
    return graph.replay


def repeated(call: Call, calls: int = CALLS) -> Call:
    """Makes a call so many times: what replays a graph of its own cannot be captured in another."""

    def sample() -> None:
        for _ in range(calls):
            call()

    for _ in range(2):
        call()
    torch.cuda.synchronize()
    return sample


def interleaved(samples: Sequence[Call], rounds: int) -> list[list[float]]:
    """Milliseconds of each sample, round by round; every round runs each of them once."""
    taken: list[list[float]] = [[] for _ in samples]
    for _ in range(rounds):
        for sample, times in zip(samples, taken, strict=True):
            times.append(_milliseconds(sample))
    return taken


def _milliseconds(sample: Call) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    sample()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def timing_of(samples: Sequence[float], empty: Sequence[float], clock: str, calls: int = CALLS) -> Timing:
    """The time of a call.

    Args:
        samples: milliseconds of ``calls`` calls, round by round.
        empty: of the same without the calls.
        clock: the row's word for how it was taken.

    Raises:
        BackendError: nothing is left of the calls.
    """
    times = [(taken - nothing) / calls * 1e3 for taken, nothing in zip(samples, empty, strict=True)]
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    if middle <= 0:
        raise BackendError(
            "a call took no longer than the write before it: the GPU is too busy to be measured."
        )
    return Timing(middle, (high - low) / middle, clock)
