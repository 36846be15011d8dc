"""Sensitivities that are kept: a killed run goes on to the same bytes, and nothing is taken for something else."""

import os
import signal
import time
from dataclasses import replace
from functools import partialmethod
from itertools import product

import pytest
import torch

from pyquant.journal import Journal
from pyquant.model import SiteWeights, nearest_weights, with_bits
from pyquant.regions import source
from pyquant.steps import sensitivity as module
from pyquant.steps.calibrate import calibrate
from pyquant.steps.sensitivity import edges, filled, sensitivity, together
from tests.networks import build, images

CHOICES = ((2, 8), (4, 8), (8, 4))


@pytest.fixture(scope="module")
def model(prepared):
    return calibrate(prepared("inverted_bottleneck"), images(20))


def everywhere(q, *bits):
    return dict.fromkeys(q.graph.sites, bits)


def test_kept_numbers_are_those_measured_and_are_not_measured_again(model, tmp_path, monkeypatch):
    data, choices = images(20, seed=3), everywhere(model, *CHOICES)
    want = sensitivity(model, data, choices)
    assert sensitivity(model, data, choices, cache=tmp_path) == want
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(module, "run", lambda *_, **__: pytest.fail("it was run again"))
    assert sensitivity(model, data, choices, cache=tmp_path) == want
    with pytest.raises(pytest.fail.Exception, match="run again"):
        sensitivity(model, data, everywhere(model, (3, 8)), cache=tmp_path)


def test_only_what_is_missing_is_measured(model, tmp_path, monkeypatch):
    """One line of the file is lost, of the second batch: one number is measured."""
    data, choices = images(20, seed=3), everywhere(model, *CHOICES)
    want = sensitivity(model, data, choices, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 2 * len(CHOICES) * len(choices)
    path.write_bytes(b"".join(lines[:-2] + lines[-1:]))
    calls, real = [], module.run
    monkeypatch.setattr(module, "run", lambda *a, **k: calls.append(1) or real(*a, **k))
    assert sensitivity(model, data, choices, cache=tmp_path) == want
    assert len(calls) == 2


def different(model):
    """What a number depends on, changed one at a time: (model, data, found, method)."""
    data = images(20, seed=3)
    weight = model.state["expand.weight"].clone()
    weight[0, 0, 0, 0] += 1e-6
    seen = dict(model.observed)
    name = source(model.graph, model.graph.by_name["head"].inputs[0])
    seen[name] = replace(seen[name], high=seen[name].high * 2)
    moved = data.clone()
    moved[-1, 0, 0, 0] += 1e-2
    plain = nearest_weights(model, "head", model.plan["head"].weight.with_bits(4))
    found = {("head", 4): SiteWeights(plain.codes, plain.qparams, plain.bias + 1)}
    yield "model", (replace(model, state={**model.state, "expand.weight": weight}), data, None, "mse")
    yield "observed", (replace(model, observed=seen), data, None, "mse")
    yield "data", (model, moved, None, "mse")
    yield "weights", (model, data, found, "mse")
    yield "method", (model, data, None, "minmax")


@pytest.mark.parametrize("what", ["model", "observed", "data", "weights", "method"])
def test_a_number_of_something_else_is_not_taken(model, tmp_path, what):
    choices = everywhere(model, (4, 4))
    other, data, found, method = dict(different(model))[what]
    sensitivity(model, images(20, seed=3), choices, cache=tmp_path)
    kept = sensitivity(other, data, choices, found, method=method, cache=tmp_path)
    assert kept == sensitivity(other, data, choices, found, method=method)
    assert kept != sensitivity(model, images(20, seed=3), choices)


def put_and_tell(journal, put, writer, key, value):
    put(journal, key, value)
    os.write(writer, b".")
    time.sleep(0.02)


def test_killed_and_resumed_to_the_same_bytes(model, tmp_path, monkeypatch):
    """By kill -9 between two numbers and while one is measured, amid the first batch and amid the second."""
    data, choices = images(20, seed=3), everywhere(model, *CHOICES)
    want, known = sensitivity(model, data, choices, cache=tmp_path / "whole"), 0
    for stop in (4, 17):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            monkeypatch.setattr(Journal, "put", partialmethod(put_and_tell, Journal.put, writer))
            try:
                sensitivity(model, data, choices, cache=tmp_path / "cut")
            finally:
                os._exit(1)
        for _ in range(stop - known):
            assert os.read(reader, 1) == b"."
        os.kill(child, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        known = len(next((tmp_path / "cut").iterdir()).read_text().splitlines())
        assert stop <= known < 30
    assert sensitivity(model, data, choices, cache=tmp_path / "cut") == want
    (whole,), (cut,) = ((tmp_path / name).iterdir() for name in ("whole", "cut"))
    assert whole.name == cut.name and whole.read_bytes() == cut.read_bytes()


# ------------------------------------------------------------------------------------------- several sites at once
def test_one_site_together_is_its_sensitivity(model):
    data = images(20, seed=4)
    alone = sensitivity(model, data, everywhere(model, (3, 8), (8, 4)))
    plans = [{site: bits} for site in alone for bits in alone[site]]
    found = together(model, data, plans)
    assert [f.moved for f in found] == [alone[site][bits] for plan in plans for site, bits in plan.items()]


def test_all_sites_together_is_the_network_with_all_of_them(model):
    """Against the network with its weights and inputs replaced by hand, layer by layer."""
    bits = {"reduce": (8, 8), "expand": (2, 3), "depthwise": (8, 8), "project": (3, 8), "head": (4, 2)}
    data = images(20, seed=4)
    found = together(model, data, [{}, bits])
    assert found[0].moved == 0.0 and found[0].agreement == 1.0
    alone = sum(t.moved for t in together(model, data, [{site: pair} for site, pair in bits.items()]))
    assert 0 < found[1].moved != alone
    q = replace(model, plan=with_bits(model.plan, bits))
    q = replace(q, weights={s: nearest_weights(q, s, q.plan[s].weight) for s in bits})
    exact = build("inverted_bottleneck")(data)

    class ByHand(module.QuantView):
        def site_input(self, node, value):
            seen = self.q.observed[module.source(self.q.graph, node.inputs[0])]
            grid = self.q.plan[node.name].input
            return self.fake_quantize(value, module.choose_range(seen, grid, "mse"), grid)

    with torch.no_grad():
        parts = [module.run(q.graph, ByHand(q, values=False), (part,)) for part in data.split(16)]
        out = torch.cat([part[q.graph.outputs[0]] for part in parts])
        same = (out.argmax(1) == exact.argmax(1)).double().mean().item()
        loss = torch.nn.functional.kl_div(
            out.log_softmax(1), exact.log_softmax(1), reduction="batchmean", log_target=True
        )
    assert found[1].agreement == same
    assert found[1].moved == pytest.approx(loss.item(), rel=1e-4)


# --------------------------------------------------------------------------------------------- widths of both, apart
def test_of_a_full_grid_its_edges_are_measured():
    grid = tuple(product((2, 4, 8), (4, 6, 8)))
    assert set(edges(grid)) == {(2, 8), (4, 8), (8, 8), (8, 4), (8, 6)}
    for other in (((2, 8), (4, 8)), ((4, 4), (8, 8)), grid[:-1], ((3, 5),)):
        assert edges(other) == other


def test_what_is_between_is_added_up():
    moved = {(2, 8): 0.5, (4, 8): 0.125, (8, 8): 0.0625, (8, 4): 0.25}
    grid = tuple(product((2, 4, 8), (4, 8)))
    assert filled(moved, grid) == moved | {(2, 4): 0.6875, (4, 4): 0.3125}
    assert list(filled(moved, grid)) == list(grid)
    # Noise: fewer bits that move less than the widest do.
    assert filled({(2, 8): 0.0, (8, 8): 0.5, (8, 4): 0.25}, ((2, 4), (2, 8), (8, 4), (8, 8)))[2, 4] == 0.0
