"""Bias tuning: biases alone move, towards the float network, never to a state worse on held-out rows."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from pyquant.data import held_out, load_batches
from pyquant.errors import DataError
from pyquant.fidelity import float_outputs, network_loss
from pyquant.grid import Grid, QParams
from pyquant.model import SiteWeights, prepare
from pyquant.steps.bias_tune import bias_tune
from pyquant.steps.calibrate import calibrate
from tests.networks import InvertedBottleneck, images, inputs, settle


@pytest.fixture(scope="module")
def data():
    """Thirty rows to fit, which make two batches, and ten held out."""
    return images(40)


@pytest.fixture(scope="module")
def coarse(data):
    """An inverted bottleneck at 3-bit weights, calibrated."""
    q = prepare(settle(InvertedBottleneck()), data[:1], weights=Grid(3, axis=0))
    return calibrate(q, data)


@pytest.fixture(scope="module")
def fine(prepared, data):
    """The same at 8 bits: next to nothing is wrong with it."""
    return calibrate(prepared("inverted_bottleneck"), data)


@pytest.fixture(scope="module")
def tuned(coarse, data):
    return bias_tune(coarse, data)


def with_bias(q, site, bias):
    return replace(q, weights={**q.weights, site: replace(q.weights[site], bias=bias)})


def loss(q, batches):
    return network_loss(q, batches, float_outputs(q, batches))


def held_loss(q, data):
    return loss(q, held_out(load_batches(data, q.graph))[1])


def biases(q):
    return torch.cat([q.weights[site].bias for site in q.graph.sites])


def test_only_biases_change(coarse, tuned):
    for site in coarse.graph.sites:
        now, before = tuned.weights[site], coarse.weights[site]
        assert torch.equal(now.codes, before.codes)
        assert torch.equal(now.qparams.scale, before.qparams.scale)
        assert torch.equal(now.qparams.zero_point, before.qparams.zero_point)
        assert now.bias.shape == before.bias.shape and now.bias.dtype == torch.float32
        assert not now.bias.requires_grad and torch.isfinite(now.bias).all()
        assert not torch.equal(now.bias, before.bias), site
    assert tuned.graph is coarse.graph and tuned.state is coarse.state and tuned.plan is coarse.plan
    assert tuned.ranges is coarse.ranges and tuned.log[:-1] == coarse.log


def test_what_was_given_is_left_alone(coarse, tuned, data):
    again = calibrate(replace(coarse, ranges={}, weights={}), data)
    assert torch.equal(biases(coarse), biases(again)) and not torch.equal(biases(coarse), biases(tuned))


def test_the_log_tells_the_loss_on_held_out_rows(coarse, tuned, data):
    entry = tuned.log[-1]
    assert entry["step"] == "bias_tune" and entry["epochs"] == 8
    assert entry["before"] == held_loss(coarse, data) and entry["after"] == held_loss(tuned, data)
    assert entry["after"] < entry["before"]


@pytest.mark.parametrize("rows", [1, 2, 5, 40])
def test_it_is_never_worse_on_held_out_rows(coarse, rows):
    x = images(rows, seed=50 + rows)
    assert held_loss(bias_tune(coarse, x, epochs=2), x) <= held_loss(coarse, x)


def test_other_images_profit(coarse, data):
    others = load_batches(images(64, seed=77), coarse.graph)
    assert loss(bias_tune(coarse, data, epochs=30), others) < loss(coarse, others)


def test_the_best_state_is_the_one_given_where_fit_rows_mislead():
    """A feature that only fit rows have is quantised wrong: any change of a bias costs held-out rows."""
    rows = torch.randint(0, 4, (32, 3), generator=torch.Generator().manual_seed(9)).float()
    rows[3::4, 2] = 0.0
    model = nn.Sequential(nn.Linear(3, 4)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1, 0, 2], [0, -1, 1], [2, 1, 0], [-1, 1, -2]]) / 8)
        model[0].bias.copy_(torch.tensor([1.0, 0.0, -1.0, 2.0]) / 8)
    q = calibrate(prepare(model, rows[:1]), rows)
    codes = (model[0].weight.detach() * 8).to(torch.int8)
    codes[:, 2] += torch.tensor([3, -3, 3, -3], dtype=torch.int8)
    weights = {"0": SiteWeights(codes, QParams(torch.full((4,), 0.125), torch.zeros(4)), q.weights["0"].bias)}
    ranges = {key: QParams(torch.tensor(1.0), torch.tensor(0.0)) for key in q.ranges}
    given = replace(q, weights=weights, ranges=ranges)
    fit, held = held_out(load_batches(rows, q.graph))
    assert loss(given, held) == 0.0 < loss(given, fit)
    found = bias_tune(given, rows, epochs=4)
    assert torch.equal(biases(found), biases(given))
    assert found.log[-1]["before"] == found.log[-1]["after"] == 0.0


@pytest.mark.parametrize(
    ("site", "channel", "shift"), [("head", 1, 0.5), ("project", 2, -0.5), ("reduce", 0, 0.4)]
)
def test_a_wrong_bias_is_improved(fine, data, site, channel, shift):
    """It moves back towards the right one, further with more passes, and the network's loss falls with it."""
    right = fine.weights[site].bias
    off = right.clone()
    off[channel] += shift
    given = with_bias(fine, site, off)
    start = held_loss(given, data)
    assert start > 10 * held_loss(fine, data)
    left, losses = [abs(shift)], [start]
    for epochs in (4, 24):
        found = bias_tune(given, data, epochs=epochs)
        left.append((found.weights[site].bias - right)[channel].abs().item())
        losses.append(held_loss(found, data))
    assert left[0] > left[1] > left[2] and losses[0] > losses[1] > losses[2], (left, losses)


def test_one_seed_gives_one_result(coarse, tuned, data):
    assert torch.equal(biases(bias_tune(coarse, data)), biases(tuned))
    assert not torch.equal(biases(bias_tune(coarse, data, seed=1)), biases(tuned))


def test_the_callers_random_numbers_and_gradient_mode_are_left_alone(coarse, tuned, data):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with torch.no_grad():
        found = bias_tune(coarse, iter((part, None) for part in data.split(9)))
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(biases(found), biases(tuned))


def test_no_passes_change_nothing(coarse, data):
    found = bias_tune(coarse, data, epochs=0)
    assert torch.equal(biases(found), biases(coarse))
    assert found.log[-1]["before"] == found.log[-1]["after"] == held_loss(coarse, data)


def test_progress_counts_passes(coarse, data):
    calls = []
    bias_tune(coarse, data[:4], epochs=3, progress=lambda *call: calls.append(call))
    assert calls == [("bias_tune", done, 3) for done in (1, 2, 3)]


@pytest.mark.parametrize("missing", ["ranges", "weights"])
def test_a_model_without_calibration_is_refused(coarse, data, missing):
    with pytest.raises(DataError, match="bias_tune needs a calibrated model; call calibrate"):
        bias_tune(replace(coarse, **{missing: {}}), data)


def test_bad_data(coarse):
    with pytest.raises(DataError, match="empty"):
        bias_tune(coarse, [])


def test_every_output_counts(prepared):
    """A bias that only the second output sees is put right."""
    x = [inputs("two_outputs", 16)]
    q = calibrate(prepared("two_outputs"), x)
    off = replace(q.weights["vector"], bias=q.weights["vector"].bias + 0.2)
    given = replace(q, weights={**q.weights, "vector": off})
    tuned = bias_tune(given, x)
    right, wrong, now = (m.weights["vector"].bias for m in (q, given, tuned))
    assert (now - right).norm() < (wrong - right).norm()
    assert tuned.log[-1]["after"] < tuned.log[-1]["before"]


def test_a_site_without_a_gradient_keeps_its_bias(data):
    """Behind a comparison, no bias has a gradient."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.a(x) * (self.b(x) > 0).float()

    q = calibrate(prepare(settle(Masked()), data[:1]), data)
    tuned = bias_tune(q, data)
    assert torch.equal(tuned.weights["b"].bias, q.weights["b"].bias)
