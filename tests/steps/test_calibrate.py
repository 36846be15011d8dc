"""Calibration: ranges and nearest weights from any kind of data, in one pass."""

import pytest
import torch

from pyquant.errors import DataError
from pyquant.graph import FloatView, run
from pyquant.model import nearest_weights, prepare, value_grids
from pyquant.steps.calibrate import calibrate
from tests.networks import NETWORKS, build, inputs


def values_of(q, batch):
    return run(q.graph, FloatView(q.state), batch, keep=None)


@pytest.mark.parametrize("method", ["minmax", "mean_minmax", "mse"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_grid_is_placed(prepared, name, method):
    q = calibrate(prepared(name), [inputs(name, 5)], method=method)
    assert set(q.ranges) == set(value_grids(q)) and set(q.weights) == set(q.graph.sites)
    assert all(0 < r.scale.item() < float("inf") for r in q.ranges.values())
    assert q.log[-1] == {"step": "calibrate", "method": method, "images": 5, "values": len(q.ranges)}
    q.check_calibrated("a step")


def test_minmax_by_hand(prepared):
    q = prepared("two_inputs")
    batch = inputs("two_inputs", 5)
    done = calibrate(q, [batch], method="minmax")
    values = values_of(q, batch)
    for name, qparams in done.ranges.items():
        low, high = values[name].min().clamp(max=0).double(), values[name].max().clamp(min=0).double()
        assert qparams.scale.item() == ((high - low) / 255).float().item(), name
        assert qparams.zero_point.item() == torch.round(-low / ((high - low) / 255)).item(), name


def test_mean_minmax_by_hand(prepared):
    q = prepared("called_twice")
    x = inputs("called_twice", 20)[0]  # two batches of the loader: 16 and 4 rows
    done = calibrate(q, x, method="mean_minmax")
    low, high = x.flatten(1).amin(1).double().mean(), x.flatten(1).amax(1).double().mean()
    # Means of float32 rows, once in each batch.
    assert done.ranges["x"].scale.item() == pytest.approx(((high - low) / 255).item(), rel=20 * 2.0**-24)


@pytest.mark.parametrize("kind", ["pairs", "dicts", "one_shot", "one_by_one"])
def test_all_kinds_of_data_give_the_same_ranges(prepared, kind):
    q = prepared("called_twice")
    x = inputs("called_twice", 9)[0]
    data = {
        "pairs": [(x[:4], torch.zeros(4)), (x[4:], torch.zeros(5))],
        "dicts": [{"x": x[:4]}, {"x": x[4:]}],
        "one_shot": (part for part in x.split(2)),
        "one_by_one": list(x.split(1)),
    }[kind]
    expected, got = calibrate(q, x), calibrate(q, data)
    for key, qparams in expected.ranges.items():
        assert torch.equal(got.ranges[key].scale, qparams.scale)
        assert torch.equal(got.ranges[key].zero_point, qparams.zero_point)


def test_weights_are_rounded_to_nearest(prepared):
    q = prepared("resnet")
    done = calibrate(q, [inputs("resnet", 2)])
    for site in q.graph.sites:
        expected = nearest_weights(q, site, q.plan[site].weight)
        assert torch.equal(done.weights[site].codes, expected.codes)
        assert torch.equal(done.weights[site].bias, q.state[f"{site}.bias"])


def test_constant_images_are_no_trouble(prepared):
    for value in (0.0, 1.0):
        q = calibrate(prepared("conv_bn_relu"), torch.full((2, 3, 8, 8), value))
        assert all(
            torch.finfo(torch.float32).tiny <= r.scale.item() < float("inf") for r in q.ranges.values()
        )


def test_one_image_and_twice_the_same_bytes(prepared):
    q, x = prepared("inverted_bottleneck"), inputs("inverted_bottleneck", 1)
    first, second = calibrate(q, [x]), calibrate(q, [x])
    assert all(torch.equal(first.ranges[k].scale, second.ranges[k].scale) for k in first.ranges)
    assert not q.ranges and not q.weights


def test_values_that_overflow_are_named():
    model = build("called_twice")
    with torch.no_grad():
        model.conv.weight.fill_(10.0)
    q = prepare(model, inputs("called_twice", 1))
    # float32 holds the input, but not what the first convolution makes of it.
    with pytest.raises(DataError, match="value 'relu' has NaN or infinite elements on the calibration data"):
        calibrate(q, torch.full((1, 3, 6, 6), 3e38))


def test_a_module_is_not_yet_prepared():
    with pytest.raises(DataError, match="calibrate takes what prepare returns, and a CalledTwice was given"):
        calibrate(build("called_twice"), inputs("called_twice", 1))


def test_bad_arguments(prepared):
    with pytest.raises(DataError, match="range method 'percentile'"):
        calibrate(prepared("called_twice"), inputs("called_twice", 1)[0], method="percentile")
    with pytest.raises(DataError, match="empty"):
        calibrate(prepared("called_twice"), [])
