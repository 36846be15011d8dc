"""Costs of sites, against counting by hand and against the file."""

import pytest

from pyquant.costs import COSTS, activation_bytes, in_float, multiply_adds
from pyquant.model import prepare
from pyquant.pipeline import float_bytes, weight_bytes
from tests.networks import build, inputs


def test_multiply_adds_by_hand(prepared):
    """Of the ResNet on 16 x 16: every output pixel takes one of each weight of its channel's."""
    want = {
        "stem.0": 16 * 16 * 4 * 3 * 9,
        "block.conv1": 4 * 4 * 8 * 4 * 9,
        "block.conv2": 4 * 4 * 8 * 8 * 9,
        "block.downsample.0": 4 * 4 * 8 * 4,
        "fc": 8 * 5,
    }
    q = prepared("resnet")
    assert {site: multiply_adds(q, site) for site in q.graph.sites} == want
    assert {s: COSTS["bops"](q, s, 3, 5) for s in want} == {s: n * 15 for s, n in want.items()}
    assert in_float(q, "bops") == 1024 * sum(want.values())


def test_a_depthwise_convolution_has_one_input_channel_a_group(prepared):
    q = prepared("inverted_bottleneck")
    assert multiply_adds(q, "depthwise") == 4 * 4 * 12 * 9 and multiply_adds(q, "expand") == 4 * 4 * 4 * 12


def test_a_linear_layer_takes_every_row():
    q = prepare(build("text"), inputs("text", 1))
    assert {s: multiply_adds(q, s) for s in q.graph.sites} == {"up": 360, "down": 360, "head": 120}


def test_codes_read_count_once_a_value(prepared):
    """The convolution and the shortcut read the pooled stem, 8 x 8 x 4; bits fill bytes, and a last one in part."""
    q = prepared("resnet")
    found = {site: activation_bytes(q, site, 3) for site in q.graph.sites}
    assert found == {
        "stem.0": 16 * 16 * 3 * 3 // 8,
        "block.conv1": 8 * 8 * 4 * 3 // 8,
        "block.downsample.0": 0,
        "block.conv2": 4 * 4 * 8 * 3 // 8,
        "fc": 3,
    }
    q = prepared("inverted_bottleneck")
    assert [activation_bytes(q, "head", bits) for bits in range(2, 9)] == [1, 2, 2, 3, 3, 4, 4]


@pytest.mark.parametrize("name", ["resnet", "text", "called_twice"])
def test_in_float_is_four_bytes_an_element(prepared, name):
    q = prepared(name)
    assert in_float(q, "weight_bytes") == float_bytes(q)
    assert in_float(q, "weight_bytes") == 4 * sum(q.state[f"{s}.weight"].numel() for s in q.graph.sites)
    assert all(COSTS["weight_bytes"](q, s, 4, 8) == weight_bytes(q, s, 4) for s in q.graph.sites)
