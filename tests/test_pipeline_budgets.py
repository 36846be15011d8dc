"""Budgets of recipes: the best plan that fits, found again by trying all; and a sentence for nonsense."""

import itertools
import re
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from pyquant.errors import BudgetError, GridError, SiteError
from pyquant.pipeline import RECIPES, Recipe, allocate, examine, float_bytes, quantize_model
from tests.networks import InvertedBottleneck, build, images, settle
from tests.pipeline_cases import packed, widths


@pytest.fixture(scope="module")
def study(prepared):
    """What nearest rounding of the ResNet moves, for tests to replace with numbers of their own."""
    return examine(prepared("resnet"), images(4, side=16), Recipe.nearest(0.5), {})


def with_moved(study, recipe, seed):
    """The study with degradations drawn anew; more bits are never worse, so there is nothing to clean up."""
    generator = torch.Generator().manual_seed(seed)
    moved = {}
    for site in study.q.graph.sites:
        weight, value = torch.rand(2, generator=generator).tolist()
        moved[site] = {(w, a): weight * 4.0**-w + value * 4.0**-a for w, a in recipe.choices}
    return replace(study, moved=moved)


def bits_of(found):
    return {site: (choice.weight_bits, choice.input_bits) for site, choice in found.choices.items()}


def degradation(study, bits):
    """The predicted sum, exactly."""
    return sum(Fraction(study.moved[site][pair]) for site, pair in bits.items())


def plans(study):
    """Every plan in which the sites on the pooled stem agree on their input: (bytes, degradation, bits)."""
    sites = list(study.moved)
    for chosen in itertools.product(*(study.moved[site] for site in sites)):
        bits = dict(zip(sites, chosen, strict=True))
        if bits["block.conv1"][1] == bits["block.downsample.0"][1]:
            cost = packed(study.q, {site: w for site, (w, _) in bits.items()})
            yield cost, degradation(study, bits), bits


# -------------------------------------------------------------------------------- the best that fits
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("input_bits", [8, None])
@pytest.mark.parametrize("budget", [0.14, 0.2, 0.23, 0.5])
def test_a_budget_buys_the_least_degradation(study, seed, input_bits, budget):
    recipe = Recipe.nearest(budget, input_bits)
    given = with_moved(study, recipe, seed)
    bits = bits_of(allocate(given, recipe))
    affordable = [plan for plan in plans(given) if plan[0] <= Fraction(budget) * float_bytes(given.q)]
    assert bits in [plan[2] for plan in affordable]
    assert degradation(given, bits) == min(plan[1] for plan in affordable)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("input_bits", [8, None])
def test_a_largest_degradation_costs_the_fewest_bytes(study, seed, input_bits):
    recipe = Recipe.nearest(0.5, input_bits)
    given = with_moved(study, recipe, seed)
    known = sorted(plans(given), key=lambda plan: plan[1])
    for share in (0.0, 0.3, 0.7, 1.0):
        limit = float(known[round(share * (len(known) - 1))][1])
        found = allocate(given, replace(recipe, budget=None, max_degradation=limit))
        assert found.degradation <= limit
        assert found.costs == {"weight_bytes": min(plan[0] for plan in known if float(plan[1]) <= limit)}
        assert packed(given.q, {s: w for s, (w, _) in bits_of(found).items()}) == found.costs["weight_bytes"]


def test_a_largest_degradation_end_to_end():
    """A network that may lose less keeps more bytes, and the log says what was predicted."""
    kept = []
    for limit in (1.0, 3e-4):
        recipe = Recipe("x", ((4, 8), (8, 8)), max_degradation=limit, learn=False, tune_norms=False)
        q = quantize_model(build("resnet"), images(8, side=16), replace(recipe, tune_biases=False))
        entry = q.log[-1]
        assert entry["step"] == "allocate" and entry["degradation"] <= limit
        assert entry["costs"] == {"weight_bytes": packed(q, {s: w for s, (w, _) in widths(q).items()})}
        kept.append(entry["costs"]["weight_bytes"])
    assert kept[0] < kept[1]


def test_sites_on_one_value_read_it_at_one_width(study):
    """The shortcut gains from 8 bits and its codes cost no more; the convolution beside it must follow."""
    recipe = Recipe.nearest(0.9, None)
    moved = {site: {(4, 4): 0.0, (8, 8): 0.0} for site in study.q.graph.sites}
    given = replace(study, moved=moved | {"block.downsample.0": {(4, 4): 1.0, (8, 8): 0.0}})
    low, whole = dict.fromkeys(given.q.graph.sites, 4), float_bytes(given.q)
    enough = packed(given.q, low | {"block.conv1": 8, "block.downsample.0": 8})
    assert packed(given.q, low | {"block.downsample.0": 8}) < enough - 1
    found = bits_of(allocate(given, replace(recipe, budget=(enough + 0.5) / whole)))
    assert found["block.conv1"] == found["block.downsample.0"] == (8, 8)
    found = bits_of(allocate(given, replace(recipe, budget=(enough - 0.5) / whole)))
    assert found["block.conv1"] == found["block.downsample.0"] == (4, 4)


def test_a_pin_that_contradicts_a_tie_is_refused():
    """The shortcut reads what the pinned convolution reads, and its choices have other input widths."""
    with pytest.raises(SiteError, match=r"block\.conv1.*block\.downsample\.0.*no width in common"):
        quantize_model(build("resnet"), images(4, side=16), Recipe.nearest(0.3), bits={"block.conv1": (4, 4)})


# ------------------------------------------------------------------------------ budgets without a plan
@pytest.mark.parametrize("budget", [0.1, 1e-9])
def test_a_budget_too_small_names_the_smallest(study, budget):
    """Every site at 4 bits: the number is of the network's own bytes, and the fraction named is enough."""
    recipe = Recipe.nearest(budget)
    given = with_moved(study, recipe, 0)
    least = packed(given.q, dict.fromkeys(given.q.graph.sites, 4))
    with pytest.raises(BudgetError) as caught:
        allocate(given, recipe)
    message = str(caught.value)
    assert f"budget={budget} " in message and re.search(rf"\b{least}\b", message)
    smallest = float(re.search(r"smallest feasible budget is (0\.\d+)", message).group(1))
    found = allocate(given, replace(recipe, budget=smallest))
    assert found.costs == {"weight_bytes": least}
    # It is named to four digits, and no coarser.
    assert 0 <= smallest - least / float_bytes(given.q) < 1.01e-4


def test_one_byte_less_than_the_smallest_is_refused(study):
    recipe = Recipe.nearest()
    given = with_moved(study, recipe, 0)
    least, whole = packed(given.q, dict.fromkeys(given.q.graph.sites, 4)), float_bytes(given.q)
    found = allocate(given, replace(recipe, budget=(least + 0.5) / whole))
    assert found.costs == {"weight_bytes": least}
    with pytest.raises(BudgetError, match="smallest feasible"):
        allocate(given, replace(recipe, budget=(least - 0.5) / whole))


def test_the_smallest_budget_named_is_feasible():
    model = nn.Sequential(nn.Linear(7, 20), nn.ReLU(), nn.Linear(20, 3)).eval()
    x = torch.randn(4, 7, generator=torch.Generator().manual_seed(1))
    with pytest.raises(BudgetError, match=r"smallest feasible budget is 0\.145\."):
        quantize_model(model, x, Recipe.nearest(0.1))
    q = quantize_model(model, x, Recipe.nearest(0.145))
    assert q.log[-1]["costs"] == {"weight_bytes": 116}


def test_a_largest_degradation_that_no_plan_keeps(study):
    recipe = Recipe.nearest(0.5)
    given = with_moved(study, recipe, 1)
    least = min(plan[1] for plan in plans(given))
    with pytest.raises(BudgetError, match="smallest feasible is degradation") as caught:
        allocate(given, replace(recipe, budget=None, max_degradation=float(least) / 2))
    assert float(re.search(r"feasible is degradation (\S+?)\.?$", str(caught.value)).group(1)) == float(least)


def test_pins_that_alone_exceed_the_budget():
    model, x = settle(InvertedBottleneck()), images(4)
    sites = ("reduce", "expand", "depthwise", "project", "head")
    with pytest.raises(BudgetError, match="no choice of bits takes fewer than 372"):
        quantize_model(model, x, Recipe.nearest(0.25), bits=dict.fromkeys(sites, (8, 8)))


@pytest.mark.parametrize("input_bits", [8, None])
def test_an_infeasible_budget_is_told_before_calibration(prepared, monkeypatch, input_bits):
    """With inputs as wide as weights a pin at 8 bits holds its neighbour on the same value at 8 bits, too."""
    monkeypatch.setattr("pyquant.pipeline.calibrate", lambda *_, **__: pytest.fail("it was calibrated"))
    q, pins = prepared("resnet"), {"block.downsample.0": (8, 8)}
    bits = dict.fromkeys(q.graph.sites, 4) | {"block.downsample.0": 8}
    if input_bits is None:
        bits["block.conv1"] = 8
    least, recipe = packed(q, bits), Recipe.nearest(0.14, input_bits)
    budget = (least - 0.5) / float_bytes(q)
    for start in (
        lambda: quantize_model(q, images(4, side=16), replace(recipe, budget=budget), bits=pins),
        lambda: examine(q, images(4, side=16), replace(recipe, budget=budget), pins),
    ):
        with pytest.raises(BudgetError, match=f"fewer than {least}; the smallest feasible budget"):
            start()
    with pytest.raises(pytest.fail.Exception, match="it was calibrated"):
        examine(q, images(4, side=16), replace(recipe, budget=(least + 0.5) / float_bytes(q)), pins)


# ------------------------------------------------------------------------------------ nonsense
@pytest.mark.parametrize("budget", [13, 13.0, np.float32(13)], ids=repr)
def test_a_budget_in_percent(budget):
    words = rf"budget={budget} is above 1, the float32 size; 13 % is 0\.13\."
    with pytest.raises(BudgetError, match=words):
        Recipe.light(budget)
    assert Recipe.light(1).budget == 1
    assert Recipe("x", ((4, 8), (8, 8)), max_degradation=13).max_degradation == 13


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, Fraction])
def test_budgets_of_other_kinds_of_number(study, kind):
    """Taken as they are written: a half is a half."""
    given, want = Recipe.nearest(kind(0.5)), Recipe.nearest(0.5)
    other = with_moved(study, want, 3)
    assert allocate(other, given) == allocate(other, want)


@pytest.mark.parametrize("field", ["budget", "max_degradation"])
@pytest.mark.parametrize(
    "value",
    [
        *(0, 0.0, -0.1, float("nan"), float("inf"), -float("inf"), "0.13", (0.13,), 0.1 + 0j, True),
    ],
    ids=repr,
)
def test_budgets_that_make_no_sense(field, value):
    with pytest.raises(BudgetError, match=re.escape(f"{field}={value!r} makes no sense")):
        Recipe("x", ((4, 8), (8, 8)), **{field: value})


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_checks_its_budget(name):
    with pytest.raises(BudgetError, match="budget=-1 makes no sense"):
        RECIPES[name](-1)


def test_several_choices_need_something_to_choose_by():
    with pytest.raises(BudgetError, match=r"needs a budget .* or a max_degradation"):
        Recipe("x", ((4, 8), (8, 8)))


def test_a_recipe_without_choices():
    with pytest.raises(GridError, match="at least one"):
        Recipe("x", ())


@pytest.mark.parametrize("pair", [(1, 8), (9, 8), (8, 1), (8, 16), (4.0, 8)], ids=str)
def test_choices_off_the_grid(pair):
    with pytest.raises(GridError, match="is not a width pyquant has"):
        Recipe("x", ((8, 8), pair), budget=0.5)
    with pytest.raises(GridError, match="is not a width pyquant has"):
        Recipe.fixed(4, 8, ends=pair)


@pytest.mark.parametrize("choices", [(4, 8), ((8, 8), (8,)), ("48", "88"), 8], ids=repr)
def test_choices_that_are_no_pairs(choices):
    with pytest.raises(GridError, match=re.escape(f"choices={choices!r} are no pairs; give tuples")):
        Recipe("a", choices, budget=0.2)


@pytest.mark.parametrize("ends", [8, (8,), (8, 8, 8), "88"], ids=repr)
def test_ends_that_are_no_pair(ends):
    with pytest.raises(GridError, match=re.escape(f"ends={ends!r} is no pair; give (weight bits")):
        Recipe.fixed(4, 8, ends=ends)


@pytest.mark.parametrize(
    "limit", [{"budget": 0.2}, {"max_degradation": 0.1}], ids=lambda limit: next(iter(limit))
)
def test_one_choice_leaves_a_limit_nothing_to_choose(limit):
    with pytest.raises(BudgetError, match="one choice"):
        Recipe("x", ((8, 8),), **limit)


def test_a_budget_beside_a_largest_degradation_is_kept(study):
    """Only all sites at 8 bits are good enough, and they are too many bytes: there is no such plan."""
    recipe = Recipe.nearest(0.14)
    given = with_moved(study, recipe, 2)
    best = float(min(plan[1] for plan in plans(given)))
    with pytest.raises(BudgetError):
        allocate(given, replace(recipe, max_degradation=best))
