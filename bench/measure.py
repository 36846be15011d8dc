"""Runs timed together with the limits of the machine, in the same rounds; and the rows they make."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.limits import BY_ISA, COMPUTE, VNNI512, Probe, available, best_fp32, best_int8
from bench.peers.crew import WITHOUT_AMX
from bench.record import Row, figures
from bench.timing import Timing, interleaved
from pyquant.ops.backend import extension

# Runs of torch in float32.
FLOAT = ("torch-fp32", "torch-eager", "torch-channels_last", "torch-compile")


@dataclass(frozen=True)
class Measured:
    """What one interleaved run found.

    Args:
        timings: run -> its time.
        limits: name of a limit -> operations or bytes a second, measured in the same rounds.
        threads: how many threads the runs used.
    """

    timings: dict[str, Timing]
    limits: dict[str, float]
    threads: int

    def row(
        self,
        case: str,
        backend: str,
        *,
        operations: float | None = None,
        traffic: float | None = None,
        limit: str | None = None,
        peers: Sequence[str] = (),
    ) -> Row:
        """The row of one run.

        Args:
            case: what was computed.
            backend: one of the runs.
            operations, traffic: of one call; a multiply-add is two operations, traffic is in bytes.
            limit: what bounds it: ``share`` is of this. None, or one that this machine lacks: no share.
            peers: runs to compare with; the row says how many times as long as this one each took.
        """
        timing, limit = self.timings[backend], limit if limit in self.limits else None
        rate = None if limit is None else self.limits[limit]
        found = figures(timing, operations, traffic, limit, rate, by_bytes=limit not in COMPUTE)
        found["peers"] = {peer: self.timings[peer].us / timing.us for peer in peers}
        return {"case": case, "backend": backend, "threads": self.threads, **found}


def measure(
    runs: Mapping[str, Callable[[], Any]],
    limits: Mapping[str, Probe] | Iterable[str | None],
    threads: int,
    rounds: int = 9,
) -> Measured:
    """Time runs, and the limits of the machine between them.

    Args:
        runs: name -> what to time, correct already.
        limits: names of limits, of which those that this machine lacks are left out; or probes already made.
        threads: of the runs, and of the limits.
        rounds: samples of each.
    """
    if isinstance(limits, Mapping):
        probes = dict(limits)
    else:
        known = available()
        probes = {name: Probe(name, threads) for name in sorted({n for n in limits if n in known})}  # type: ignore[type-var]
    marked = {f"limit {name}": probe for name, probe in probes.items()}
    timings = interleaved({**runs, **marked}, threads, rounds)
    rates = {name: probe.work / timings[f"limit {name}"].us * 1e6 for name, probe in probes.items()}
    return Measured({key: timings[key] for key in runs}, rates, threads)


def bound_of(backend: str) -> str | None:
    """What bounds integer arithmetic of a run, by its name.

    Ours are bound by the peak of their instruction set, peers by the best that this machine has, unless they may not use it.
    """
    word = backend.partition("-")[0]
    if word == "cpu":
        return BY_ISA.get(extension().available_isas()[0])  # type: ignore[union-attr]
    if word in BY_ISA:
        return BY_ISA[word]
    if backend in FLOAT:
        return best_fp32()
    return VNNI512 if backend.endswith(WITHOUT_AMX) else best_int8()
