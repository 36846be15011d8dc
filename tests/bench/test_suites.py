"""A quick run of every suite: all have the same columns, and their shares follow from them."""

import pytest

from bench import gemm_s8, limits, run, timing
from bench.limits import BY_ISA, available
from bench.record import MACHINE, last_run
from pyquant.ops.backend import missing

pytestmark = pytest.mark.skipif(missing("cpu") is not None, reason=str(missing("cpu")))
COLUMNS = (
    "suite",
    "case",
    "backend",
    "threads",
    "us",
    "spread",
    "clock",
    "tops",
    "gbps",
    "limit",
    "limit_rate",
    "share",
    "peers",
)


@pytest.fixture(autouse=True)
def short_samples(monkeypatch):
    """Samples of a millisecond: these tests read the rows, not the figures."""
    monkeypatch.setattr(timing, "SAMPLE_SECONDS", 0.001)
    monkeypatch.setattr(limits, "OPERATIONS", dict.fromkeys(limits.LOOPS, 1e8))


def rows_of(tmp_path, *words):
    path = tmp_path / "rows.jsonl"
    assert run.main([*words, "--quick", "--json", str(path)]) == 0
    return last_run(path)


# Those that need a GPU or nothing of the machine have tests of their own.
ELSEWHERE = {"gpu", *run.STATIC}


@pytest.mark.parametrize("suite", [name for name in run.SUITES if name not in ELSEWHERE])
def test_rows_have_the_same_columns_and_shares_follow(suite, tmp_path):
    rows = rows_of(tmp_path, suite, "--threads", "1")
    assert rows
    for row in rows:
        assert tuple(row)[: len(COLUMNS)] == COLUMNS and set(MACHINE) <= set(row)
        assert row["suite"] == suite and row["peers"] == {} and row["us"] > 0
        assert row["tops"] is not None or row["gbps"] is not None
        if row["limit"] is None:
            assert row["share"] is None and (suite == "limits" or not available())
            continue
        reached = row["tops"] if row["limit"] in limits.COMPUTE else row["gbps"]
        assert row["share"] == pytest.approx(reached / row["limit_rate"])
    if suite != "limits" and available():
        ours = [row for row in rows if row["backend"].startswith("cpu")]
        bounds = {BY_ISA.get(rows[0]["isa"]), "read", "copy", "copy_stream"}
        assert ours and all(row["limit"] in bounds for row in ours)


def test_peers_have_rows_and_ratios(tmp_path, monkeypatch):
    monkeypatch.setattr(gemm_s8, "PEERS", ("fbgemm",))
    monkeypatch.setattr(gemm_s8, "QUICK", ((17, 63, 500),))
    rows = {row["backend"]: row for row in rows_of(tmp_path, "gemm_s8", "--peers")}
    assert {"cpu-w8", "cpu-w4", "fbgemm", "torch-fp32"} <= set(rows)
    for name, row in rows.items():
        want = {peer: rows[peer]["us"] / row["us"] for peer in ("fbgemm", "torch-fp32")}
        assert row["peers"] == (pytest.approx(want) if name.startswith(("cpu", "avx512")) else {}), name
