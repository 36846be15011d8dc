"""The paper's experiments: single sites learned in parts, and the figures drawn of rows."""

from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from bench import paper, run
from bench.accuracy import Case
from pyquant.data import held_out, load_batches
from pyquant.grid import Grid
from pyquant.model import prepare
from pyquant.moments import parallel_moments
from pyquant.ops.backend import missing
from pyquant.steps.calibrate import calibrate


@pytest.fixture(scope="module")
def site():
    """A layer whose inputs have much in common, with its moments."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(24, 24, generator=generator)
    data = (torch.randn(256, 24, generator=generator) @ mix).abs()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(24, 16))
    q = calibrate(prepare(model.eval(), data[:1], weights=Grid(4, axis=0)), data)
    name = q.graph.sites[0]
    parts = held_out(load_batches(data, q.graph))
    return q, name, *(parallel_moments(q, part, [name])[name] for part in parts)


def test_what_is_learned_together_errs_less(site):
    moved, errors = paper.together(*site)
    assert list(errors) == ["nearest", "nearest, bias", "weights", "weights, bias", "weights, bias, scale"]
    assert errors["nearest, bias"] < errors["nearest"]
    assert errors["weights"] < errors["nearest"]
    assert errors["weights, bias"] < min(errors["weights"], errors["nearest, bias"])
    assert moved.shape == (24 * 16,) and torch.equal(moved, moved.round()) and (moved != 0).any()


def test_the_objective_with_a_fixed_bias_is_the_error_itself(site):
    """Less the same constant for all weights, and without the pull it is the mean squared error on the fit rows."""
    q, name, fit, _ = site
    bias = q.state[f"{name}.bias"].double()[None]
    weight = q.state[f"{name}.weight"].double()[None]
    objective = paper._with_bias(paper.Objective.of(fit, weight[0], damping=1e-6), fit, bias)
    other = weight + 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    gained = objective.value(other) - objective.value(weight)
    want = fit.error(other, bias) - fit.error(weight, bias)
    # The pull is a millionth of the mean diagonal, times the squared step.
    assert torch.allclose(gained, want, rtol=1e-4, atol=1e-6 * want.abs().max().item())


def rows():
    """Two methods over sizes and seeds, weights, and two budgets, of one network."""
    about = {"network": "net", "protocol": "test", "metric": "agreement", "weights": 4}
    for seed in (0, 1):
        for method in ("nearest", "sequential"):
            for size in (1, 16):
                yield {
                    **about,
                    "figure": 1,
                    "method": method,
                    "calibration_images": size,
                    "value": 0.5 + size / 100 + seed / 10,
                }
    for name, value in (("0 codes from nearest", 0.7), ("error over nearest: weights, bias", 0.2)):
        yield {**about, "figure": 2, "metric": name, "value": value}
    for share, value in ((0.25, 0.9), (0.13, 0.8)):
        yield {**about, "figure": 3, "method": "relaxed", "weight_share": share, "value": value}


def test_the_plot_has_every_curve(tmp_path):
    pytest.importorskip(
        "matplotlib", reason="matplotlib is not installed: pip install 'pyquant-engine[bench]'"
    )
    path = tmp_path / "paper.svg"
    paper.plot(list(rows()), path)
    ids = {node.get("id") for node in ElementTree.parse(path).iter()}
    assert {"axes_1", "axes_2", "axes_3"} <= ids
    text = path.read_text()
    for word in (
        "net: calibration size",
        "nearest, test",
        "sequential, test",
        "weights, bias",
        "relaxed, test",
    ):
        assert f"<!-- {word} -->" in text, word


@pytest.mark.skipif(missing("cpu") is not None, reason=str(missing("cpu")))
def test_rows_are_kept_where_nothing_can_be_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    one = {"case": "net: agreement", "backend": "cpu", "threads": 1, "seconds": 1.0, **next(rows())}
    fake = SimpleNamespace(
        cases=lambda quick: [SimpleNamespace(name="net")], measure=lambda *given: iter([one])
    )
    monkeypatch.setitem(run.RESUMED, "paper", fake)
    path = tmp_path / "rows.jsonl"
    with pytest.raises(SystemExit) as stopped:
        run.main(["paper", "--threads", "1", "--json", str(path)])
    assert stopped.value.code == 1 and len(path.read_text().splitlines()) == 1
    assert "pip install 'pyquant-engine[bench]'" in capsys.readouterr().err


def test_every_case_has_a_name_of_its_own():
    every = list(paper.cases(quick=False))
    assert len({case.name for case in every}) == len(every)
    for case in every:
        if isinstance(case, Case) and case.method != "blockwise":
            case.recipe()
