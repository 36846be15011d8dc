"""Timing against a clock that the test moves."""

import itertools
from types import SimpleNamespace

import pytest

from bench import timing
from bench.timing import interleaved


@pytest.fixture
def clock(monkeypatch):
    """A clock in seconds that stands still unless a run moves it; ``cpu`` and ``wall`` differ."""
    now = SimpleNamespace(cpu=0.0, wall=100.0)
    fake = SimpleNamespace(process_time=lambda: now.cpu, perf_counter=lambda: now.wall)
    monkeypatch.setattr(timing, "time", fake)
    return now


def costing(clock, cpu, wall, seen=None, name=""):
    """A run that takes so many seconds of each clock, in turn where several are given."""
    costs = itertools.cycle(cpu if isinstance(cpu, list) else [cpu])

    def run():
        clock.cpu += next(costs)
        clock.wall += wall
        if seen is not None:
            seen.append(name)

    return run


def test_one_thread_is_timed_by_cpu_time_and_more_by_the_wall(clock):
    run = costing(clock, 0.004, 0.010)
    assert interleaved({"a": run}, threads=1)["a"].us == pytest.approx(4000)
    timed = interleaved({"a": run}, threads=2)["a"]
    assert timed.us == pytest.approx(10000) and timed.clock == "wall" and timed.spread == pytest.approx(0)


def test_median_and_spread_for_cpu_time_and_minimum_for_the_wall(clock, monkeypatch):
    # A sample is one call of 1 s after one that is not counted: 1, 2, 3, 4 and 9 s in the counted ones.
    monkeypatch.setattr(timing, "calls_of", lambda *arguments: 1)
    counted = [1.0, 2.0, 3.0, 4.0, 9.0]
    run = costing(clock, [cost for sample in counted for cost in (77.0, sample)], 0.0)
    timed = interleaved({"a": run}, threads=1, rounds=5)["a"]
    assert (
        timed.us == pytest.approx(3e6) and timed.spread == pytest.approx((4 - 2) / 3) and timed.clock == "cpu"
    )
    assert timing._timing([5.0, 3.0, 4.0], "wall").us == 3.0


def test_rounds_are_interleaved(clock, monkeypatch):
    monkeypatch.setattr(timing, "calls_of", lambda *arguments: 2)
    seen = []
    runs = {name: costing(clock, 0.01, 0.01, seen, name) for name in "ab"}
    interleaved(runs, threads=1, rounds=3)
    assert "".join(seen) == "aaabbb" * 3


@pytest.mark.parametrize(("cost", "calls"), [(1.0, 1), (0.02, 1), (0.002, 10), (1e-5, 2000)])
def test_short_calls_are_repeated_until_they_fill_a_sample(clock, cost, calls):
    run = costing(clock, cost, cost)
    assert timing.calls_of(run, "cpu") == pytest.approx(calls, rel=0.01)
