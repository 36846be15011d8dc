"""Preparing a model: plans, exclusions, and which grid every value has."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from pyquant.errors import DataError, GridError, SiteError
from pyquant.fold import fold
from pyquant.graph import FloatView, run
from pyquant.grid import Grid, SiteGrids
from pyquant.model import QuantView, input_key, nearest_weights, prepare, value_grids, with_bits, with_ranges
from pyquant.reference import fake_quantize, spread
from pyquant.regions import regions
from pyquant.steps.calibrate import calibrate
from tests.networks import NETWORKS, build, inputs

W8, A8 = Grid(8, axis=0, symmetric=False), Grid(8, signed=False)


def with_plan(q, bits):
    return replace(q, plan=with_bits(q.plan, bits))


@pytest.mark.parametrize("name", NETWORKS)
def test_default_plan(prepared, name):
    q = prepared(name)
    assert dict(q.plan) == {site: SiteGrids(W8, A8) for site in q.graph.sites}
    assert not q.ranges and not q.weights and not q.log


def test_pinned_bits():
    q = prepare(build("resnet"), inputs("resnet", 1), weights=Grid(4, axis=0), bits={"fc": (8, 6)})
    assert (q.plan["fc"].weight.bits, q.plan["fc"].input.bits) == (8, 6)
    assert {q.plan[s].weight.bits for s in q.graph.sites if s != "fc"} == {4}
    assert q.plan["fc"].weight.axis == 0 and not q.plan["fc"].input.signed


@pytest.mark.parametrize("argument", ["bits", "exclude"])
def test_unknown_sites_are_answered_with_near_names(argument):
    value = {"bits": {"block.conv7": (4, 4)}, "exclude": ["block.conv7"]}[argument]
    with pytest.raises(SiteError, match=r"'block\.conv7' does not exist.*near names: stem\.0, block\.conv1"):
        prepare(build("resnet"), inputs("resnet", 1), **{argument: value})


@pytest.mark.parametrize("bits", [(1, 8), (9, 8), (8, 0), (4.5, 8)])
def test_widths_off_the_grid(bits):
    with pytest.raises(GridError, match="bits="):
        prepare(build("called_twice"), inputs("called_twice", 1), bits={"conv": bits})


@pytest.mark.parametrize("grid", [Grid(8), Grid(8, signed=False, axis=1)])
def test_activation_grids_are_per_tensor_and_unsigned(grid):
    with pytest.raises(DataError, match="per-tensor unsigned"):
        prepare(build("called_twice"), inputs("called_twice", 1), inputs=grid)


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"weights": 4}, GridError, r"weights=4 is no grid; use one such as Grid\(4, axis=0\)"),
        ({"inputs": 8}, GridError, r"inputs=8 is no grid; use one such as Grid\(8, signed=False\)"),
        ({"bits": [(4, 8)]}, GridError, r"bits=\[\(4, 8\)\] is no mapping; give site"),
        ({"bits": []}, GridError, r"bits=\[\] is no mapping"),
        ({"exclude": None}, SiteError, "exclude=None holds no names of sites"),
        ({"exclude": [3]}, SiteError, r"exclude=\[3\] holds no names of sites"),
        ({"exclude": "conv"}, SiteError, "exclude='conv' is one string"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_arguments_of_another_kind(wrong, error, words):
    with pytest.raises(error, match=words):
        prepare(build("called_twice"), inputs("called_twice", 1), **wrong)


def test_a_group_that_does_not_divide_a_row():
    with pytest.raises(GridError, match="group_size=5 does not divide"):
        prepare(build("called_twice"), inputs("called_twice", 1), weights=Grid(4, axis=0, group_size=5))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("tensor", ["weight", "bias", "running_mean"])
def test_weights_that_are_not_finite_are_named(tensor, bad):
    model = build("conv_bn_relu")
    target = model[4].running_mean if tensor == "running_mean" else getattr(model[3], tensor).data
    target.view(-1)[1] = bad
    with pytest.raises(DataError, match="site '3' has NaN or infinite weights"):
        prepare(model, inputs("conv_bn_relu", 1))


def test_a_model_without_sites():
    with pytest.raises(SiteError, match="no convolution or linear layer"):
        prepare(nn.Sequential(nn.ReLU(), nn.AvgPool2d(2)), torch.zeros(1, 3, 4, 4))


# --------------------------------------------------------------------------------------------------------- exclusion
@pytest.mark.parametrize("site", ["reduce", "depthwise", "head"])
def test_an_excluded_site_stays_float_and_computes_the_same(captured, site):
    graph, state, _ = fold(*captured("inverted_bottleneck"))
    q = prepare(build("inverted_bottleneck"), inputs("inverted_bottleneck", 1), exclude=[site])
    assert site not in q.graph.sites and site not in q.plan
    assert q.graph.by_name[site].op == "aten" and site not in regions(q.graph).integer
    x = inputs("inverted_bottleneck", 3)
    double, other = ({k: v.double() for k, v in s.items()} for s in (state, q.state))
    expected = run(graph, FloatView(double), [x[0].double()])[graph.outputs[0]]
    got = run(q.graph, FloatView(other), [x[0].double()])[q.graph.outputs[0]]
    assert (got - expected).abs().max() <= 1e-12
    calibrated = calibrate(q, [x])
    assert site not in calibrated.weights
    assert torch.equal(QuantView(calibrated).params(q.graph.by_name[site])["p0"], q.state[f"{site}.weight"])


def test_an_excluded_site_keeps_its_padding():
    layer = nn.Conv2d(3, 4, 3, padding=(2, 0))
    q = prepare(nn.Sequential(layer, nn.Conv2d(4, 2, 1)), inputs("resnet", 1), exclude=["0"])
    x = inputs("resnet", 2)[0]
    assert torch.equal(run(q.graph, FloatView(q.state), [x], keep=["0"])["0"], layer(x))


def test_excluding_everything():
    with pytest.raises(SiteError, match="left to quantise"):
        prepare(build("called_twice"), inputs("called_twice", 1), exclude=["conv", "conv@1"])


# ------------------------------------------------------------------------------------------------------- value grids
@pytest.mark.parametrize("name", NETWORKS)
def test_every_value_that_integers_read_has_a_grid(prepared, name):
    q = prepared(name)
    grids = value_grids(q)
    assert set(grids) == set(regions(q.graph).quantized)
    assert set(grids.values()) == {A8}


def test_a_value_only_sites_read_has_the_widest_of_their_grids(prepared):
    q = with_plan(prepared("two_outputs"), {"map": (8, 3), "body": (8, 5)})
    grids = value_grids(q)
    assert grids["x"].bits == 5 and "body:input" not in grids
    feeding_map = q.graph.by_name["map"].inputs[0]
    # The pooling reads it too, so that it is stored at 8 bits, and the site rounds on to 3.
    assert grids[feeding_map].bits == 8 and grids["map:input"].bits == 3


def test_four_bit_sites_beside_residual_adds_round_their_own_input(prepared):
    q = with_plan(
        prepared("inverted_bottleneck"), dict.fromkeys(prepared("inverted_bottleneck").graph.sites, (4, 4))
    )
    grids = value_grids(q)
    shared, alone = q.graph.by_name["expand"].inputs[0], q.graph.by_name["depthwise"].inputs[0]
    assert grids[shared].bits == 8 and grids["expand:input"].bits == 4
    assert grids[alone].bits == 4 and "depthwise:input" not in grids
    added = regions(q.graph).groups["project"].last
    assert grids[added].bits == 8  # the pooling reads it
    assert grids["x"].bits == 4


def test_two_sites_of_different_width_on_one_value(prepared):
    q = with_plan(prepared("resnet"), {"block.conv1": (8, 4), "block.downsample.0": (8, 6)})
    grids = value_grids(q)
    relu = regions(q.graph).groups["stem.0"].last
    assert grids[relu].bits == 6
    assert grids["block.conv1:input"].bits == 4 and "block.downsample.0:input" not in grids


def test_ranges_follow_the_plan(prepared):
    q = with_plan(prepared("inverted_bottleneck"), {"expand": (4, 4)})
    q = calibrate(q, [inputs("inverted_bottleneck", 4)])
    assert set(q.ranges) == set(value_grids(q))
    assert input_key(q, "expand") == "expand:input"
    assert input_key(q, "project") == q.graph.by_name["project"].inputs[0]
    ratio = q.ranges["expand:input"].scale / q.ranges[q.graph.by_name["expand"].inputs[0]].scale
    assert 4 < ratio <= 17.01
    wider = with_ranges(with_plan(q, {"expand": (4, 8)}), "minmax")
    assert "expand:input" not in wider.ranges and "expand:input" in q.ranges


# --------------------------------------------------------------------------------------------------- the quantised view
def test_the_quantised_view_by_hand(prepared):
    q = calibrate(
        with_plan(prepared("called_twice"), {"conv": (4, 4), "conv@1": (3, 5)}), [inputs("called_twice", 4)]
    )
    x = inputs("called_twice", 2)[0]
    first, second = (q.weights[s] for s in ("conv", "conv@1"))
    relu = q.graph.by_name["conv@1"].inputs[0]

    def rounded(value, key, bits):
        return fake_quantize(value, q.ranges[key].scale, q.ranges[key].zero_point, 0, 2**bits - 1)

    def real(site, weights):
        scale, zero = (
            spread(p, (3, 3, 3, 3), 0, None) for p in (weights.qparams.scale, weights.qparams.zero_point)
        )
        return (weights.codes.float() - zero) * scale

    y = nn.functional.conv2d(rounded(x, "x", 4), real("conv", first), first.bias, padding=1).relu()
    expected = nn.functional.conv2d(rounded(y, relu, 5), real("conv@1", second), second.bias, padding=1)
    got = run(q.graph, QuantView(q), [x])[q.graph.outputs[0]]
    assert torch.equal(got, expected)


def test_only_the_sites_asked_for_are_quantised(prepared):
    q = calibrate(with_plan(prepared("called_twice"), {"conv": (2, 8)}), [inputs("called_twice", 4)])
    x = inputs("called_twice", 2)
    none = run(q.graph, QuantView(q, (), values=False), x)[q.graph.outputs[0]]
    assert torch.equal(none, run(q.graph, FloatView(q.state), x)[q.graph.outputs[0]])
    one = run(q.graph, QuantView(q, ("conv",), values=False), x, keep=None)
    assert not torch.equal(one["conv"], run(q.graph, FloatView(q.state), x, keep=["conv"])["conv"])


@pytest.mark.parametrize(
    "grid", [Grid(4, axis=0), Grid(3, axis=0, symmetric=False), Grid(4, axis=0, group_size=9)]
)
def test_nearest_weights(prepared, grid):
    q = prepared("called_twice")
    weights = nearest_weights(q, "conv", grid)
    assert weights.codes.dtype == grid.code_dtype and weights.codes.shape == (3, 3, 3, 3)
    assert weights.codes.min() >= grid.qmin and weights.codes.max() <= grid.qmax
    scale, zero = (
        spread(p, (3, 3, 3, 3), 0, grid.group_size)
        for p in (weights.qparams.scale, weights.qparams.zero_point)
    )
    weight = q.state["conv.weight"]
    inside = (weight / scale + zero > grid.qmin) & (weight / scale + zero < grid.qmax)
    distance = (weights.dequantized(grid) - weight).abs()
    assert (distance[inside] <= (scale.expand_as(weight)[inside] / 2) * (1 + 2.0**-20)).all()
    assert torch.equal(weights.bias, q.state["conv.bias"])


def test_steps_need_a_calibrated_model(prepared):
    with pytest.raises(DataError, match="calibrate"):
        prepared("resnet").check_calibrated("adaquant")


def test_the_log_grows_in_a_new_value(prepared):
    q = prepared("resnet")
    assert q.logged("a", x=1).logged("b").log == ({"step": "a", "x": 1}, {"step": "b"}) and q.log == ()
