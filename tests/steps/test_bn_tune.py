"""BN tuning on a network of whole numbers, whose quantised twin is exact: wrongs are known, and cures."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from pyquant.data import held_out, load_batches
from pyquant.errors import DataError
from pyquant.fidelity import float_outputs, network_loss
from pyquant.graph import FloatView, run
from pyquant.grid import Grid, QParams
from pyquant.model import QuantView, SiteWeights, prepare
from pyquant.steps.bn_tune import MAX_RATIO, bn_tune
from pyquant.steps.calibrate import calibrate
from tests.networks import InvertedBottleneck, images, inputs, settle

EPS = torch.finfo(torch.float32).eps
# Of the last layer's weights and bias.
STEP = 1 / 64
# Four roundings in float64 of means below 512; what is left of a bias that should be 0.
ROUNDING = 4 * 512 * 2.0**-53
GRIDS = [Grid(8, axis=0), Grid(8, axis=0, group_size=1), Grid(8, axis=0, signed=False, symmetric=True)]


def whole_numbers(model):
    """Give every layer weights of -1, 0 and 1 and small whole biases, from a seed; the last in steps of 1/64.

    Scores of a few units keep their softmax away from 0 and 1, where every divergence is 0.
    """
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.weight.copy_(torch.randint(-1, 2, layer.weight.shape, generator=generator))
                layer.bias.copy_(torch.randint(0, 3, layer.bias.shape, generator=generator))
        for tensor in model[-1].parameters():
            tensor.mul_(STEP)
    return model.eval()


def exact(model, data, weights=GRIDS[0], steps=None):
    """The model on grids that lose nothing: a weight is its code, an activation's step is 1 (or ``steps``).

    ``weights`` is one grid, or one for each site.
    """
    q = prepare(model, data[:1])
    grids = dict.fromkeys(q.graph.sites, weights) if isinstance(weights, Grid) else weights
    q = replace(q, plan=q.plan.replace({s: replace(q.plan[s], weight=g) for s, g in grids.items()}))
    q = calibrate(q, data)
    made = {}
    for site, grid in grids.items():
        weight = q.state[f"{site}.weight"]
        shape = grid.scale_shape(tuple(weight.shape))
        middle = 0 if grid.signed else 128
        step = STEP if site == q.graph.sites[-1] else 1.0
        codes = (weight / step + middle).to(grid.code_dtype)
        qparams = QParams(torch.full(shape, step), torch.full(shape, float(middle)))
        made[site] = SiteWeights(codes, qparams, q.state[f"{site}.bias"])
    one = torch.tensor(1.0), torch.tensor(0.0)
    ranges = {key: QParams(one[0] * (steps or {}).get(key, 1.0), one[1]) for key in q.ranges}
    return replace(q, weights=made, ranges=ranges)


@pytest.fixture(scope="module")
def data():
    """Whole numbers from 0 to 3: nine images to fit and three held out."""
    return torch.randint(0, 4, (12, 2, 4, 4), generator=torch.Generator().manual_seed(6)).float()


def layers():
    """Convolution, depthwise convolution, classifier: sites ``"0"``, ``"2"`` and ``"5"``."""
    return whole_numbers(
        nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1, groups=4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64, 5),
        )
    )


@pytest.fixture(scope="module", params=GRIDS, ids=str)
def twin(request, data):
    return exact(layers(), data, request.param)


def wrong(q, site, factor=1.0, shift=0.0):
    """The model with one site's scales and bias times ``factor``, then its bias shifted, by channel."""
    old = q.weights[site]
    factor, shift = (torch.as_tensor(f, dtype=torch.float32).expand(len(old.bias)) for f in (factor, shift))
    scale, each = old.qparams.scale, factor[0] if old.qparams.scale.dim() == 0 else factor
    scale = scale * (each[:, None] if scale.dim() == 2 else each)
    new = SiteWeights(old.codes, QParams(scale, old.qparams.zero_point), old.bias * factor + shift)
    return replace(q, weights={**q.weights, site: new})


def same(a, b):
    """Are two sites' weights the same bytes?"""
    return (
        torch.equal(a.codes, b.codes)
        and torch.equal(a.qparams.scale, b.qparams.scale)
        and torch.equal(a.qparams.zero_point, b.qparams.zero_point)
        and torch.equal(a.bias, b.bias)
    )


def held_loss(q, data):
    held = held_out(load_batches(data, q.graph))[1]
    return network_loss(q, held, float_outputs(q, held))


# -------------------------------------------------------------------------------------- identity
def test_the_twin_is_exact(twin, data):
    """What the other tests stand on: no rounding anywhere, and no clipping."""
    values, twins = (
        run(twin.graph, view, [data], keep=None) for view in (FloatView(twin.state), QuantView(twin))
    )
    assert all(torch.equal(values[name], twins[name]) for name in values)
    # Every channel varies, so its spread can be matched.
    for site in twin.graph.sites:
        assert (values[site].transpose(0, 1).flatten(1).std(1) > 0).all()


def test_nothing_changes_where_nothing_is_wrong(twin, data):
    """Sums of whole numbers below 2^24 are exact: mean and spread of both networks are the same bits."""
    tuned = bn_tune(twin, data)
    assert all(same(tuned.weights[site], twin.weights[site]) for site in twin.graph.sites)
    assert tuned.log[-1] == {"step": "bn_tune", "sites": 0, "before": 0.0, "after": 0.0}


@pytest.mark.parametrize("site", ["0", "2", "5"])
def test_a_wrong_bias_comes_back_and_the_scales_stay(twin, data, site):
    """Only the mean is off: the spread's correction is exactly 1, on this site and on every other."""
    shift = torch.tensor([6.0, 0.0, -4.0, 3.0, 0.0])[: len(twin.weights[site].bias)]
    shift = shift * (STEP if site == "5" else 1.0)
    tuned = bn_tune(wrong(twin, site, shift=shift), data)
    for name in twin.graph.sites:
        assert torch.equal(tuned.weights[name].qparams.scale, twin.weights[name].qparams.scale)
        assert (tuned.weights[name].bias - twin.weights[name].bias).abs().max() <= ROUNDING
    assert tuned.log[-1]["sites"] == 1 and tuned.log[-1]["after"] == 0.0 < tuned.log[-1]["before"]


@pytest.mark.parametrize(
    ("site", "rows"), [("0", 1), ("0", 2), ("0", 12), ("2", 1), ("2", 12), ("5", 5), ("5", 12)]
)
def test_a_channel_scaled_by_a_known_factor_comes_back(twin, data, site, rows):
    """Every site sees the corrected sites before it, or those after the wrong one would change as well."""
    factor = torch.tensor([1.25, 1.0, 0.75, 1.0, 1.4375])[: len(twin.weights[site].bias)]
    tuned = bn_tune(wrong(twin, site, factor), data[:rows])
    for name in twin.graph.sites:
        now, want = tuned.weights[name], twin.weights[name]
        assert torch.equal(now.codes, want.codes)
        assert torch.equal(now.qparams.zero_point, want.qparams.zero_point)
        # The ratio in float64, then one rounding to float32.
        torch.testing.assert_close(now.qparams.scale, want.qparams.scale, rtol=EPS, atol=0)
        torch.testing.assert_close(now.bias, want.bias, rtol=EPS, atol=ROUNDING)
        assert same(now, want) or name >= site
    assert tuned.log[-1]["sites"] >= 1 and tuned.log[-1]["after"] < 1e-3 * tuned.log[-1]["before"]


def test_one_row_has_a_mean_and_no_spread(twin, data):
    """One image is one row of the classifier: its scores are met by the biases alone."""
    given = wrong(twin, "5", 1.25)
    tuned = bn_tune(given, data[:1])
    assert torch.equal(tuned.weights["5"].qparams.scale, given.weights["5"].qparams.scale)
    name = twin.graph.outputs[0]
    scores, want = (
        run(q.graph, v, [data[:1]])[name]
        for q, v in ((tuned, QuantView(tuned)), (twin, FloatView(twin.state)))
    )
    # Scores and biases below 16, each rounded once or twice.
    assert (scores - want).abs().max() <= 4 * 16 * EPS


def test_mean_and_spread_of_every_channel_are_the_float_networks(twin, data):
    """Two taps of every filter set wrong: no scale is right any more, and yet the moments can be."""
    old = twin.weights["0"]
    weight = twin.state["0.weight"].clone()
    weight[:, 0, 1, 1] += 1.0
    weight[:, 1, 0, 0] -= 1.0
    codes = (weight + old.qparams.zero_point[0].flatten()[0]).to(old.codes.dtype)
    given = replace(twin, weights={**twin.weights, "0": replace(old, codes=codes, bias=old.bias + 9.0)})
    tuned = bn_tune(given, data)
    fit = torch.cat([batch[0] for batch in held_out(load_batches(data, twin.graph))[0]])

    def moments(q, view):
        channels = run(q.graph, view, [fit], keep=("0",))["0"].double().transpose(0, 1).flatten(1)
        return channels.mean(1), channels.std(1)

    (mean, std), (off_mean, off_std) = moments(tuned, QuantView(tuned)), moments(given, QuantView(given))
    want_mean, want_std = moments(twin, FloatView(twin.state))
    ratio = want_std / off_std
    assert 1 / MAX_RATIO < ratio.min() < 0.95 and ratio.max() < MAX_RATIO
    assert (off_mean - want_mean).abs().min() > 1
    # Sums of 18 products and a bias, magnitudes below 256, rounded at every step.
    bound = 20 * 256 * EPS
    assert (mean - want_mean).abs().max() < bound and (std - want_std).abs().max() < bound
    assert tuned.log[-1]["after"] < tuned.log[-1]["before"]


# ---------------------------------------------------------------------------------------- bounds
@pytest.mark.parametrize("factor", [4.0, 0.5])
def test_a_correction_is_bounded_and_keeps_the_mean(twin, data, factor):
    given = wrong(twin, "5", torch.tensor([factor, 1.0, 1.0, 1.0, 1.0]))
    tuned = bn_tune(given, data)
    now, before = tuned.weights["5"].qparams.scale, given.weights["5"].qparams.scale
    limit = 1 / MAX_RATIO if factor > 1 else MAX_RATIO
    torch.testing.assert_close(now[0] / before[0], torch.full_like(now[0], limit), rtol=2 * EPS, atol=0)
    assert torch.equal(now[1:], before[1:])
    fit = torch.cat([batch[0] for batch in held_out(load_batches(data, twin.graph))[0]])
    name = twin.graph.outputs[0]
    mean, want = (
        run(q.graph, v, [fit])[name].double().mean(0)
        for q, v in ((tuned, QuantView(tuned)), (twin, FloatView(twin.state)))
    )
    # Sums of 64 products, magnitudes below 64, rounded at every step.
    assert (mean - want).abs().max() < 66 * 64 * EPS


def test_dead_channels_keep_their_scales(data):
    """A channel of zeros has no spread: only its bias is set."""
    model = layers()
    with torch.no_grad():
        model[0].weight[1] = 0.0
        model[5].weight[3] = 0.0
    twin = exact(model, data)
    tuned = bn_tune(
        wrong(wrong(twin, "0", shift=2.0), "5", shift=torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0])), data
    )
    for site in twin.graph.sites:
        assert torch.equal(tuned.weights[site].qparams.scale, twin.weights[site].qparams.scale)
        assert (tuned.weights[site].bias - twin.weights[site].bias).abs().max() <= ROUNDING


def test_a_scale_that_serves_many_channels_is_left(data):
    """Site "2" shares one scale and keeps all of its error; the sites before and after it are corrected."""
    grids = {"0": GRIDS[0], "2": Grid(8), "5": GRIDS[0]}
    twin = exact(layers(), data, grids)
    given = wrong(wrong(twin, "0", torch.tensor([1.25, 1.0, 1.0, 0.75])), "2", shift=1.0)
    tuned = bn_tune(given, data)
    assert same(tuned.weights["2"], given.weights["2"])
    torch.testing.assert_close(tuned.weights["0"].qparams.scale, torch.ones(4), rtol=EPS, atol=0)
    assert not same(tuned.weights["5"], given.weights["5"])
    assert tuned.log[-1]["sites"] == 2


# -------------------------------------------------------------------------------------- rollback
def test_a_network_that_would_get_worse_is_given_back(data):
    """Two wrongs make a right: twice the first site's output at half the second's step, which is fixed.

    Correcting the first lowers its own error and breaks the network, so all is rolled back.
    """
    twin = exact(layers(), data, {"0": GRIDS[0], "2": Grid(8), "5": GRIDS[0]}, steps={"relu": 2.0})
    first = wrong(twin, "0", 2.0)
    old = twin.weights["2"]
    half = SiteWeights(old.codes, QParams(old.qparams.scale / 2, old.qparams.zero_point), old.bias)
    given = replace(first, weights={**first.weights, "2": half})
    assert held_loss(given, data) == 0.0
    tuned = bn_tune(given, data)
    assert all(same(tuned.weights[site], given.weights[site]) for site in twin.graph.sites)
    entry = tuned.log[-1]
    assert entry["sites"] == 0 and entry["before"] == 0.0 < entry["after"]


def test_a_site_that_would_get_worse_on_held_out_rows_keeps_what_it_had():
    """The first site errs by a feature that only fit rows have; held-out rows are right and stay so."""
    rows = torch.randint(1, 4, (32, 3), generator=torch.Generator().manual_seed(9)).float()
    rows[3::4, 2] = 0.0
    twin = exact(whole_numbers(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 4))), rows)
    old = twin.weights["0"]
    codes, shift = old.codes.clone(), torch.tensor([1.0, -1.0, 0.5, 0.0])
    codes[:, 2] += 1
    given = wrong(replace(twin, weights={**twin.weights, "0": replace(old, codes=codes)}), "2", shift=shift)
    held = held_out(load_batches(rows, twin.graph))[1]
    assert all((batch[0][:, 2] == 0).all() for batch in held)
    tuned = bn_tune(given, rows)
    assert same(tuned.weights["0"], given.weights["0"])
    assert not same(tuned.weights["2"], given.weights["2"]) and tuned.log[-1]["sites"] == 1


# ------------------------------------------------------------------------------ an ordinary network
@pytest.fixture(scope="module")
def coarse():
    """An inverted bottleneck at 3-bit weights, calibrated."""
    x = images(24)
    return calibrate(prepare(settle(InvertedBottleneck()), x[:1], weights=Grid(3, axis=0)), x)


def test_codes_never_change_and_the_log_says_how_much_it_helped(coarse):
    x = images(24)
    tuned = bn_tune(coarse, x)
    entry = tuned.log[-1]
    assert entry["before"] == held_loss(coarse, x) and entry["after"] == held_loss(tuned, x)
    assert entry["after"] < 0.8 * entry["before"]
    changed = [s for s in coarse.graph.sites if not same(tuned.weights[s], coarse.weights[s])]
    assert entry["sites"] == len(changed) > 1
    for site in coarse.graph.sites:
        now, before = tuned.weights[site], coarse.weights[site]
        assert torch.equal(now.codes, before.codes)
        assert torch.equal(now.qparams.zero_point, before.qparams.zero_point)
        ratio = now.qparams.scale / before.qparams.scale
        assert ratio.min() >= (1 - 2 * EPS) / MAX_RATIO and ratio.max() <= MAX_RATIO * (1 + 2 * EPS)
        assert now.bias.dtype == now.qparams.scale.dtype == torch.float32
    assert tuned.ranges is coarse.ranges and tuned.state is coarse.state and tuned.log[:-1] == coarse.log


@pytest.mark.parametrize("rows", [1, 2, 24])
def test_it_never_ends_worse_than_it_began(coarse, rows):
    x = images(rows, seed=31)
    assert held_loss(bn_tune(coarse, x), x) <= held_loss(coarse, x)


def test_the_cache_changes_nothing_and_twice_gives_the_same_bytes(coarse):
    x = images(20)
    first = bn_tune(coarse, x)
    for again in (bn_tune(coarse, x), bn_tune(coarse, iter(x.split(7)), cache_bytes=1)):
        assert all(same(first.weights[site], again.weights[site]) for site in coarse.graph.sites)


def test_bad_arguments(coarse):
    with pytest.raises(DataError, match="bn_tune needs a calibrated model"):
        bn_tune(replace(coarse, ranges={}), images(2))
    with pytest.raises(DataError, match="empty"):
        bn_tune(coarse, [])


def test_networks_of_several_outputs(prepared):
    x = [inputs("two_outputs", 8)]
    q = calibrate(prepared("two_outputs"), x)
    given = wrong(q, "body", 1.25)
    right, off, now = (m.weights["body"].qparams.scale for m in (q, given, bn_tune(given, x)))
    assert ((now - right).abs() < 0.5 * (off - right).abs()).all()
