"""Recipes end to end on small networks: which steps run, what the budget buys, and nothing else moves."""

import itertools
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from safetensors.torch import load_file

from pyquant.data import load_batches
from pyquant.errors import BudgetError
from pyquant.fidelity import float_outputs, network_loss
from pyquant.model import nearest_weights, with_ranges
from pyquant.pipeline import RECIPES, Recipe, float_bytes, quantize, quantize_model
from pyquant.runtime.net import deploy, load
from tests.networks import InvertedBottleneck, ResNet, images, settle
from tests.pipeline_cases import packed, same, tensors, widths

NETWORKS = {"resnet": (ResNet, 16), "inverted_bottleneck": (InvertedBottleneck, 8)}
BUDGET = 0.21
STEPS = {
    "nearest": ["calibrate", "allocate"],
    "light": ["calibrate", "allocate", "bn_tune"],
    "advanced": ["calibrate", "allocate", "adaquant", "bn_tune", "bias_tune"],
    "relaxed": ["calibrate", "allocate", "adaquant", "bn_tune", "bias_tune"],
    "fixed": ["calibrate", "adaquant", "bn_tune", "bias_tune"],
}


def recipe_of(name):
    return Recipe.fixed(4, 6) if name == "fixed" else RECIPES[name](BUDGET)


def model_of(network):
    return settle(NETWORKS[network][0](), seed=len(network))


def data_of(network, rows=16, seed=1):
    return images(rows, side=NETWORKS[network][1], seed=seed)


@pytest.fixture(scope="module")
def made():
    """(network, recipe) -> the quantised model and the calls of progress; each is made once."""
    done = {}

    def make(network, name):
        if (network, name) not in done:
            calls = []
            q = quantize_model(
                model_of(network),
                data_of(network),
                recipe_of(name),
                progress=lambda *call: calls.append(call),
            )
            done[network, name] = q, calls
        return done[network, name]

    return make


both = pytest.mark.parametrize("network", NETWORKS)
every = pytest.mark.parametrize("name", STEPS)
budgeted = pytest.mark.parametrize("name", RECIPES)


# --------------------------------------------------------------------------------------- recipes
@both
@every
def test_the_steps_of_a_recipe(made, network, name):
    q, _ = made(network, name)
    assert [entry["step"] for entry in q.log] == STEPS[name]


@both
@budgeted
def test_the_budget_is_kept_to_the_byte(made, network, name, tmp_path):
    """Counted by hand, by the solver, by the network and in the file."""
    q, _ = made(network, name)
    count = packed(q, {site: w for site, (w, _) in widths(q).items()})
    assert q.log[1]["costs"] == {"weight_bytes": count}
    net = deploy(q)
    assert net.sizes["weights"] == count and net.sizes["float_weights"] == float_bytes(q)
    net.save(tmp_path / "net.pq")
    stored = [t for key, t in load_file(tmp_path / "net.pq").items() if key.endswith(".weight")]
    assert len(stored) == len(q.graph.sites) and sum(t.nbytes for t in stored) == count
    assert count <= Fraction(BUDGET) * float_bytes(q)
    allowed = range(2, 9) if name == "relaxed" else (4, 8)
    assert {w for w, _ in widths(q).values()} <= set(allowed) and {a for _, a in widths(q).values()} == {8}
    assert len({w for w, _ in widths(q).values()}) > 1


@both
def test_nearest_is_nearest(made, network):
    q, _ = made(network, "nearest")
    for site in q.graph.sites:
        want = nearest_weights(q, site, q.plan[site].weight)
        assert all(map(torch.equal, tensors(q.weights[site]), tensors(want)))


@both
def test_light_keeps_the_codes_of_nearest_and_corrects_scales(made, network):
    (plain, _), (light, _) = made(network, "nearest"), made(network, "light")
    assert widths(light) == widths(plain)
    assert all(torch.equal(light.weights[s].codes, plain.weights[s].codes) for s in plain.graph.sites)
    assert light.log[-1]["sites"] > 0 and not same(light, plain)


@both
def test_learning_makes_a_network_more_faithful_on_other_images(made, network):
    others, loss = data_of(network, 64, seed=99), {}
    for name in ("nearest", "advanced"):
        q, _ = made(network, name)
        batches = load_batches(others, q.graph)
        loss[name] = network_loss(q, batches, float_outputs(q, batches))
    assert loss["advanced"] < loss["nearest"]


@both
def test_fixed_gives_the_ends_eight_bits(made, network):
    q, _ = made(network, "fixed")
    first, *middle, last = q.graph.sites
    assert widths(q) == dict.fromkeys(middle, (4, 6)) | {first: (8, 8), last: (8, 8)}


def test_fixed_without_ends():
    q = quantize_model(model_of("resnet"), data_of("resnet", 4), Recipe.fixed(5, 7, ends=None))
    assert set(widths(q).values()) == {(5, 7)}


def test_ends_and_pins_stand_outside_the_allocation_and_inside_the_budget():
    recipe = replace(Recipe.nearest(BUDGET), ends=(8, 8))
    pins = {"fc": (5, 8), "block.conv2": (3, 7)}
    q = quantize_model(model_of("resnet"), data_of("resnet", 4), recipe, bits=pins)
    found = widths(q)
    assert found["stem.0"] == (8, 8) and {site: found[site] for site in pins} == pins
    assert {found[site][0] for site in ("block.conv1", "block.downsample.0")} <= {4, 8}
    assert q.log[1]["costs"] == {"weight_bytes": packed(q, {s: w for s, (w, _) in found.items()})}


def test_input_bits_as_wide_as_the_weights():
    """And the ranges of the inputs are placed anew on the grids that were chosen."""
    x = data_of("resnet", 4)
    q = quantize_model(model_of("resnet"), x, Recipe.nearest(BUDGET, None))
    assert {w for w, _ in widths(q).values()} == {4, 8}
    assert all(w == a for w, a in widths(q).values())
    placed = with_ranges(q, "mse").ranges
    assert placed.keys() == q.ranges.keys()
    for key, found in q.ranges.items():
        assert torch.equal(found.scale, placed[key].scale)
        assert torch.equal(found.zero_point, placed[key].zero_point)
    assert torch.isfinite(deploy(q)(x)).all()


# ------------------------------------------------------------------------------- networks that run
@every
def test_quantize_is_deploy_of_quantize_model(made, name, tmp_path):
    """Made anew, to the same bytes."""
    q, _ = made("inverted_bottleneck", name)
    net = quantize(model_of("inverted_bottleneck"), data_of("inverted_bottleneck"), recipe_of(name))
    x = data_of("inverted_bottleneck", 5, seed=7)
    assert torch.equal(net(x), deploy(q)(x)) and net.info == deploy(q).info
    assert net.info["plan"] == {site: list(bits) for site, bits in widths(q).items()}
    net.save(tmp_path / "net.pq")
    deploy(q).save(tmp_path / "other.pq")
    assert (tmp_path / "net.pq").read_bytes() == (tmp_path / "other.pq").read_bytes()
    assert torch.equal(load(tmp_path / "net.pq")(x), net(x))
    exact = model_of("inverted_bottleneck")(x)
    assert (net(x) - exact).norm() < 0.25 * exact.norm()


def test_quantize_passes_on_where_to_run():
    model, x = model_of("inverted_bottleneck"), data_of("inverted_bottleneck", 4)
    net = quantize(model, x, recipe_of("nearest"), backend="reference", threads=1)
    assert net.choice.backend == "reference" and net.threads == 1


def test_the_default_recipe_is_advanced_at_thirteen_percent():
    with pytest.raises(BudgetError, match=r"budget=0\.13 allows 172 bytes"):
        quantize(model_of("inverted_bottleneck"), data_of("inverted_bottleneck", 4))


def test_the_users_model_is_left_as_it_was():
    """By the recipe that has every step."""
    model = model_of("inverted_bottleneck").train()
    model.expand.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    hook = model.expand.register_forward_hook(lambda *_: None)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modules = {key: set(vars(module)) for key, module in model.named_modules()}
    x = data_of("inverted_bottleneck", 4)
    kept = x.clone()
    torch.manual_seed(3)
    random = torch.get_rng_state()
    quantize(model, x, recipe_of("advanced"))
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert {key: set(vars(module)) for key, module in model.named_modules()} == modules
    frozen = {key for key, value in model.named_parameters() if not value.requires_grad}
    assert frozen == {"expand.weight"} and torch.equal(model.head.weight.grad, torch.ones(5, 4))
    assert list(model.expand._forward_hooks) == [hook.id]
    assert torch.equal(x, kept) and torch.equal(torch.get_rng_state(), random) and torch.is_grad_enabled()


@every
def test_progress_names_every_stage_and_counts_to_its_end(made, name):
    calls = made("resnet", name)[1]
    stages = {
        "nearest": ["sensitivity"],
        "light": ["sensitivity"],
        "fixed": ["adaquant", "bias tuning"],
    }.get(name, ["candidates", "sensitivity", "adaquant", "bias tuning"])
    assert [stage for stage, _ in itertools.groupby(calls, lambda call: call[0])] == stages
    for stage, group in itertools.groupby(calls, lambda call: call[0]):
        steps = [(done, total) for _, done, total in group]
        done, totals = zip(*steps, strict=True)
        # Each step once, in order; bias tuning may leap to its end where no epoch helps.
        assert done[:-1] == tuple(range(1, len(done))) and set(totals) == {done[-1]}, stage
        assert stage == "bias tuning" or len(done) == done[-1], stage
