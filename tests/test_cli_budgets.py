"""The command line's budgets, curves and reports; files and sentences, on the small model of the other commands."""

import re
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from pyquant import cli, load
from pyquant.cli import main
from pyquant.ops.backend import missing
from pyquant.pipeline import Recipe
from tests.test_cli import SOURCE, assert_refused, plan, small

BOPS = {"0": 48 * 8 * 16, "2": 72 * 8 * 16, "6": 8 * 5}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in, with the small model and its data."""
    (tmp_path / "small.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "small", raising=False)
    images = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    np.savez(tmp_path / "data.npz", images.numpy())
    yield tmp_path
    sys.modules.pop("small", None)


def cells(out):
    """Rows of the table in what was printed."""
    lines = [line for line in out.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]


def test_several_budgets_at_once(folder, capsys):
    words = ["--recipe", "nearest", "--input-bits", "4,8", "--budget", "0.2", "--budget", "bops=0.03"]
    assert main(small(*words)) == 0
    sizes, spent = load("net.pq").sizes, sum(BOPS[site] * w * a for site, (w, a) in plan().items())
    assert sizes["weights"] <= 0.2 * sizes["float_weights"]
    assert 0.02 * 1024 * sum(BOPS.values()) < spent <= 0.03 * 1024 * sum(BOPS.values())
    assert {a for _, a in plan().values()} == {4, 8}
    said = capsys.readouterr().out
    assert re.search(r"bits: optimal \(gap \d+e[-+]\d+\), weight_bytes", said)
    assert f"bops {spent:,}" in said and "bops binds" in said
    assert re.search(r"divergence predicted [\d.e-]+, measured [\d.e-]+ before learning", said)


def test_what_the_words_mean(folder, monkeypatch):
    """Each reaches the recipe, whatever that makes of it."""
    seen = Mock(side_effect=KeyboardInterrupt)
    monkeypatch.setattr(cli, "quantize_model", seen)
    words = [
        "--recipe",
        "relaxed",
        "--max-degradation",
        "0.5",
        "--cost",
        "bops",
        "--tie",
        "0,2",
        "--cache",
        "kept",
    ]
    assert main(small(*words, "--budget", "latency_ns=2e6", "--input-bits", "2,8")) == 130
    ties = (("0", "2"),)
    limits = {"budgets": {"latency_ns": 2e6}, "max_degradation": 0.5, "cost": "bops", "ties": ties}
    assert seen.call_args.args[2] == Recipe.relaxed(None, [2, 8], **limits)
    assert seen.call_args.kwargs["cache"] == "kept"
    assert main(small()) == 130
    assert seen.call_args.args[2] == Recipe.advanced(0.13)


def test_what_is_measured_is_kept(folder):
    assert main(small("--recipe", "nearest", "--cache", "kept")) == 0
    (path,) = Path("kept").iterdir()
    first, before = Path("net.pq").read_bytes(), path.read_bytes()
    assert main(small("--recipe", "nearest", "--cache", "kept")) == 0
    assert Path("net.pq").read_bytes() == first and path.read_bytes() == before


@pytest.mark.skipif(missing("cpu") is not None, reason=str(missing("cpu")))
def test_a_budget_of_latency(folder):
    """No plan takes a nanosecond; the sentence says how many it takes, on this machine."""
    assert main(small("--recipe", "nearest", "--budget", "latency_ns=1e12", "--cache", "kept")) == 0
    assert {w for w, _ in plan().values()} == {8} and Path("kept/latency.jsonl").exists()


def test_the_tied_share_their_bits(folder):
    words = ["--recipe", "nearest", "--budget", "0.2"]
    assert main(small(*words)) == 0
    free = plan()
    assert main(small(*words, "--tie", "0,2,6")) == 0
    assert len({tuple(pair) for pair in plan().values()}) == 1 < len({tuple(pair) for pair in free.values()})


def test_pareto(folder, capsys):
    words = ["--recipe", "nearest", "--data", "data.npz", "--at", "0.05,0.13,0.25", "--measure"]
    assert main(["pareto", "small:model", *words]) == 0
    out = capsys.readouterr().out
    poor, middle, rich = cells(out)
    assert poor[0] == "0.05" and poor[-2] == "infeasible" and "smallest feasible budget is 0.125" in out
    assert (middle[0], middle[-2:]) == ("0.13", ["optimal", "weight_bytes"])
    assert int(middle[1].replace(",", "")) <= 0.13 * 4 * 1000 < int(rich[1].replace(",", "")) == 1000
    assert float(middle[2]) > float(rich[2]) > 0 and float(middle[3]) > 0 and 0 <= float(rich[4]) <= 1
    assert rich[-1] == ""


def test_pareto_of_another_cost(folder, capsys):
    """No budget of weights is kept beside it that nobody gave."""
    words = [
        "--recipe",
        "nearest",
        "--data",
        "data.npz",
        "--at",
        "1,0.05",
        "--cost",
        "bops",
        "--input-bits",
        "4,8",
    ]
    assert main(["pareto", "small:model", *words]) == 0
    free, tight = cells(capsys.readouterr().out)
    assert [int(free[i].replace(",", "")) for i in (1, 2)] == [64 * sum(BOPS.values()), 1000] and free[
        -1
    ] == ""
    assert int(tight[1].replace(",", "")) <= 0.05 * 1024 * sum(BOPS.values()) and tight[-1] == "bops"


def test_report(folder, capsys):
    assert main(small("--recipe", "w2a8", "--report")) == 0
    capsys.readouterr()
    assert main(["report", "net.pq"]) == 0
    out = capsys.readouterr().out
    told = load("net.pq").info["report"]
    rows = cells(out)
    assert [row[0] for row in rows] == [site["site"] for site in told["sites"]] == ["0", "2", "6"]
    assert [row[1:3] for row in rows] == [["8", "8"], ["2", "8"], ["8", "8"]]
    for row, site in zip(rows, told["sites"], strict=True):
        assert row[5] == f"{site['output_snr']:.1f}" and row[8] == f"{site['moves']:.3g}"
        assert row[9] == site["engine"]
    flat = re.sub(r"\s+", " ", out)
    assert told["sites"][1]["advice"] in flat and told["summary"] in flat
    assert "keep them at 8 bits with bits={'2': (8, 8)}." in flat


REFUSED = {
    "no report": (["report", "plain.pq"], "plain.pq has no report; quantise with --report"),
    "nothing there": (["report", "gone.pq"], "gone.pq"),
    "widths": (small("--input-bits", "4;8"), "--input-bits '4;8'", "4,6,8"),
    "widths and joint": (small("--input-bits", "4", "--joint"), "no --joint beside it"),
    "width 9": (small("--input-bits", "9"), "9"),
    "cost": (small("--max-degradation", "1", "--cost", "joules"), "'joules' is unknown; use weight_bytes"),
    "budget's cost": (small("--budget", "joules=3"), "'joules' is unknown"),
    "degradation": (small("--max-degradation", "-1"), "max_degradation=-1.0 makes no sense"),
    "tie of one": (small("--tie", "0"), "ties nothing"),
    "tie of none": (small("--tie", "0,nothing"), "site 'nothing' does not exist"),
    "ties that contradict": (small("--tie", "0,2", "--bits", "0=4,8", "--bits", "2=8,8"), "no pair of widths in common"),
    "limits of fixed bits": (small("--recipe", "w4a8", "--max-degradation", "1"), "fixes all bits"),
    "list of budgets": (["pareto", "small:model", "--data", "data.npz", "--at", "a,b"], "--at 'a,b' is no list"),
    "curve of fixed bits": (["pareto", "small:model", "--data", "data.npz", "--recipe", "w4a8", "--at", "0.2"], "one choice"),
    "cache is a file": (small("--recipe", "nearest", "--cache", "small.py"), "small.py", "another folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(folder, capsys, case):
    if case == "no report":
        assert main(small("--recipe", "nearest", "-o", "plain.pq")) == 0
        capsys.readouterr()
    argv, *words = REFUSED[case]
    assert_refused(argv, capsys, *words)
