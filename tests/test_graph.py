"""The graph: who feeds whom, and running it under a view."""

import weakref

import pytest
import torch

from pyquant.errors import SiteError
from pyquant.graph import FloatView, Graph, Node, outputs, run
from tests.networks import NETWORKS, build, inputs

SITE = {"weight": "w"}
ATTRS = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1}
DIAMOND = Graph(
    (
        Node("x", "input", shape=(1, 2, 2)),
        Node("body.conv", "conv2d", ("x",), ATTRS, SITE, (1, 2, 2)),
        Node("relu", "clamp", ("body.conv",), {"low": 0.0, "high": None}, shape=(1, 2, 2)),
        Node("sum", "add", ("relu", "relu"), shape=(1, 2, 2)),
        Node("body.conv2", "conv2d", ("sum",), ATTRS, SITE, (1, 2, 2)),
    ),
    ("x",),
    ("body.conv2",),
)
STATE = {"w": torch.full((1, 1, 1, 1), -2.0)}


def test_consumers():
    assert [n.name for n in DIAMOND.consumers["relu"]] == ["sum", "sum"]
    assert DIAMOND.consumers["body.conv2"] == ()
    assert DIAMOND.only_consumer("x").name == "body.conv"
    assert DIAMOND.only_consumer("relu") is None and DIAMOND.only_consumer("body.conv2") is None


def test_an_output_has_no_only_consumer():
    graph = Graph(DIAMOND.nodes, DIAMOND.inputs, ("body.conv2", "body.conv"))
    assert graph.only_consumer("body.conv") is None and graph.only_consumer("sum").name == "body.conv2"


def test_sites_in_order():
    assert DIAMOND.sites == ("body.conv", "body.conv2")
    assert DIAMOND.site("body.conv").op == "conv2d"


@pytest.mark.parametrize("name", ["head.conv", "conv2d.conv", "layer1.0.fc", "", "relu"])
def test_an_unknown_site_is_answered_with_near_names(name):
    with pytest.raises(SiteError) as caught:
        DIAMOND.site(name)
    assert str(caught.value).startswith(f"site {name!r} does not exist in this model of 2 sites")
    assert "near names: body.conv, body.conv2." in str(caught.value)


def test_run_by_hand():
    x = torch.tensor([[[[1.0, -1.0], [0.5, 0.0]]]])
    assert run(DIAMOND, FloatView(STATE), [x])["body.conv2"].tolist() == [[[[0.0, -8.0], [0.0, 0.0]]]]


def test_values_are_kept_only_when_asked_for():
    x = torch.ones(1, 1, 2, 2)
    assert set(run(DIAMOND, FloatView(STATE), [x])) == {"body.conv2"}
    assert set(run(DIAMOND, FloatView(STATE), [x], keep=["relu"])) == {"body.conv2", "relu"}
    assert set(run(DIAMOND, FloatView(STATE), [x], keep=None)) == set(DIAMOND.by_name)


def test_values_are_freed_after_their_last_use():
    alive = []

    class Watching(FloatView):
        def value(self, node, value):
            alive.append(sum(ref() is not None for ref in references))
            references.append(weakref.ref(value))
            return value

    references: list = []
    run(DIAMOND, Watching(STATE), [torch.ones(1, 1, 64, 64)])
    # While a value is made, only its own operand lives besides the input, which the caller holds.
    assert max(alive) <= 2


def test_a_prefix_is_not_computed_again():
    seen = []
    start = {"sum": torch.ones(1, 1, 2, 2)}
    values = run(
        DIAMOND,
        FloatView(STATE),
        [torch.ones(1, 1, 2, 2)],
        start=start,
        on_value=lambda n, v: seen.append(n.name),
    )
    assert "sum" not in seen and "body.conv2" in seen
    assert values["body.conv2"].unique().tolist() == [-2.0]
    assert set(start) == {"sum"}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_value_is_seen_once_and_in_order(captured, name):
    graph, state = captured(name)
    seen = []
    run(graph, FloatView(state), inputs(name, 1), on_value=lambda node, value: seen.append(node.name))
    assert seen == [node.name for node in graph.nodes]


def test_outputs_are_in_the_networks_order(captured):
    graph, state = captured("two_outputs")
    model, x = build("two_outputs"), inputs("two_outputs", 1)
    for found, exact in zip(outputs(graph, FloatView(state), x), model(*x), strict=True):
        assert torch.allclose(found, exact, atol=1e-5)


def test_a_view_decides_what_a_site_reads():
    class Doubling(FloatView):
        def site_input(self, node, value):
            return value * 2 if node.name == "body.conv2" else value

    x = -torch.ones(1, 1, 2, 2)
    assert run(DIAMOND, Doubling(STATE), [x])["body.conv2"].unique().tolist() == [-16.0]
