"""Folding: batch normalisation into the site before it, padding into the convolution behind it, and nowhere else."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyquant.capture import capture
from pyquant.fold import fold
from pyquant.graph import FloatView, Graph, Node, run
from tests.networks import NETWORKS, build, images, inputs, settle

# Weights and biases are computed in float64 and rounded once to float32.
HALF_ULP = 2.0**-24


def folded(model, example):
    return fold(*capture(settle(model), example))


def kinds(graph):
    return [node.op for node in graph.nodes]


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("groups", [1, 4])
def test_folded_convolution_differs_by_the_rounding_of_its_weights_only(affine, bias, groups):
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, bias=bias, groups=groups), nn.BatchNorm2d(8, eps=0.01, affine=affine)
    )
    graph, state, norms = folded(model, images(1, 4))
    assert kinds(graph) == ["input", "conv2d"]
    x = images(3, 4).double()
    with torch.no_grad():
        expected = model.double()(x)
    got = run(graph, FloatView({k: v.double() for k, v in state.items()}), [x])["0"]
    magnitude = {k: v.double().abs() for k, v in state.items()}
    bound = run(graph, FloatView(magnitude), [x.abs()])["0"] * HALF_ULP * 1.01
    assert ((got - expected).abs() <= bound).all()
    gamma = model[1].weight if affine else torch.ones(8)
    beta = model[1].bias if affine else torch.zeros(8)
    assert torch.equal(norms["0"].gamma, gamma.detach().float())
    assert torch.equal(norms["0"].beta, beta.detach().float())
    assert {value.dtype for value in state.values()} == {torch.float32}


def test_normalisation_behind_a_linear_layer_is_folded():
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU())
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    graph, state, norms = folded(model, x)
    assert kinds(graph) == ["input", "linear", "clamp"] and set(norms) == {"0"}
    with torch.no_grad():
        expected = model.double()(x.double())
    got = run(graph, FloatView({k: v.double() for k, v in state.items()}), [x.double()])[graph.outputs[0]]
    assert (got - expected).abs().max() <= 7 * HALF_ULP * 10


def test_normalisation_over_tokens_is_not_folded_into_features():
    """BatchNorm1d on ``[B, T, F]`` normalises dimension 1, the tokens, not the linear layer's outputs."""
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(4))
    x = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1))
    graph, state, norms = folded(model, x)
    assert kinds(graph) == ["input", "linear", "batch_norm"] and not norms
    with torch.no_grad():
        assert torch.equal(run(graph, FloatView(state), [x])[graph.outputs[0]], model(x))


class SharedOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        return self.bn(y) * y


class ReturnsBoth(SharedOutput):
    def forward(self, x):
        y = self.conv(x)
        return self.bn(y), y


class BeforeConvolution(SharedOutput):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x):
        return self.conv(self.bn(x))


class BehindActivation(SharedOutput):
    def forward(self, x):
        return self.bn(F.relu(self.conv(x)))


@pytest.mark.parametrize("network", [SharedOutput, ReturnsBoth, BeforeConvolution, BehindActivation])
def test_normalisation_stays_where_it_cannot_be_folded(network):
    model = network()
    graph, state, norms = folded(model, images(1))
    assert "batch_norm" in kinds(graph) and not norms
    x = images(2)
    with torch.no_grad():
        expected = model(x)
    first = expected[0] if isinstance(expected, tuple) else expected
    assert torch.equal(run(graph, FloatView(state), [x])[graph.outputs[0]], first)


def test_one_normalisation_of_two_is_folded():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    graph, _, norms = folded(model, images(1))
    assert kinds(graph) == ["input", "conv2d", "batch_norm"]
    assert torch.equal(norms["0"].gamma, model[1].weight.detach())


def test_normalisation_that_is_the_output():
    graph, _, _ = folded(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), images(1))
    assert graph.outputs == ("0",)


class TwiceWithNorms(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.b(self.conv(F.relu(self.a(self.conv(x)))))


def test_a_module_called_twice_gets_weights_of_its_own_at_each_site():
    model = TwiceWithNorms()
    graph, state, norms = folded(model, images(1))
    assert graph.sites == ("conv", "conv@1")
    for site, norm in (("conv", model.a), ("conv@1", model.b)):
        ratio = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
        expected = (model.conv.weight.double() * ratio.reshape(-1, 1, 1, 1)).float()
        assert torch.equal(state[f"{site}.weight"], expected.detach())
        assert torch.equal(norms[site].gamma, norm.weight.detach())


def test_the_captured_state_is_not_written_to(captured):
    graph, state = captured("inverted_bottleneck")
    before = {key: value.clone() for key, value in state.items()}
    fold(graph, state)
    assert all(torch.equal(state[key], value) for key, value in before.items())


# ---------------------------------------------------------------------------------------------------------- padding
def test_asymmetric_padding_moves_into_the_convolution(captured):
    graph, _, _ = fold(*captured("inverted_bottleneck"))
    assert graph.by_name["reduce"].attrs["padding"] == (0, 0, 1, 1)
    assert graph.by_name["reduce"].inputs == ("x",)


@pytest.mark.parametrize(
    ("pads", "own", "expected"),
    [
        ((1, 2, 3, 4), (0, 0), (3, 1, 4, 2)),  # torch's order is left, right, top, bottom
        ((1, 2), (0, 0), (0, 1, 0, 2)),
        ((0, 1, 0, 1), (2, 1), (2, 1, 3, 2)),
    ],
)
def test_padding_adds_to_the_convolutions_own(pads, own, expected):
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=own)

        def forward(self, x):
            return self.conv(F.pad(x, pads))

    model = Padded()
    graph, state, _ = folded(model, images(1))
    assert kinds(graph) == ["input", "conv2d"]
    assert graph.by_name["conv"].attrs["padding"] == expected
    x = images(2)
    got = run(graph, FloatView({k: v.double() for k, v in state.items()}), [x.double()])["conv"]
    with torch.no_grad():
        assert (got - model.double()(x.double())).abs().max() <= 1e-12


@pytest.mark.parametrize(
    "function",
    [
        lambda conv, x: conv(F.pad(x, (-1, 0, 0, 1))),
        lambda conv, x: conv(F.pad(x, (1, 1, 1, 1), value=0.5)),
        lambda conv, x: conv(F.pad(x, (1, 1, 1, 1), mode="reflect")),
        lambda conv, x: conv(F.pad(x, (0, 0, 0, 0, 1, 1))[:, 1:4]),
        lambda conv, x: (lambda y: conv(y) + y[:, :1, 1:-1, 1:-1])(F.pad(x, (1, 1, 1, 1))),
    ],
    ids=["cropping", "another value", "reflection", "channels", "read by others"],
)
def test_other_padding_stays(function):
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return function(self.conv, x)

    model = Padded()
    graph, state, _ = folded(model, images(1))
    assert graph.by_name["conv"].attrs["padding"] == (0, 0, 0, 0)
    x = images(2)
    got = run(graph, FloatView({k: v.double() for k, v in state.items()}), [x.double()])[graph.outputs[0]]
    with torch.no_grad():
        assert (got - model.double()(x.double())).abs().max() <= 1e-12


def test_padding_read_by_two_convolutions_moves_into_both():
    graph = Graph(
        (
            Node("x", "input", shape=(1, 4, 4)),
            Node("pad", "pad", ("x",), {"pads": (1, 0, 0, 0)}, shape=(1, 4, 5)),
            *(
                Node(
                    name,
                    "conv2d",
                    ("pad",),
                    {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1},
                    {"weight": "w"},
                    (1, 4, 5),
                )
                for name in ("a", "b")
            ),
        ),
        ("x",),
        ("a", "b"),
    )
    new, state, _ = fold(graph, {"w": torch.ones(1, 1, 1, 1)})
    assert kinds(new) == ["input", "conv2d", "conv2d"]
    assert [new.by_name[n].attrs["padding"] for n in "ab"] == [(0, 1, 0, 0)] * 2
    assert set(state) == {"a.weight", "a.bias", "b.weight", "b.bias"}


@pytest.mark.parametrize("name", NETWORKS)
def test_folded_networks_compute_the_same(captured, name):
    graph, state = captured(name)
    new, new_state, _ = fold(graph, state)
    batch = tuple(x.double() for x in inputs(name, 3))
    with torch.no_grad():
        expected = build(name).double()(*(x.clone() for x in batch))
    expected = expected if isinstance(expected, tuple) else (expected,)
    double = {k: v.double() if v.is_floating_point() else v for k, v in new_state.items()}
    values = run(new, FloatView(double), batch)
    for output, e in zip(new.outputs, expected, strict=True):
        # Each of at most 5 sites in a row rounds its weights once; a factor 100 covers the gains between them.
        assert (values[output] - e).abs().max() <= 100 * 5 * HALF_ULP * e.abs().max().clamp(min=1.0)
