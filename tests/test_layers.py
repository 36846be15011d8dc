"""Layers: every kind of node against torch, and only whitelisted names reach torch."""

import json

import pytest
import torch
import torch.nn.functional as F

from pyquant.errors import CaptureError
from pyquant.layers import FLOAT_TARGETS, UNARY, call_aten, conv2d, evaluate, resolve


def data(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (1, 2, 1, 2), (0, 0, 1, 1), (2, 0, 1, 3)])
@pytest.mark.parametrize(("groups", "stride", "dilation"), [(1, (1, 1), (1, 1)), (3, (2, 1), (1, 2)), (6, (2, 2), (1, 1))])
def test_convolution_pads_top_left_bottom_right(padding, groups, stride, dilation):
    x, weight, bias = data(2, 6, 9, 8), data(12, 6 // groups, 3, 3, seed=1), data(12, seed=2)
    top, left, bottom, right = padding
    padded = torch.zeros(2, 6, 9 + top + bottom, 8 + left + right, dtype=torch.float64)
    padded[:, :, top : top + 9, left : left + 8] = x
    expected = F.conv2d(padded, weight, bias, stride, 0, dilation, groups)
    attrs = {"padding": padding, "stride": stride, "dilation": dilation, "groups": groups}
    got = conv2d(x, weight, bias, attrs)
    assert got.shape == expected.shape
    # 54 products a sum in float64, of numbers under 5: far below.
    assert (got - expected).abs().max() <= 54 * 25 * 2.0**-50


def test_max_pool_padding_never_wins():
    attrs = {"window": (3, 3), "stride": (2, 2), "padding": (0, 0, 1, 1)}
    got = evaluate("max_pool", attrs, [-torch.ones(1, 1, 4, 4)], {}, 1)
    assert got.tolist() == [[[[-1.0, -1.0], [-1.0, -1.0]]]]


def test_batch_norm_without_affine_part():
    x, mean, var = data(2, 3, 4, 4), data(3, seed=1), data(3, seed=2).abs()
    got = evaluate("batch_norm", {"eps": 0.1}, [x], {"mean": mean, "var": var}, 2)
    expected = (x - mean.reshape(3, 1, 1)) / (var.reshape(3, 1, 1) + 0.1).sqrt()
    assert (got - expected).abs().max() <= 2.0**-48


def test_padding_order_is_torchs():
    got = evaluate("pad", {"pads": (1, 0, 0, 2)}, [torch.ones(1, 1, 1, 1)], {}, 1)
    assert got.tolist() == [[[[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]]]


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0.0, None, [0, 0.5, 9]), (None, 6.0, [-1, 0.5, 6]), (0.0, 6.0, [0, 0.5, 6])]
)
def test_clamp(low, high, expected):
    got = evaluate("clamp", {"low": low, "high": high}, [torch.tensor([-1.0, 0.5, 9.0])], {}, 1)
    assert got.tolist() == expected


def test_flatten_keeps_the_batch():
    assert evaluate("flatten", {}, [torch.zeros(3, 2, 4, 5)], {}, 3).shape == (3, 40)


def test_unknown_kind():
    with pytest.raises(CaptureError, match="'warp'"):
        evaluate("warp", {}, [], {}, 1)


@pytest.mark.parametrize("target", sorted(FLOAT_TARGETS))
def test_every_whitelisted_name_exists(target):
    assert callable(resolve(target))


@pytest.mark.parametrize(
    "target",
    ["aten.fft_fft.default", "os.system", "aten.add", "aten.from_file.default", "__import__", "aten.relu_.default", ""],
)
def test_no_other_name_is_run(target):
    with pytest.raises(CaptureError, match="whitelisted"):
        call_aten(target, [], {}, [], 1)


@pytest.mark.parametrize("target", sorted(UNARY))
def test_lookups_are_elementwise(target):
    """A table of codes serves them only if every element's result depends on that element alone."""
    x = data(3, 5).float()
    whole = call_aten(target, [{"input": 0}], {}, [x], 3)
    for place in range(15):
        others = data(3, 5, seed=9).float()
        others.view(-1)[place] = x.view(-1)[place]
        assert torch.equal(call_aten(target, [{"input": 0}], {}, [others], 3).view(-1)[place], whole.view(-1)[place])


def test_arguments_survive_json():
    args, kwargs = json.loads(json.dumps([[{"input": 0}, [{"batch": 2}, -1]], {}]))
    assert call_aten("aten.view.default", args, kwargs, [torch.zeros(3, 4)], 3).shape == (6, 2)
    to = json.loads(json.dumps([{"input": 0}, {"dtype": "int64"}]))
    assert call_aten("aten.to.dtype", to, {}, [torch.tensor([1.5])], 1).dtype == torch.int64
    cat = [[{"input": 1}, {"input": 0}], 1]
    assert call_aten("aten.cat.default", cat, {}, [torch.zeros(1, 1), torch.ones(1, 1)], 1).tolist() == [[1.0, 0.0]]
