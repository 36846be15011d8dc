"""What recipes take: every usual kind of data, pins and exclusions by name; and a typed error otherwise."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from pyquant.errors import DataError, DTypeError, GridError, PyquantError, ShapeError, SiteError
from pyquant.model import prepare
from pyquant.pipeline import RECIPES, Recipe, quantize, quantize_model
from pyquant.runtime.net import deploy
from tests.networks import InvertedBottleneck, build, images, inputs, settle
from tests.pipeline_cases import same, widths

QUICK = Recipe.nearest(0.25)
# Recipe.fixed without what takes time.
FIXED = replace(Recipe.fixed(4, 4), learn=False, tune_norms=False, tune_biases=False)


@pytest.fixture(scope="module")
def model():
    return settle(InvertedBottleneck())


@pytest.fixture(scope="module")
def ready(prepared):
    """The same model, prepared: captured once for all tests."""
    return prepared("inverted_bottleneck")


@pytest.fixture(scope="module")
def want(model):
    """What a plain tensor of ten images gives."""
    return quantize_model(model, images(10), QUICK)


def kinds(x):
    """The same rows in every usual wrapping, as functions, for some can be read only once."""
    labels = torch.zeros(len(x), dtype=torch.long)
    parts = list(zip(x.split(4), labels.split(4), strict=True))

    class Stream:
        def __iter__(self):
            return iter(parts)

    return {
        "list of tensors": lambda: list(x.split(3)),
        "pairs": lambda: parts,
        "lists": lambda: [list(pair) for pair in parts],
        "dicts": lambda: [{"label": y, "x": part} for part, y in parts],
        "generator": lambda: (pair for pair in parts),
        "iterator of tensors": lambda: iter(x.split(1)),
        "iterable without a length": Stream,
        "loader": lambda: torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(x, labels), batch_size=6
        ),
        "float64": x.double,
        "not contiguous": lambda: x.mT.contiguous().mT,
    }


# ------------------------------------------------------------------------------------------ data
@pytest.mark.parametrize("kind", kinds(images(1)))
def test_every_kind_of_data_gives_the_same_bytes(model, want, kind):
    assert same(quantize_model(model, kinds(images(10))[kind](), QUICK), want)


def test_steps_that_read_rows_more_than_once_see_them_all(ready):
    """Learning and tuning after a stream that is spent once calibration has read it."""
    recipe, data = Recipe.advanced(0.25), images(6)
    assert same(
        quantize_model(ready, kinds(data)["generator"](), recipe), quantize_model(ready, data, recipe)
    )


def test_a_model_already_prepared(model, want):
    q = prepare(model, images(1))
    assert same(quantize_model(q, kinds(images(10))["generator"](), QUICK), want)
    assert not q.weights and not q.ranges


@pytest.mark.parametrize("name", RECIPES)
def test_one_image_is_enough(ready, name):
    net = deploy(quantize_model(ready, images(1), RECIPES[name](0.25)))
    assert torch.isfinite(net(images(3, seed=5))).all()


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_two_inputs(kind):
    model, given = build("two_inputs"), inputs("two_inputs", 6)
    batch = (*given, torch.zeros(6)) if kind == "tuple" else {"mask": given[1], "image": given[0]}
    q = quantize_model(model, [batch], QUICK)
    net = deploy(q)
    exact = model(*given)
    # Which is the image and which the mask is known by their depth; swapped, nothing would run.
    assert (net(*given) - exact).norm() < 0.25 * exact.norm()


BAD = {
    "a number": (lambda: 7, DataError, "int"),
    "nothing": (lambda: None, DataError, "NoneType"),
    "no batch": (lambda: [], DataError, "data is empty"),
    "spent": (lambda: iter(()), DataError, "data is empty"),
    "no row": (lambda: images(1)[:0], DataError, "data is empty"),
    "an empty tuple": (lambda: [()], DataError, "does not give InvertedBottleneck.forward its 1 inputs"),
    "other names": (lambda: [{"y": images(1)}], DataError, "its 1 inputs .x."),
    "text": (lambda: ["images"], DataError, "does not give InvertedBottleneck.forward its 1 inputs"),
    "no batch dimension": (lambda: torch.tensor(1.0), DataError, r"\[B, \.\.\.\]"),
    "another shape later": (lambda: [images(1), images(1, 2)], ShapeError, "batch 1"),
    "not finite": (lambda: images(2).log(), DataError, "NaN or infinite"),
    "bytes later": (lambda: [images(1), images(1).byte()], DTypeError, "batch 1.*uint8"),
}


@pytest.mark.parametrize("case", BAD)
def test_data_that_no_model_takes(model, case):
    data, error, words = BAD[case]
    with pytest.raises(error, match=words):
        quantize_model(model, data(), QUICK)


@pytest.mark.parametrize(
    "data", [[7], images(2).numpy(), [images(2).numpy()]], ids=["numbers", "array", "arrays"]
)
def test_batches_of_another_kind_are_a_typed_error(model, data):
    with pytest.raises((DataError, DTypeError)):
        quantize_model(model, data, QUICK)


def test_batches_without_rows_are_passed_over(model, want):
    """As :func:`pyquant.data.load_batches` does with a model that is prepared."""
    assert same(quantize_model(model, [images(1)[:0], images(10)], QUICK), want)


# ------------------------------------------------------------------------------- pins and exclusions
def test_pins_by_name(ready):
    pins = {"expand": (3, 5), "head": (2, 8)}
    for recipe in (QUICK, replace(FIXED, ends=None), FIXED):
        found = widths(quantize_model(ready, images(4), recipe, bits=pins))
        assert {site: found[site] for site in pins} == pins
        assert set(found) == {"reduce", "expand", "depthwise", "project", "head"}
    assert found["reduce"] == (8, 8) and found["depthwise"] == (4, 4)
    assert pins == {"expand": (3, 5), "head": (2, 8)}


def test_excluded_sites_stay_float(model):
    """The classifier's float weights are those of the model, and the ends move to what is left."""
    q = quantize_model(model, images(4), FIXED, exclude=["head"])
    assert widths(q) == {"reduce": (8, 8), "expand": (4, 4), "depthwise": (4, 4), "project": (8, 8)}
    net = deploy(q)
    kinds = {row["name"]: row["kind"] for row in net.describe()}
    assert kinds["head"] == "aten.linear.default" and "head" not in net.info["plan"]
    with torch.no_grad():
        silent = settle(InvertedBottleneck())
        silent.head.weight.zero_()
    net = quantize(silent, images(4), QUICK, exclude=("head",))
    assert torch.equal(net(images(2)), silent.head.bias.expand(2, 5))


@pytest.mark.parametrize("argument", ["bits", "exclude"])
@pytest.mark.parametrize("name", ["nearest", "fixed"])
def test_unknown_sites_are_answered_with_near_names(model, argument, name):
    recipe = FIXED if name == "fixed" else QUICK
    given = {"bits": {"block.expand": (8, 8)}} if argument == "bits" else {"exclude": ("block.expand",)}
    with pytest.raises(SiteError, match=r"site 'block\.expand' does not exist .* near names: expand"):
        quantize_model(model, images(2), recipe, **given)


def test_an_excluded_site_cannot_be_pinned(model):
    with pytest.raises(SiteError, match="site 'head' does not exist in this model of 4 sites"):
        quantize_model(model, images(2), QUICK, bits={"head": (8, 8)}, exclude=("head",))


@pytest.mark.parametrize("pair", [(9, 8), (8, 1), (4.5, 8)], ids=str)
def test_pins_off_the_grid(ready, pair):
    with pytest.raises(GridError, match="is not a width pyquant has"):
        quantize_model(ready, images(2), QUICK, bits={"expand": pair})


@pytest.mark.parametrize("pair", [8, (8,), (8, 8, 8), None], ids=str)
def test_pins_that_are_no_pair(ready, pair):
    with pytest.raises(PyquantError):
        quantize_model(ready, images(2), QUICK, bits={"expand": pair})


@pytest.mark.parametrize("recipe", ["light", "", 0.13, Recipe.light], ids=repr)
def test_what_is_no_recipe(model, recipe):
    for door in (quantize, quantize_model):
        with pytest.raises(DataError, match="is no Recipe; give one, such as"):
            door(model, images(1), recipe)


@pytest.mark.parametrize("bits", [["head"], "head", [("head", (8, 8))]], ids=repr)
def test_pins_that_are_no_mapping(ready, bits):
    with pytest.raises(GridError, match="is no mapping; give site"):
        quantize_model(ready, images(2), QUICK, bits=bits)


def test_pins_as_lists(ready):
    """As they come out of a file of JSON."""
    given = quantize_model(ready, images(4), QUICK, bits={"head": [8, 8]})
    assert same(given, quantize_model(ready, images(4), QUICK, bits={"head": (8, 8)}))


@pytest.mark.parametrize("exclude", ["head", "nowhere"])
def test_exclusions_of_a_prepared_model_are_not_passed_over(model, exclude):
    """Done, or refused with a typed error: not forgotten."""
    try:
        q = quantize_model(prepare(model, images(1)), images(2), QUICK, exclude=(exclude,))
    except PyquantError:
        return
    assert exclude == "head" and "head" not in q.graph.sites


@pytest.mark.parametrize(
    ("change", "words"),
    [({"method": "guess"}, "range method 'guess' is unknown"), ({"flow": "blockwise"}, "flow='blockwise'")],
)
def test_recipes_of_unknown_methods(ready, change, words):
    with pytest.raises(DataError, match=words):
        quantize_model(ready, images(2), replace(Recipe.fixed(), **change))


# ----------------------------------------------------------------------------------- several outputs
@pytest.mark.parametrize("name", ["nearest", "light", "advanced"])
def test_networks_of_several_outputs(name):
    model, data = build("two_outputs"), inputs("two_outputs", 8)[0]
    net = quantize(model, data, RECIPES[name](0.3))
    for found, exact in zip(net(data), model(data), strict=True):
        assert (found - exact).norm() < 0.25 * exact.norm()


def test_a_network_of_one_number_a_row():
    class Height(nn.Sequential):
        def forward(self, x):
            return super().forward(x).squeeze(1)

    model = settle(Height(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1)))
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(2))
    found, exact = quantize(model, x, Recipe.fixed(8, 8))(x), model(x)
    assert found.shape == exact.shape == (8,) and (found - exact).norm() < 0.1 * exact.norm()
