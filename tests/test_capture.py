"""Capture: the graph computes what the module computes, and what it cannot follow it refuses by name."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyquant.capture import capture, example_of
from pyquant.errors import CaptureError, DataError
from pyquant.graph import FloatView, run
from tests.networks import NETWORKS, CalledTwice, InvertedBottleneck, TwoInputs, build, images, inputs

# Under 20 operations that sum under 200 terms each: float64 rounding stays below 20 * 200 * 2^-53 < 1e-12.
ROUNDING = 1e-12


class Computes(nn.Module):
    """A module whose forward is given as a function of (self, x)."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *args):
        return self.function(self, *args)


def conv():
    return nn.Conv2d(3, 3, 3, padding=1)


def image(rows=1):
    return torch.randn(rows, 3, 6, 6, generator=torch.Generator().manual_seed(5))


def outputs_of(graph, state, batch):
    values = run(graph, FloatView(state), batch)
    return [values[name] for name in graph.outputs]


def in_double(state):
    return {key: value.double() if value.is_floating_point() else value for key, value in state.items()}


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("name", NETWORKS)
def test_graph_computes_what_the_module_computes(captured, name, rows):
    graph, state = captured(name)
    batch = tuple(x.double() for x in inputs(name, rows, seed=rows))
    with torch.no_grad():
        expected = build(name).double()(*(x.clone() for x in batch))
        got = outputs_of(graph, in_double(state), batch)
    expected = list(expected) if isinstance(expected, tuple) else [expected]
    assert len(got) == len(expected)
    for g, e in zip(got, expected, strict=True):
        assert g.shape == e.shape
        assert (g - e).abs().max() <= ROUNDING * e.abs().max().clamp(min=1.0)


@pytest.mark.parametrize("name", ["called_twice", "in_place", "pre_activation", "text"])
def test_without_pooling_float32_results_are_the_same_bytes(captured, name):
    graph, state = captured(name)
    batch = inputs(name, 3)
    with torch.no_grad():
        expected = build(name)(*(x.clone() for x in batch))
        assert torch.equal(outputs_of(graph, state, batch)[0], expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_are_those_of_the_values(captured, name):
    graph, state = captured(name)
    values = run(graph, FloatView(state), inputs(name, 2), keep=None)
    for node in graph.nodes:
        assert tuple(values[node.name].shape[1:]) == node.shape, node.name


def test_running_the_graph_leaves_its_inputs_alone(captured):
    graph, state = captured("in_place")
    batch = inputs("in_place", 2)
    before = batch[0].clone()
    run(graph, FloatView(state), batch)
    assert torch.equal(batch[0], before)


def test_the_users_model_and_example_are_left_as_they_were():
    model = build("in_place").train()
    calls = []
    hook = model.conv.register_forward_hook(lambda *_: calls.append(1))
    model.last.weight.grad = torch.ones_like(model.last.weight)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    example = image()
    kept = example.clone()
    graph, state = capture(model, example)
    assert model.training and all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert model.last.weight.grad is not None and list(model.conv._forward_hooks) == [hook.id]
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(example, kept)
    calls.clear()
    model(image())
    assert calls == [1]
    # Nor does the captured state share memory with the model.
    with torch.no_grad():
        model.conv.weight.zero_()
    assert state[graph.by_name["conv"].params["weight"]].abs().max() > 0


def test_batch_normalisation_is_captured_in_evaluation_mode():
    model = nn.Sequential(conv(), nn.BatchNorm2d(3)).train()
    graph, state = capture(model, image(4))
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(image(3))
    assert torch.allclose(outputs_of(graph, state, [image(3)])[0], expected, atol=0, rtol=0)
    assert torch.equal(model[1].running_mean, torch.zeros(3))


def test_sites_bear_the_qualified_names_of_their_modules(captured):
    assert captured("resnet")[0].sites == ("stem.0", "block.conv1", "block.conv2", "block.downsample.0", "fc")
    assert captured("inverted_bottleneck")[0].sites == ("reduce", "expand", "depthwise", "project", "head")
    assert captured("conv_bn_relu")[0].sites == ("0", "3", "9")
    assert captured("functional")[0].sites == ("conv2d", "linear")


def test_a_module_called_twice_is_two_sites(captured):
    assert captured("called_twice")[0].sites == ("conv", "conv@1")


def test_modules_named_like_functions_do_not_collide_with_them():
    model = Computes(lambda s, x: F.relu(s.add(s.relu(x))) + s.relu(x), add=conv(), relu=conv()).eval()
    graph, state = capture(model, image())
    names = [node.name for node in graph.nodes]
    assert len(set(names)) == len(names)
    assert graph.sites == ("relu", "add", "relu@1")
    with torch.no_grad():
        assert torch.equal(outputs_of(graph, state, [image(2)])[0], model(image(2)))


@pytest.mark.parametrize(
    ("function", "low", "high"),
    [
        (F.relu, 0.0, None),
        (F.relu6, 0.0, 6.0),
        (nn.ReLU6(inplace=True), 0.0, 6.0),
        (lambda x: F.hardtanh(x, -0.5, 0.25), -0.5, 0.25),
        (lambda x: x.clamp(min=-0.1), -0.1, None),
        (lambda x: x.clamp(max=0.3), None, 0.3),
        (lambda x: x.clamp_min(0.2), 0.2, None),
        (lambda x: torch.clip(x, 0, 1), 0, 1),
    ],
)
def test_every_spelling_of_a_clamp_is_one_kind(function, low, high):
    graph, state = capture(Computes(lambda s, x: function(s.conv(x)), conv=conv()), image())
    clamp = graph.nodes[-1]
    assert (clamp.op, clamp.attrs["low"], clamp.attrs["high"]) == ("clamp", low, high)
    values = run(graph, FloatView(state), [image(3)], keep=["conv"])
    assert torch.equal(values[clamp.name], function(values["conv"].clone()))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.add(x.tanh(), alpha=2),
        lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
        lambda x: F.max_pool2d(x, 2, dilation=2),
        lambda x: F.avg_pool2d(x, 3, 2, padding=1),
        lambda x: F.avg_pool2d(x, 4, ceil_mode=True),
        lambda x: F.avg_pool2d(x, 2, divisor_override=3),
        lambda x: F.adaptive_avg_pool2d(x, 4),
        lambda x: x.mean((1, 3)),
        lambda x: F.pad(x, (1, 1), value=0.5),
    ],
)
def test_options_without_a_form_of_ours_are_not_dropped(function):
    model = Computes(lambda s, x: function(s.conv(x)), conv=conv())
    graph, state = capture(model, image())
    with torch.no_grad():
        expected = model.double()(image(3).double())
    got = outputs_of(graph, in_double(state), [image(3).double()])[0]
    assert got.shape == expected.shape and (got - expected).abs().max() <= ROUNDING


def test_dropout_vanishes_in_evaluation_mode():
    graph, _ = capture(nn.Sequential(conv(), nn.Dropout(0.5), nn.Dropout2d(0.5), nn.ReLU()).train(), image())
    assert [node.op for node in graph.nodes] == ["input", "conv2d", "clamp"]


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_named_paddings(padding):
    # One of the two sums of padding is odd: its larger half lies below.
    model = nn.Conv2d(3, 4, (4, 3), padding=padding, dilation=(1, 2))
    graph, state = capture(model, torch.zeros(1, 3, 9, 8))
    x = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(2))
    expected = model(x).detach()
    got = outputs_of(graph, state, [x])[0]
    bound = 37 * 2.0**-23 * model.weight.abs().amax() * x.abs().max() * 36
    assert got.shape == expected.shape and (got - expected).abs().max() <= bound


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_float_precisions_become_float32(dtype):
    graph, state = capture(nn.Sequential(conv(), nn.BatchNorm2d(3)).to(dtype), image().to(dtype))
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert graph.by_name[graph.inputs[0]].attrs["dtype"] == "float32"


def test_an_input_changed_in_place_is_no_output(captured):
    assert len(captured("in_place")[0].outputs) == 1


def test_unused_weights_are_not_kept():
    _, state = capture(Computes(lambda s, x: s.used(x), used=conv(), unused=conv()), image())
    assert sorted(state) == ["used.bias", "used.weight"]


# ------------------------------------------------------------------------------------------------- what is refused
class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.conv(x) * self.calls


REFUSED = {
    "control_flow": (lambda s, x: s.conv(x) if x.sum() > 0 else x, ("data-dependent",)),
    "complex_dtype": (lambda s, x: s.conv(x.to(torch.complex64).abs()), ("complex64",)),
    "fft": (lambda s, x: torch.fft.fft(s.conv(x)).real, ("fft",)),
    "nonzero": (lambda s, x: s.conv(x).nonzero(), ("aten.nonzero",)),
    "random": (lambda s, x: F.dropout(s.conv(x), 0.5, True), ("dropout",)),
    "index_error": (lambda s, x: s.conv(x).sum(7), ("Dimension out of range",)),
    "python_error": (lambda s, x: s.absent(x), ("absent",)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_the_module_and_the_reason(name):
    function, reasons = REFUSED[name]
    with pytest.raises(CaptureError) as caught:
        capture(nn.Sequential(nn.Identity(), nn.Sequential(Computes(function, conv=conv()))), image())
    message = str(caught.value)
    assert "module '1.0'" in message
    assert all(reason in message for reason in reasons)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("function", "given"),
    [
        (lambda s, x: {"y": s.conv(x)}, "dict"),
        (lambda s, x: (s.conv(x), 1.5), "1.5"),
        (lambda s, x: (s.conv(x), None), "None"),
        (lambda s, x: (s.conv(x), s.conv.weight), "weight"),
    ],
)
def test_results_other_than_computed_tensors_are_refused(function, given):
    with pytest.raises(CaptureError, match="returns") as caught:
        capture(Computes(function, conv=conv()), image())
    assert given in str(caught.value)


def test_a_model_that_changes_its_own_state_is_refused():
    with pytest.raises(CaptureError, match="buffer 'calls'"):
        capture(Counter(), image())


@pytest.mark.parametrize(
    "example",
    [
        None,
        3,
        "image",
        (),
        [1, 2],
        torch.zeros(()),
        torch.zeros(0, 3, 6, 6),
        torch.zeros(1, 3, 6, 6, device="meta"),
    ],
    ids=["none", "number", "text", "nothing", "numbers", "scalar", "no rows", "elsewhere"],
)
def test_bad_examples(example):
    with pytest.raises(DataError, match="example"):
        capture(conv(), example)


def test_an_example_of_the_wrong_shape_says_so():
    with pytest.raises(CaptureError, match=r"CalledTwice.*module 'conv'.*channels"):
        capture(CalledTwice(), torch.zeros(1, 4, 6, 6))


# --------------------------------------------------------------------------------------- examples
def test_examples_of_every_kind():
    model, x, y = InvertedBottleneck(), images(3), torch.zeros(3)
    for data in ([x], [(x, y)], [[x, y]], [{"y": y, "x": x}], iter([(x, y)]), [(x,), (images(5),)]):
        example = example_of(model, data)
        assert isinstance(example, tuple) and len(example) == 1 and torch.equal(example[0], x)
    assert [t.tolist() for t in example_of(model, x)] == [x[:1].tolist()]


def test_examples_of_two_inputs():
    image, mask = inputs("two_inputs", 2)
    for batch in ((image, mask), (image, mask, torch.zeros(2)), {"mask": mask, "label": 1, "image": image}):
        example = example_of(TwoInputs(), [batch])
        assert len(example) == 2 and torch.equal(example[0], image) and torch.equal(example[1], mask)
    for batch in (image, (image,), {"image": image}, (image, 1), (image, None)):
        with pytest.raises(DataError, match=r"does not give TwoInputs.forward its 2 inputs \(image, mask\)"):
            example_of(TwoInputs(), [batch])


def test_arguments_with_a_default_are_not_asked_for():
    class Scaled(nn.Module):
        def forward(self, x, scale=2.0, *, shift=0.0):
            return x * scale + shift

    x, y = images(2), torch.zeros(2)
    example = example_of(Scaled(), [(x, y)])
    assert len(example) == 1 and torch.equal(example[0], x)


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv()

    def forward(self, x, mask=None, shift=None, *, scale=None):
        x = self.conv(x)
        x = x if mask is None else x * mask
        return x if shift is None else x + shift


def test_a_dict_gives_arguments_with_a_default_too():
    """In the order of forward; a tuple does not, for what follows may be labels."""
    x, mask, shift = image(), image() * 2, image() * 3
    for batch, want in (
        ({"shift": shift, "label": 1, "mask": mask, "x": x}, (x, mask, shift)),
        ({"mask": mask, "x": x}, (x, mask)),
        ({"mask": None, "x": x}, (x,)),
        ((x, mask), (x,)),
    ):
        found = example_of(Masked(), [batch])
        assert len(found) == len(want) and all(map(torch.equal, found, want))


@pytest.mark.parametrize("name", ["shift", "scale"])
def test_a_dict_with_a_gap_is_refused(name):
    """By position, the shift would be taken for the mask: another network."""
    words = (
        rf"Masked\.forward its x, {name}, .* by position; give the first of \(x, mask, shift\) without a gap"
    )
    with pytest.raises(DataError, match=words):
        example_of(Masked(), [{"x": image(), name: image()}])


def test_inputs_without_a_name():
    model, x = Computes(lambda self, x: self.conv(x), conv=conv()), image(2)
    for data in (x[:1], [x[:1]], [(x[:1],)]):
        assert [t.tolist() for t in example_of(model, data)] == [x[:1].tolist()]
    for batch in ((x, x), {"x": x}, ()):
        with pytest.raises(
            DataError, match=r"Computes\.forward names no input that it needs, so a batch of type"
        ):
            example_of(model, [batch])


# --------------------------------------------------------------------------------------- wrappers
@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.compile,
        lambda model: nn.DataParallel(torch.compile(model)),
        lambda model: torch.compile(nn.DataParallel(model)),
    ],
    ids=["parallel", "compiled", "parallel compiled", "compiled parallel"],
)
def test_wrappers_are_taken_off(wrap):
    """Sites have the names of the model's own modules, and the arguments are those of its forward."""
    model, given = wrap(build("two_inputs")), inputs("two_inputs", 2)
    example = example_of(model, [(*given, torch.zeros(2))])
    assert len(example) == 2
    graph, state = capture(model, example)
    assert graph.sites == ("first", "second", "head") and graph.inputs == ("image", "mask")
    assert torch.equal(state["first.weight"], build("two_inputs").first.weight)


@pytest.mark.parametrize(
    "model", [None, lambda x: x, nn.ReLU, "resnet20"], ids=["none", "function", "class", "name"]
)
def test_what_is_no_module_is_refused(model):
    for door in (capture, example_of):
        with pytest.raises(CaptureError, match=rf"type {type(model).__name__} is no module; give a trained"):
            door(model, image())
