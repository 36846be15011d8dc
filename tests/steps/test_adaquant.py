"""The AdaQuant step: no site ends worse than nearest on held-out rows, by either flow, with as little as one image."""

from dataclasses import replace

import pytest
import torch

from pyquant.data import held_out, load_batches
from pyquant.errors import DataError
from pyquant.graph import FloatView, run
from pyquant.grid import Grid
from pyquant.model import QuantView, nearest_weights, prepare, with_bits
from pyquant.moments import parallel_moments
from pyquant.steps.adaquant import adaquant, candidates
from pyquant.steps.calibrate import calibrate
from tests.networks import InvertedBottleneck, images, settle


@pytest.fixture(scope="module")
def data():
    return images(12)


@pytest.fixture(scope="module")
def coarse(data):
    """An inverted bottleneck at 3-bit weights, calibrated."""
    q = prepare(settle(InvertedBottleneck()), data[:1], weights=Grid(3, axis=0), inputs=Grid(8, signed=False))
    return calibrate(q, data)


@pytest.fixture(scope="module")
def done(coarse, data):
    return {flow: adaquant(coarse, data, flow=flow) for flow in ("parallel", "sequential")}


def held_error(q, data, weights, site):
    """Mean squared error a row of a site on held-out rows, in the moments' own terms."""
    _, held = held_out(load_batches(data, q.graph))
    found = parallel_moments(q, held, [site])[site]
    groups, columns = found.h.shape[0], found.h.shape[-1] - 1
    real = weights.dequantized(q.plan[site].weight).reshape(groups, -1, columns)
    return found.error(real, weights.bias.reshape(groups, -1)).sum().item()


def network_error(q, data):
    """Squared error of the whole quantised network's output."""
    exact = run(q.graph, FloatView(q.state), [data])[q.graph.outputs[0]]
    return (run(q.graph, QuantView(q), [data])[q.graph.outputs[0]] - exact).square().mean().item()


def same(a, b):
    return all(
        torch.equal(x, y)
        for s in a.weights
        for x, y in zip(
            (
                a.weights[s].codes,
                a.weights[s].bias,
                a.weights[s].qparams.scale,
                a.weights[s].qparams.zero_point,
            ),
            (
                b.weights[s].codes,
                b.weights[s].bias,
                b.weights[s].qparams.scale,
                b.weights[s].qparams.zero_point,
            ),
            strict=True,
        )
    )


@pytest.mark.parametrize("flow", ["parallel", "sequential"])
def test_no_site_ends_worse_than_nearest(done, flow):
    errors = done[flow].log[-1]["errors"]
    assert set(errors) == set(done[flow].graph.sites)
    assert all(error <= nearest for error, nearest in errors.values())
    assert sum(error for error, _ in errors.values()) < 0.8 * sum(nearest for _, nearest in errors.values())


def test_final_weights_are_no_worse_than_nearest_on_held_out_rows(coarse, done, data):
    """Measured anew, for the weights that stay have seen all rows and the log's errors are of those that saw some."""
    q = done["parallel"]
    for site in q.graph.sites:
        now = held_error(q, data, q.weights[site], site)
        assert now <= held_error(q, data, nearest_weights(coarse, site, coarse.plan[site].weight), site)


@pytest.mark.parametrize("flow", ["parallel", "sequential"])
def test_the_network_gets_better_on_other_images(coarse, done, flow):
    others = images(16, seed=77)
    assert network_error(done[flow], others) < 0.8 * network_error(coarse, others)


@pytest.mark.parametrize("flow", ["parallel", "sequential"])
def test_codes_are_on_the_grid(coarse, done, flow):
    for site, weights in done[flow].weights.items():
        grid = coarse.plan[site].weight
        before = coarse.weights[site]
        assert weights.codes.dtype == torch.int8 and weights.codes.shape == before.codes.shape
        assert weights.codes.min() >= grid.qmin and weights.codes.max() <= grid.qmax
        assert weights.qparams.scale.shape == before.qparams.scale.shape
        assert torch.isfinite(weights.qparams.scale).all() and (weights.qparams.scale > 0).all()
        assert weights.bias.dtype == torch.float32 and torch.isfinite(weights.bias).all()


def test_the_log_has_the_winners(done):
    for flow, q in done.items():
        entry = q.log[-1]
        assert entry["step"] == "adaquant" and entry["flow"] == flow
        assert set(entry["engines"]) == {"nearest", "adaquant", "gptq"}
        assert sum(entry["engines"].values()) == len(q.graph.sites) and entry["engines"]["nearest"] == 0


def test_flows_differ_and_what_was_given_is_left_alone(coarse, done):
    assert not same(done["parallel"], done["sequential"])
    assert same(coarse, calibrate(replace(coarse, ranges={}, weights={}), images(12)))


@pytest.mark.parametrize("flow", ["parallel", "sequential"])
def test_twice_the_same_bytes(coarse, done, data, flow):
    assert same(adaquant(coarse, data, flow=flow), done[flow])


@pytest.mark.parametrize("flow", ["parallel", "sequential"])
def test_the_cache_budget_changes_nothing(coarse, done, data, flow):
    assert same(adaquant(coarse, data, flow=flow, cache_bytes=1), done[flow])


@pytest.mark.parametrize("flow", ["parallel", "sequential"])
def test_one_image_is_enough(coarse, data, flow):
    q = adaquant(coarse, data[:1], flow=flow)
    assert all(error <= nearest for error, nearest in q.log[-1]["errors"].values())
    assert network_error(q, data[:1]) < network_error(coarse, data[:1])


@pytest.mark.parametrize(
    "grid",
    [Grid(2, axis=0, symmetric=False), Grid(4, axis=0, signed=False), Grid(4), Grid(4, axis=0, group_size=1)],
    ids=str,
)
def test_other_weight_grids(coarse, data, grid):
    plan = coarse.plan.replace({s: replace(g, weight=grid) for s, g in coarse.plan.items()})
    q = calibrate(replace(coarse, plan=plan), data)
    found = adaquant(q, data)
    assert all(error <= nearest for error, nearest in found.log[-1]["errors"].values())
    for site, weights in found.weights.items():
        assert weights.codes.dtype == grid.code_dtype
        assert weights.qparams.scale.shape == q.weights[site].qparams.scale.shape
    run(found.graph, QuantView(found), [data])


def test_dead_channels(data):
    model = settle(InvertedBottleneck())
    with torch.no_grad():
        model.expand.weight[2] = 0.0
        model.expand_bn.bias[2] = -5.0
        model.project.weight[1] = 0.0
    q = calibrate(prepare(model, data[:1], weights=Grid(3, axis=0)), data)
    for flow in ("parallel", "sequential"):
        found = adaquant(q, data, flow=flow)
        assert all(
            torch.isfinite(w.bias).all() and (w.qparams.scale > 0).all() for w in found.weights.values()
        )
        assert all(error <= nearest for error, nearest in found.log[-1]["errors"].values())


def test_candidates_round_half_of_the_rows_and_return_the_others(coarse, data):
    widths = dict.fromkeys(coarse.graph.sites, (3, 8))
    found, unseen = candidates(coarse, data, widths)
    assert torch.equal(torch.cat([batch[0] for batch in unseen]), data[1::2])
    assert set(found) == {(site, bits) for site in coarse.graph.sites for bits in (3, 8)}
    moments = parallel_moments(coarse, [(data[::2],)], coarse.graph.sites)
    for site in coarse.graph.sites:
        errors = {}
        for bits in (3, 8):
            q = replace(coarse, plan=with_bits(coarse.plan, {site: (bits, 8)}))
            plain = nearest_weights(q, site, q.plan[site].weight)
            for name, weights in (("found", found[site, bits]), ("nearest", plain)):
                real = weights.dequantized(q.plan[site].weight)
                groups = moments[site].h.shape[0]
                real = real.reshape(groups, -1, real[0].numel())
                errors[name, bits] = moments[site].error(real, weights.bias.reshape(groups, -1)).sum()
        assert errors["found", 3] < errors["nearest", 3]
        assert errors["found", 8] < 0.1 * errors["found", 3]


@pytest.mark.parametrize("flow", ["parallel", "sequential"])
def test_progress_counts_every_site_once(coarse, data, flow):
    calls = []
    adaquant(coarse, data[:2], flow=flow, progress=lambda *call: calls.append(call))
    total = len(coarse.graph.sites)
    assert calls == [(site, i + 1, total) for i, site in enumerate(coarse.graph.sites)]


def test_bad_arguments(coarse, data):
    with pytest.raises(DataError, match="flow='blockwise' is unknown; use parallel or sequential"):
        adaquant(coarse, data, flow="blockwise")
    with pytest.raises(DataError, match="adaquant needs a calibrated model"):
        adaquant(replace(coarse, weights={}), data)
    with pytest.raises(DataError, match="empty"):
        adaquant(coarse, [])


def test_inputs_too_large_to_square_are_named(data):
    q = calibrate(prepare(settle(InvertedBottleneck()), data[:1]), data * 1e25)
    with pytest.raises(DataError, match="site 'reduce' reads or gives is too large to square"):
        adaquant(q, data * 1e25)
