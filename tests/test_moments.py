"""Moments: sums over explicit patches, and what they say about a layer's error."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyquant import moments as module
from pyquant.data import load_batches
from pyquant.graph import FloatView, Node, run
from pyquant.grid import Grid
from pyquant.layers import conv2d
from pyquant.model import QuantView, prepare
from pyquant.moments import gather, parallel_moments, site_groups, thin_out, walk
from pyquant.steps.calibrate import calibrate
from tests.networks import InvertedBottleneck, ResNet, TwoInputs, images, inputs, settle

# One product and one sum in float32 each, K + 1 <= 40 columns and R <= 1500 rows, relative to the sum of magnitudes.
FLOAT32 = 1600 * 2.0**-24


def attributes(stride=1, padding=(0, 0, 0, 0), dilation=1, groups=1):
    return {
        "stride": (stride, stride),
        "padding": padding,
        "dilation": (dilation, dilation),
        "groups": groups,
    }


CONVOLUTIONS = {
    "1x1": ((2, 5, 6, 7), (4, 5, 1, 1), attributes()),
    "1x1_strided": ((2, 5, 7, 7), (4, 5, 1, 1), attributes(stride=2)),
    "3x3": ((2, 3, 6, 5), (4, 3, 3, 3), attributes(padding=(1, 1, 1, 1))),
    "strided_asymmetric": ((2, 3, 8, 8), (4, 3, 3, 3), attributes(2, (0, 0, 1, 1))),
    "dilated": ((1, 2, 9, 9), (3, 2, 3, 3), attributes(padding=(2, 2, 2, 2), dilation=2)),
    "grouped": ((2, 6, 5, 5), (4, 3, 3, 3), attributes(groups=2)),
    "depthwise": ((2, 4, 6, 6), (4, 1, 3, 3), attributes(padding=(1, 1, 1, 1), groups=4)),
    "kernel_1x3": ((1, 2, 4, 9), (3, 2, 1, 3), attributes()),
    "large_map": ((1, 2, 25, 23), (3, 2, 3, 3), attributes(padding=(1, 1, 1, 1))),
    "large_map_strided": ((1, 2, 51, 47), (3, 2, 3, 3), attributes(2, (0, 0, 1, 1))),
    "large_map_1x1": ((1, 2, 47, 49), (3, 2, 1, 1), attributes(stride=2)),
}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def patches(x, weight_shape, attrs, turn):
    """Rows ``[G, R, K]`` of the output positions that turn ``turn`` looks at, cut out one by one, and the positions."""
    top, left, bottom, right = attrs["padding"]
    padded = F.pad(x, (left, right, top, bottom))
    _, cin, kh, kw = weight_shape
    (s, _), (d, _), groups = attrs["stride"], attrs["dilation"], attrs["groups"]
    oh = (padded.shape[2] - d * (kh - 1) - 1) // s + 1
    ow = (padded.shape[3] - d * (kw - 1) - 1) // s + 1
    every = max(1, math.ceil(math.sqrt(oh * ow / 128)))
    at = [(i, j) for i in range(turn % every, oh, every) for j in range((turn // every) % every, ow, every)]
    rows = []
    for g in range(groups):
        of_group = padded[:, g * cin : (g + 1) * cin]
        rows.append(
            torch.stack(
                [
                    of_group[
                        b, :, i * s : i * s + d * (kh - 1) + 1 : d, j * s : j * s + d * (kw - 1) + 1 : d
                    ].flatten()
                    for b in range(x.shape[0])
                    for i, j in at
                ]
            )
        )
    return torch.stack(rows), at


def check_sums(found, rows, target):
    """Compare with sums in float64 over rows ``[G, R, K]`` and targets ``[G, R, n]``."""
    xq = torch.cat([rows, torch.ones(*rows.shape[:2], 1)], -1).double()
    y = target.double()
    assert found.rows == rows.shape[1]
    assert found.h.dtype == found.t.dtype == found.yy.dtype == torch.float64
    for got, a, b in ((found.h, xq, xq), (found.t, y, xq)):
        assert got.shape == (a.mT @ b).shape
        assert ((got - a.mT @ b).abs() <= FLOAT32 * (a.abs().mT @ b.abs())).all()
    assert ((found.yy - y.square().sum(1)).abs() <= FLOAT32 * y.square().sum(1)).all()


@pytest.mark.parametrize("turn", [0, 1, 5])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_sums_over_explicit_patches(name, turn):
    shape, weight_shape, attrs = CONVOLUTIONS[name]
    x = random(*shape)
    y = conv2d(x, random(*weight_shape, seed=1), random(weight_shape[0], seed=2), attrs)
    node = Node("site", "conv2d", ("x",), attrs, shape=tuple(y.shape[1:]))
    found = gather(node, x, y, weight_shape[2:], turn)
    rows, at = patches(x, weight_shape, attrs, turn)
    target = torch.stack([y[b, :, i, j] for b in range(len(y)) for i, j in at])
    check_sums(found, rows, target.reshape(len(target), attrs["groups"], -1).transpose(0, 1))


@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 5), (2, 3, 2, 5)])
def test_sums_of_a_linear_layer(shape):
    x = random(*shape)
    y = F.linear(x, random(3, 5, seed=1), random(3, seed=2))
    found = gather(Node("site", "linear", ("x",)), x, y, (1, 1))
    check_sums(found, x.reshape(1, -1, 5), y.reshape(1, -1, 3))


def test_turns_look_at_every_position_of_a_large_map():
    _, weight_shape, attrs = CONVOLUTIONS["large_map"]
    every = thin_out((25, 23))
    assert every == 3 and thin_out((11, 11)) == 1 and thin_out((1, 1)) == 1
    seen = [
        at for turn in range(every**2) for at in patches(random(1, 2, 25, 23), weight_shape, attrs, turn)[1]
    ]
    assert sorted(seen) == [(i, j) for i in range(25) for j in range(23)]
    found = [
        gather(
            Node("s", "conv2d", ("x",), attrs), random(1, 2, 25, 23), random(1, 3, 25, 23), (3, 3), turn
        ).rows
        for turn in range(every**2)
    ]
    assert sum(found) == 25 * 23


@pytest.mark.parametrize("out", [(1, 300), (300, 1), (2, 900)])
def test_a_thin_map_has_rows_at_every_turn(out):
    x, y = random(1, 2, out[0], out[1] + 2), random(1, 3, *out)
    for turn in range(thin_out(out) ** 2):
        found = gather(Node("s", "conv2d", ("x",), attributes()), x, y, (1, 3), turn)
        assert found.rows > 0


@pytest.mark.parametrize("name", ["3x3", "grouped", "depthwise", "1x1"])
def test_error_is_the_layers_mean_squared_error(name):
    shape, weight_shape, attrs = CONVOLUTIONS[name]
    x, weight, bias = random(*shape), random(*weight_shape, seed=1), random(weight_shape[0], seed=2)
    y = conv2d(x, weight, bias, attrs)
    found = gather(Node("site", "conv2d", ("x",), attrs), x, y, weight_shape[2:])
    rough, shifted = torch.round(weight * 2) / 2, bias + 0.1
    groups = attrs["groups"]
    actual = (conv2d(x.double(), rough.double(), shifted.double(), attrs) - y).square().mean((0, 2, 3))
    got = found.error(rough.reshape(groups, -1, weight[0].numel()), shifted.reshape(groups, -1))
    power = (y.double().square().mean((0, 2, 3)) + 1) * 30
    assert ((got.reshape(-1) - actual).abs() <= FLOAT32 * power).all()
    exact = found.error(weight.reshape(groups, -1, weight[0].numel()), bias.reshape(groups, -1)).reshape(-1)
    assert (exact <= FLOAT32 * power).all()


@pytest.mark.parametrize("name", ["3x3", "depthwise"])
def test_best_bias_is_that_of_least_squares(name):
    shape, weight_shape, attrs = CONVOLUTIONS[name]
    x, weight = random(*shape) + 0.5, random(*weight_shape, seed=1)
    y = conv2d(x, weight, random(weight_shape[0], seed=2), attrs)
    found = gather(Node("site", "conv2d", ("x",), attrs), x, y, weight_shape[2:])
    rough = torch.round(weight)
    w = rough.reshape(attrs["groups"], -1, weight[0].numel())
    residual = (y - conv2d(x, rough, None, attrs)).double().mean((0, 2, 3))
    best = found.best_bias(w)
    assert (best.reshape(-1) - residual).abs().max() <= FLOAT32 * 50
    for step in (-0.01, 0.01):
        assert (found.error(w, best + step) > found.error(w, best)).all()


def test_centred_moments_are_covariances():
    x = random(50, 4) * 2 + 3
    y = F.linear(x, random(2, 4, seed=1)) + 7
    cov, cross = gather(Node("site", "linear", ("x",)), x, y, (1, 1)).centred()
    xc, yc = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    assert (cov[0] - xc.mT @ xc / 50).abs().max() <= FLOAT32 * 40
    assert (cross[0] - yc.mT @ xc / 50).abs().max() <= FLOAT32 * 200


def test_moments_add_up():
    node = Node("site", "linear", ("x",))
    x, y = random(10, 3), random(10, 2, seed=1)
    whole, parts = (
        gather(node, x, y, (1, 1)),
        gather(node, x[:4], y[:4], (1, 1)) + gather(node, x[4:], y[4:], (1, 1)),
    )
    assert parts.rows == whole.rows == 10
    assert (parts.h - whole.h).abs().max() <= FLOAT32 * whole.h.abs().max()
    assert (parts.t - whole.t).abs().max() <= FLOAT32 * 40


# ------------------------------------------------------------------------------------------------- through a network
def four_bits(model, example, batches):
    q = prepare(model, example, weights=Grid(4, axis=0), inputs=Grid(4, signed=False))
    return calibrate(q, batches)


@pytest.fixture(scope="module")
def resnet():
    x = images(6, side=16)
    q = four_bits(settle(ResNet()), x[:1], x)
    return q, load_batches(x, q.graph, 2)


@pytest.fixture(scope="module")
def two_inputs():
    batch = inputs("two_inputs", 6)
    q = four_bits(settle(TwoInputs()), inputs("two_inputs", 1), [batch])
    return q, load_batches([batch], q.graph, 2)


@pytest.fixture(scope="module")
def bottleneck():
    """A site reads, at 4 bits, a sum that is stored at 8."""
    x = images(6)
    q = four_bits(settle(InvertedBottleneck()), x[:1], x)
    assert "expand:input" in q.ranges
    return q, load_batches(x, q.graph, 2)


def test_parallel_moments_are_those_of_float_inputs_on_their_grid(resnet):
    q, batches = resnet
    sites = ["block.conv1", "fc"]
    found = parallel_moments(q, batches, sites)
    assert set(found) == set(sites)
    view = QuantView(q)
    for site in sites:
        node, total = q.graph.by_name[site], None
        for turn, batch in enumerate(batches):
            values = run(q.graph, FloatView(q.state), batch, keep=None)
            x = view.quantized_input(site, values[node.inputs[0]])
            new = gather(node, x, values[site], module.kernel_of(q, site), turn)
            total = new if total is None else total + new
        assert torch.equal(found[site].h, total.h) and torch.equal(found[site].t, total.t)


def walked(q, parts, cache_bytes):
    seen = {}

    def on_site(q, site, found):
        seen[site] = found
        weights = q.weights[site]
        return replace(q, weights={**q.weights, site: replace(weights, bias=weights.bias + 0.125)})

    return walk(q, parts, on_site, cache_bytes), seen


@pytest.mark.parametrize("network", ["resnet", "two_inputs", "bottleneck"])
def test_held_and_recomputed_frontiers_give_the_same_bytes(network, request):
    q, batches = request.getfixturevalue(network)
    (held, first), (recomputed, second) = (
        walked(q, (batches[:2], batches[2:]), size) for size in (1 << 30, 0)
    )
    assert list(first) == list(second) == list(q.graph.sites)
    for site in q.graph.sites:
        assert len(first[site]) == len(second[site]) == 2
        for a, b in zip(first[site], second[site], strict=True):
            assert a.rows == b.rows and torch.equal(a.h, b.h)
            assert torch.equal(a.t, b.t) and torch.equal(a.yy, b.yy)
        assert torch.equal(held.weights[site].bias, recomputed.weights[site].bias)


def test_a_site_reads_what_the_quantised_network_gives_it(resnet):
    """Every site before it counts with the weights decided so far."""
    q, batches = resnet
    last, seen = walked(q, (batches,), 1 << 30)
    read = {}

    class Reading(QuantView):
        def site_input(self, node, value):
            value = super().site_input(node, value)
            read.setdefault(node.name, []).append(value)
            return value

    view = Reading(last)
    for batch in batches:
        run(q.graph, view, batch)
    for site in q.graph.sites:
        node, total = q.graph.by_name[site], None
        for turn, (x, batch) in enumerate(zip(read[site], batches, strict=True)):
            y = run(q.graph, FloatView(q.state), batch, keep=[site])[site]
            new = gather(node, x, y, module.kernel_of(q, site), turn)
            total = new if total is None else total + new
        assert torch.equal(seen[site][0].h, total.h), site
        assert torch.equal(seen[site][0].t, total.t), site


def test_walk_leaves_the_model_it_was_given(resnet):
    q, batches = resnet
    before = {site: q.weights[site].bias.clone() for site in q.graph.sites}
    walked(q, (batches,), 1 << 30)
    assert all(torch.equal(q.weights[site].bias, before[site]) for site in before)


def test_site_groups_keep_the_order_and_the_budget(resnet):
    q, _ = resnet
    assert site_groups(q, 1 << 40) == [list(q.graph.sites)]
    assert site_groups(q, 1) == [[site] for site in q.graph.sites]
    groups = site_groups(q, 40_000)
    assert [site for group in groups for site in group] == list(q.graph.sites) and 1 < len(groups) < len(
        q.graph.sites
    )


def test_a_single_convolution_whose_input_is_the_networks():
    q = four_bits(settle(nn.Sequential(nn.Conv2d(3, 4, 3))), images(1), images(4))
    _, held = walked(q, (load_batches(images(4), q.graph),), 1 << 30)
    _, recomputed = walked(q, (load_batches(images(4), q.graph),), 0)
    assert torch.equal(held["0"][0].h, recomputed["0"][0].h)
