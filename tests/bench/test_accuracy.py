"""The accuracy suite: what its rows say, and that a run cut off goes on where it was."""

import json
from types import SimpleNamespace

import pytest
import torch

from bench import accuracy, run
from bench.accuracy import Case, cases, metrics
from pyquant.errors import MissingPackageError
from pyquant.ops.backend import missing
from pyquant.pipeline import Recipe

SCORES = torch.tensor([[4.0, 1.0], [0.0, 2.0], [3.0, 0.0], [1.0, 5.0]])
needs_cpu = pytest.mark.skipif(missing("cpu") is not None, reason=str(missing("cpu")))


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_by_hand():
    turned = SCORES.clone()
    turned[1] = torch.tensor([2.0, 0.0])
    found = metrics(SCORES, turned, [[0], [0, 1], [1], [1]])
    assert found["top1"] == 0.75 and found["agreement"] == 0.75
    p = torch.softmax(torch.tensor([0.0, 2.0]), 0)
    # Of one image in four: its two scores are the other way round.
    assert found["kl"] == pytest.approx(((p[1] - p[0]) * 2 / 4).item(), rel=1e-5)
    assert metrics(SCORES, SCORES, None) == {"agreement": 1.0, "kl": 0.0}


def test_cases_are_the_recipes_they_say():
    fixed = Case("resnet20", "parallel", 3, 4, protocol="test").recipe()
    assert (fixed.choices, fixed.flow, fixed.ends, fixed.learn) == (((3, 4),), "parallel", (8, 8), True)
    plain = Case("resnet20", "nearest", 3, 4, protocol="test").recipe()
    assert (plain.choices, plain.learn, plain.tune_norms, plain.tune_biases) == (
        ((3, 4),),
        False,
        False,
        False,
    )
    budget = Case("resnet20", "relaxed", None, 8, 0.13, "test").recipe()
    assert budget == Recipe.relaxed(0.13, 8)
    every = list(cases(quick=False))
    names = [case.name for case in every]
    assert len(set(names)) == len(names)
    assert {case.network for case in every} >= {"resnet20", "mobilenet_v2_small", "efficientnet_lite0"}
    for case in every:
        case.recipe()


@needs_cpu
def test_a_quick_run_scores_the_integer_network(tmp_path):
    path = tmp_path / "rows.jsonl"
    try:
        accuracy._evaluation("resnet20", "test")
    except MissingPackageError as error:
        pytest.skip(str(error))
    assert run.main(["accuracy", "--quick", "--threads", "1", "--json", str(path)]) == 0
    rows = {row["metric"]: row for row in rows_of(path)}
    assert set(rows) == {"top1", "agreement", "kl"}
    for row in rows.values():
        about = ("network", "method", "weights", "inputs", "budget", "n", "calibration_images")
        assert [row[key] for key in about] == ["resnet20", "sequential", 8, 8, None, 500, 64]
        assert row["weight_share"] == pytest.approx(0.25, abs=0.001) and row["seconds"] > 0
    assert rows["agreement"]["fp32"] == 1.0 and rows["agreement"]["value"] >= 0.97
    value = rows["top1"]["value"]
    assert rows["top1"]["error"] == pytest.approx((value * (1 - value) / 500) ** 0.5)
    assert (
        abs(value - rows["top1"]["fp32"]) <= 0.02 and rows["kl"]["value"] < 0.01 and rows["kl"]["fp32"] == 0.0
    )


@pytest.fixture
def study(monkeypatch):
    """A suite of three cases that counts what is measured; a case called ``stop`` dies."""
    measured = []

    def measure(case, threads, quick):
        measured.append(case.name)
        if case.name == study.dies:
            raise KeyboardInterrupt
        yield {"case": f"{case.name}: value", "backend": "cpu", "threads": threads, "seconds": 1.0}

    study = SimpleNamespace(
        measured=measured,
        dies=None,
        cases=lambda quick: [SimpleNamespace(name=name) for name in "abc"],
        measure=measure,
    )
    monkeypatch.setitem(run.RESUMED, "accuracy", study)
    monkeypatch.setattr(
        run,
        "machine",
        lambda: {
            **dict.fromkeys(("device", "isa", "torch"), "x"),
            "commit": study.commit,
            "date": study.date,
        },
    )
    study.commit, study.date = "abc1234", "2026-01-01T00:00:00Z"
    return study


@needs_cpu
def test_a_run_cut_off_goes_on_where_it_was(tmp_path, study):
    path = tmp_path / "rows.jsonl"
    study.dies = "b"
    with pytest.raises(SystemExit):
        run.main(["accuracy", "--threads", "1", "--json", str(path)])
    assert [row["of_case"] for row in rows_of(path)] == ["a"]
    study.dies, study.date = None, "2026-01-02T00:00:00Z"
    assert run.main(["accuracy", "--threads", "1", "--json", str(path)]) == 0
    assert study.measured == ["a", "b", "b", "c"]
    # One run, as far as its readers can tell.
    assert [(row["of_case"], row["date"]) for row in rows_of(path)] == [
        (n, "2026-01-01T00:00:00Z") for n in "abc"
    ]
    # Another commit is another run; so is a checkout with changes, every time.
    for commit in ("def5678", "def5678+", "def5678+"):
        study.commit = commit
        study.measured.clear()
        assert run.main(["accuracy", "--threads", "1", "--json", str(path)]) == 0
        assert study.measured == ["a", "b", "c"]
