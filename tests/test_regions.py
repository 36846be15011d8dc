"""Regions: what runs in integers and what follows a site is found by structure, whatever things are called."""

from dataclasses import replace

import pytest
import torch.nn.functional as F
from torch import nn

from pyquant.capture import capture
from pyquant.fold import fold
from pyquant.graph import Graph
from pyquant.regions import Group, regions, source
from tests.networks import NETWORKS, build, images

# Every node that stays float, by network; inputs aside.
FLOAT_NODES = {
    "conv_bn_relu": set(),
    "resnet": set(),
    "inverted_bottleneck": set(),
    "squeeze_excite": {"aten", "unary"},
    "pre_activation": {"batch_norm", "add"},
    "functional": {"aten"},
    "called_twice": set(),
    "in_place": {"aten", "clamp"},
    "two_inputs": set(),
    "two_outputs": set(),
    "text": {"aten", "add"},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_which_nodes_are_integer(captured, name):
    graph, _, _ = fold(*captured(name))
    found = regions(graph)
    left = {node.op for node in graph.nodes if node.name not in found.integer and node.op != "input"}
    assert left == FLOAT_NODES[name]
    assert set(graph.sites) <= found.integer


def test_residual_block(captured):
    graph, _, _ = fold(*captured("resnet"))
    groups = regions(graph).groups
    add, relu = (
        n.name for n in graph.nodes[graph.nodes.index(graph.by_name["block.downsample.0"]) + 1 :][:2]
    )
    assert graph.by_name[add].op == "add"
    # The later of the two convolutions that meet takes the sum: the other's value is there when it runs.
    assert groups["block.conv2"] == Group("block.conv2")
    assert groups["block.downsample.0"] == Group(relu, "block.conv2", 0.0, None, (add, relu))
    assert groups["fc"] == Group("fc")


def test_inverted_bottleneck(captured):
    graph, _, _ = fold(*captured("inverted_bottleneck"))
    found = regions(graph)
    expand, depthwise, project = (found.groups[s] for s in ("expand", "depthwise", "project"))
    assert (expand.low, expand.high) == (depthwise.low, depthwise.high) == (0.0, 6.0)
    assert project.residual == found.groups["reduce"].last
    assert (project.low, project.high) == (None, None)
    assert graph.by_name[project.last].op == "add"


def renamed(graph, name):
    return Graph(
        tuple(replace(n, name=name[n.name], inputs=tuple(name[i] for i in n.inputs)) for n in graph.nodes),
        tuple(name[n] for n in graph.inputs),
        tuple(name[n] for n in graph.outputs),
    )


@pytest.mark.parametrize("network", NETWORKS)
def test_names_mean_nothing(captured, network):
    graph, _, _ = fold(*captured(network))
    name = {node.name: f"n{len(graph.nodes) - i}" for i, node in enumerate(graph.nodes)}
    before, after = regions(graph), regions(renamed(graph, name))
    assert after.integer == {name[n] for n in before.integer}
    assert after.quantized == tuple(name[n] for n in before.quantized)
    assert list(after.groups) == [name[head] for head in before.groups]
    for head, group in before.groups.items():
        other = after.groups[name[head]]
        assert other.last == name[group.last]
        assert other.residual == (name[group.residual] if group.residual else None)
        assert (other.low, other.high) == (group.low, group.high)


class Misnamed(nn.Module):
    """A residual block whose modules are called what they are not."""

    def __init__(self, block):
        super().__init__()
        self.relu, self.identity, self.fc = block.conv1, block.conv2, block.downsample
        self.conv1, self.conv2 = block.bn1, block.bn2

    def forward(self, x):
        y = self.conv2(self.identity(F.relu(self.conv1(self.relu(x)))))
        return F.relu(y + self.fc(x))


def test_modules_of_other_names_give_the_same_groups():
    blocks = [build("resnet").block, Misnamed(build("resnet").block).eval()]
    shapes = []
    for block in blocks:
        graph, _, _ = fold(*capture(block, images(1, 4)))
        place = {node.name: i for i, node in enumerate(graph.nodes)}
        found = regions(graph)
        shapes.append(
            [
                (place[head], place[g.last], place.get(g.residual), g.low, g.high)
                for head, g in found.groups.items()
            ]
        )
    assert shapes[0] == shapes[1]


# ------------------------------------------------------------------------------------------------ single structures
class Tail(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, x):
        return self.function(self, x)


def found_in(function):
    graph, _, _ = fold(*capture(Tail(function), images(1)))
    return graph, regions(graph)


def test_an_activation_read_by_an_integer_node_is_fused_and_a_last_one_is_not():
    graph, found = found_in(lambda s, x: F.relu(s.b(F.relu(s.a(x)))))
    assert found.groups["a"].low == 0.0
    assert found.groups["b"] == Group("b")  # its value leaves as floats, before the ReLU
    assert graph.nodes[-1].name not in found.integer


def test_a_shared_value_takes_no_tail():
    _, found = found_in(lambda s, x: (lambda y: s.b(F.relu(y)) + s.c(y))(s.a(x)))
    assert found.groups["a"] == Group("a")


def test_a_value_added_to_itself_is_an_add_of_its_own():
    graph, found = found_in(lambda s, x: (lambda y: s.b(F.relu(y + y)))(s.a(x)))
    add = next(n.name for n in graph.nodes if n.op == "add")
    assert found.groups["a"] == Group("a")
    assert found.groups[add].low == 0.0 and found.groups[add].residual is None


def test_an_operand_that_comes_later_is_not_a_residual():
    graph, found = found_in(lambda s, x: (lambda early: s.c(F.relu(s.b(F.relu(early))) + early))(s.a(x)))
    add = next(n.name for n in graph.nodes if n.op == "add")
    assert found.groups["a"] == Group("a")
    # The ReLU between b and the sum stands in the way of fusing; the sum is a head of its own.
    assert found.groups["b"].residual is None and found.groups["b"].low == 0.0
    assert add in found.groups


def test_an_operand_whose_clamp_alone_comes_later_is_a_residual():
    """The clamp runs with its site, which is done by then."""
    graph, found = found_in(lambda s, x: (lambda a, b: s.c(b + F.relu(a)))(s.a(x), s.b(x)))
    assert [node.op for node in graph.nodes][1:4] == ["conv2d", "conv2d", "clamp"]
    assert found.groups["b"].residual == found.groups["a"].last == graph.nodes[3].name


@pytest.mark.parametrize(("size", "integer"), [(5, False), (1, True)])
def test_a_flattened_map_that_is_reordered_is_integer_for_linear_layers_only(size, integer):
    """Its codes are in the order (H, W, C): columns of weights can follow it, and nothing else does."""
    for middle, right in ((nn.Identity(), True), (nn.SiLU(), integer)):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), middle, nn.Linear(4 * size**2, 2))
        graph, _, _ = fold(*capture(model, images(1, side=size + 2)))
        flat = next(node.name for node in graph.nodes if node.op == "flatten")
        assert (flat in regions(graph).integer) == right


def test_pooling_and_lookups_between_sites_stay_integer():
    graph, found = found_in(lambda s, x: s.b(F.avg_pool2d(F.max_pool2d(F.silu(s.a(x)), 2), 2)))
    assert all(node.name in found.integer for node in graph.nodes if node.op != "input")
    pooled = next(n for n in graph.nodes if n.op == "max_pool")
    assert source(graph, pooled.name) == pooled.inputs[0]
    assert pooled.name not in found.quantized and pooled.inputs[0] in found.quantized


def test_nothing_behind_the_last_site_is_integer():
    graph, found = found_in(lambda s, x: F.avg_pool2d(F.silu(s.a(x)), 2))
    assert found.integer == {"a"} and found.quantized == (graph.inputs[0],)
