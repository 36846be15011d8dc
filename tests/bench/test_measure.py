"""Shares of the machine's limits and ratios to peers, against a clock that the test moves."""

from types import SimpleNamespace

import pytest

from bench import gemm_w4a8, measure, timing
from bench.gemm_w4a8 import slower
from bench.measure import bound_of


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    fake = SimpleNamespace(process_time=lambda: now.seconds, perf_counter=lambda: now.seconds)
    monkeypatch.setattr(timing, "time", fake)
    return now


class Work:
    """Takes so many seconds; as a probe, does so much work in them."""

    def __init__(self, clock, seconds, work=0.0):
        self.clock, self.seconds, self.work = clock, seconds, work

    def __call__(self):
        self.clock.seconds += self.seconds


def measured(clock):
    runs = {"cpu": Work(clock, 0.010), "peer": Work(clock, 0.025), "slow": Work(clock, 0.005)}
    probes = {"vnni512": Work(clock, 0.002, 4e9), "read": Work(clock, 0.5, 1e9)}
    return measure.measure(runs, probes, threads=1, rounds=3)


def test_the_share_is_of_the_limit_measured_in_the_same_run(clock):
    row = measured(clock).row(
        "case", "cpu", operations=1e10, traffic=1e6, limit="vnni512", peers=["peer", "slow"]
    )
    # 1e10 operations in 10 ms, of 4e9 in 2 ms.
    assert row["tops"] == pytest.approx(1.0) and row["limit_rate"] == pytest.approx(2.0)
    assert row["share"] == pytest.approx(0.5) and row["limit"] == "vnni512"
    assert row["gbps"] == pytest.approx(0.1) and row["us"] == pytest.approx(1e4)
    assert row["peers"] == {"peer": pytest.approx(2.5), "slow": pytest.approx(0.5)}


def test_a_limit_of_bytes_takes_the_bytes(clock):
    row = measured(clock).row("case", "peer", operations=1e10, traffic=1e7, limit="read")
    # 1e7 bytes in 25 ms, of 1e9 in half a second.
    assert row["gbps"] == pytest.approx(0.4) and row["limit_rate"] == pytest.approx(2.0)
    assert row["share"] == pytest.approx(0.2) and row["peers"] == {}


def test_without_its_limit_a_row_has_no_share(clock):
    row = measured(clock).row("case", "cpu", operations=1e10, limit="amx")
    assert row["limit"] is None and row["limit_rate"] is None and row["share"] is None
    assert row["tops"] == pytest.approx(1.0) and row["gbps"] is None


def test_limits_are_those_of_the_instruction_set(monkeypatch):
    monkeypatch.setattr(measure, "best_int8", lambda: "amx")
    monkeypatch.setattr(measure, "best_fp32", lambda: "fma512")
    best = SimpleNamespace(available_isas=lambda: ["avx2", "portable"])
    monkeypatch.setattr(measure, "extension", lambda: best)
    names = (
        "cpu-w8",
        "cpu",
        "avx512-w8a8",
        "avx_vnni-w8",
        "torch-compile",
        "torch-fp32",
        "onednn",
        "openvino-vnni",
        "torch-x86-int8",
    )
    limits = ("madd", "madd", "vnni512", "vnni256", "fma512", "fma512", "amx", "vnni512", "amx")
    assert tuple(bound_of(name) for name in names) == limits


def test_what_takes_longer_bounds_a_layer_that_reads_and_computes(clock):
    found = measured(clock)
    # 2e12 operations and 2e9 bytes a second.
    assert slower(found, {"vnni512": 1e10, "read": 1e6}) == "vnni512"
    assert slower(found, {"vnni512": 1e10, "read": 2e7}) == "read"
    assert slower(found, {"amx": 1e20, "read": 1.0}) == "read"
    assert slower(found, {"amx": 1e20}) is None


@pytest.mark.parametrize(
    ("m", "cache", "copies"),
    [(1, 480 << 20, 75), (16, 16 << 20, 10), (128, 480 << 20, 10), (4, 4 << 30, 128)],
)
def test_copies_of_weights_overflow_the_last_cache_where_reading_counts(monkeypatch, m, cache, copies):
    monkeypatch.setattr(gemm_w4a8, "caches", lambda: (1, 1, cache))
    assert gemm_w4a8.copies_of(m, 4096, quick=False) == copies
