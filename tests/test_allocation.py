"""Several budgets at once, ties from the graph and from the caller, curves, and the check of what was added up."""

import itertools
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import nn

from pyquant.allocation import Limits, additivity, allocate, curve, graph_ties, plan_of
from pyquant.costs import COSTS, in_float
from pyquant.errors import BudgetError, SiteError
from pyquant.model import prepare, value_grids, with_bits
from pyquant.pipeline import Recipe, examine, pareto, quantize_model
from pyquant.regions import regions, source
from pyquant.runtime.latency import Latencies
from pyquant.steps.allocate import Tie
from pyquant.steps.sensitivity import sensitivity
from tests.networks import build, images, settle
from tests.pipeline_cases import widths

GRID = tuple(itertools.product((3, 8), (4, 8)))


@pytest.fixture(scope="module")
def study(prepared):
    """The ResNet at two weight and two input widths, with times that no machine has."""
    recipe = Recipe("x", GRID, budget=0.9, learn=False)
    made = examine(prepared("resnet"), images(6, side=16), recipe, {})
    times = {
        site: {(w, a): 100 * i + 10 * w + (a == 4) for w, a in GRID}
        for i, site in enumerate(made.q.graph.sites)
    }
    return replace(made, latencies=Latencies(times, 1234, "nowhere"))


def plans(study, ties=()):
    """Every plan that keeps the graph's tie and the others: (costs, degradation, bits)."""
    sites = list(study.moved)
    for chosen in itertools.product(GRID, repeat=len(sites)):
        bits = dict(zip(sites, chosen, strict=True))
        if bits["block.conv1"][1] != bits["block.downsample.0"][1]:
            continue
        if any(len({bits[site] for site in tie}) > 1 for tie in ties):
            continue
        costs = {n: sum(COSTS[n](study.q, s, *b) for s, b in bits.items()) for n in COSTS}
        costs["latency_ns"] = 1234 + sum(study.latencies.sites[s][b] for s, b in bits.items())
        yield costs, sum(Fraction(study.moved[s][b]) for s, b in bits.items()), bits


# --------------------------------------------------------------------------------------------------- several budgets
SHARES = [
    {"bops": 0.03},
    {"bops": 0.03, "activation_bytes": 0.2},
    {"weight_bytes": 0.15, "bops": 0.04, "activation_bytes": 0.22},
    {"weight_bytes": 0.15, "latency_ns": 2500},
    {"weight_bytes": 0.2, "bops": 0.04, "activation_bytes": 0.2, "latency_ns": 0.95},
]


@pytest.mark.parametrize("budgets", SHARES, ids="+".join)
@pytest.mark.parametrize("tied", [(), (("stem.0", "fc"),)], ids=["free", "tied"])
def test_all_budgets_hold_and_nothing_better_does(study, budgets, tied):
    found = allocate(study, Limits(budgets=budgets, ties=tied))
    widest = 1234 + sum(t[8, 8] for t in study.latencies.sites.values())
    caps = {
        name: share
        if share > 1
        else Fraction(str(share)) * (widest if name == "latency_ns" else in_float(study.q, name))
        for name, share in budgets.items()
    }
    fits = [p for p in plans(study, tied) if all(p[0][name] <= cap for name, cap in caps.items())]
    assert fits and plan_of(found) in [bits for _, _, bits in fits]
    assert sum(Fraction(study.moved[s][b]) for s, b in plan_of(found).items()) == min(d for _, d, _ in fits)
    costs = next(c for c, _, bits in fits if bits == plan_of(found))
    assert found.costs == {name: costs[name] for name in {"weight_bytes", *budgets}}


@pytest.mark.parametrize("cost", ["bops", "activation_bytes", "latency_ns"])
def test_the_least_of_any_cost_within_a_degradation(study, cost):
    known = list(plans(study))
    limit = float(sorted(d for _, d, _ in known)[len(known) // 3])
    found = allocate(study, Limits(max_degradation=limit, cost=cost))
    assert found.costs[cost] == min(costs[cost] for costs, d, _ in known if float(d) <= limit)
    assert found.degradation <= limit


def test_an_unreachable_budget_among_several(study):
    least = min(costs["bops"] for costs, _, _ in plans(study))
    with pytest.raises(
        BudgetError, match=rf"budgets\['bops'\]={least - 1} .* fewer than {least}; .* is {least}\."
    ):
        allocate(study, Limits(budget=0.5, budgets={"bops": least - 1}))
    assert allocate(study, Limits(budgets={"bops": least})).costs["bops"] == least
    with pytest.raises(BudgetError, match="together; each alone can reach"):
        cheap = min(costs["weight_bytes"] for costs, _, _ in plans(study))
        limit = float(min(d for _, d, _ in plans(study)))
        allocate(study, Limits(budgets={"weight_bytes": cheap}, max_degradation=limit))


NONSENSE = {
    "no mapping": (Limits(budgets=0.5), "is no mapping"),
    "unknown": (Limits(budgets={"joules": 3}), "'joules' is unknown; use weight_bytes, bops"),
    "unknown cost": (Limits(max_degradation=1.0, cost="joules"), "'joules' is unknown"),
    "negative": (Limits(budgets={"bops": -1}), r"budgets\['bops'\]=-1 makes no sense"),
    "nothing": (Limits(budgets={"bops": None}), r"budgets\['bops'\]=None makes no sense"),
    "not a number": (Limits(budgets={"bops": float("nan")}), "nan makes no sense"),
    "twice": (Limits(budget=0.5, budgets={"weight_bytes": 0.5}), "limit the same bytes"),
}


@pytest.mark.parametrize("case", NONSENSE)
def test_limits_that_make_no_sense(case):
    limits, words = NONSENSE[case]
    with pytest.raises(BudgetError, match=words):
        Recipe("x", GRID, limits.budget, limits.max_degradation, budgets=limits.budgets, cost=limits.cost)


def test_latency_that_was_not_measured(study):
    with pytest.raises(BudgetError, match="latency_ns is limited and was not measured"):
        allocate(replace(study, latencies=None), Limits(budgets={"latency_ns": 5000}))


# --------------------------------------------------------------------------------------------------------------- ties
class Attention(nn.Module):
    """Queries, keys and values of one input, a gate and an up projection of another."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(3))
        self.gate, self.up, self.down = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x):
        mixed = torch.softmax(self.q(x) @ self.k(x).transpose(1, 2), 2) @ self.v(x)
        return self.down(torch.relu(self.gate(mixed)) * self.up(mixed))


def test_linear_layers_of_one_value_share_both_widths():
    q = prepare(settle(Attention()), torch.zeros(1, 5, 6))
    found = {(tie.sites, tie.on) for tie in graph_ties(q)}
    for sites in (("q", "k", "v"), ("gate", "up")):
        assert {(sites, "input"), (sites, "both")} <= found
    assert len(found) == 4


def test_convolutions_of_one_value_share_its_width_alone(prepared):
    assert graph_ties(prepared("resnet")) == [Tie(("block.conv1", "block.downsample.0"), on="input")]


@pytest.mark.parametrize("name", ["resnet", "inverted_bottleneck", "in_place"])
def test_a_residual_join_ties_nothing_more(prepared, name):
    """Whatever the sites around it ask for: every value that an add reads as codes has 8 bits."""
    q = prepared(name)
    q = replace(q, plan=with_bits(q.plan, dict.fromkeys(q.graph.sites, (2, 2))))
    grids, groups = value_grids(q), regions(q.graph).groups
    joined = [g.residual for g in groups.values() if g.residual]
    joined += [
        i for head in groups if q.graph.by_name[head].op == "add" for i in q.graph.by_name[head].inputs
    ]
    assert joined and all(grids[source(q.graph, value)].bits == 8 for value in joined)


def test_ties_of_the_caller(study):
    free = plan_of(allocate(study, Limits(budget=0.13)))
    tied = plan_of(allocate(study, Limits(budget=0.13, ties=[("stem.0", "block.conv1", "fc")])))
    assert len({free[s] for s in ("stem.0", "block.conv1", "fc")}) > 1
    assert len({tied[s] for s in ("stem.0", "block.conv1", "fc")}) == 1


def test_ties_that_cannot_be(prepared, study):
    with pytest.raises(SiteError, match=r"site 'conv9' does not exist"):
        allocate(study, Limits(budget=0.5, ties=[("fc", "conv9")]))
    for tie in (("fc",), "fc", ("fc", "fc")):
        with pytest.raises(SiteError, match="ties nothing; name two sites or more"):
            Recipe("x", GRID, budget=0.5, ties=(tie,))
    recipe = Recipe("x", GRID, budget=0.5, learn=False, ties=(("stem.0", "fc"),))
    pins = {"stem.0": (3, 8), "fc": (8, 8)}
    with pytest.raises(SiteError, match=r"stem\.0, fc are tied but have no pair of widths in common"):
        quantize_model(prepared("resnet"), images(4, side=16), recipe, bits=pins)


# ------------------------------------------------------------------------------------------------- the check, the curve
def test_additivity_is_what_it_says(study):
    bits = plan_of(allocate(study, Limits(budget=0.13)))
    found = additivity(study, bits, pairs=3)
    choices = {site: (pair,) for site, pair in bits.items()}
    alone = {s: t[bits[s]] for s, t in sensitivity(study.q, images(6, side=16), choices, study.found).items()}
    assert found["predicted"] == pytest.approx(sum(alone.values()), rel=1e-12)
    assert 0.2 < found["measured"] / found["predicted"] < 5 and 0 <= found["agreement"] <= 1
    sums = sorted((alone[a] + alone[b] for a, b in itertools.pairwise(alone)), reverse=True)[:3]
    assert [predicted for _, _, predicted, _ in found["pairs"]] == pytest.approx(sums, rel=1e-12)
    for a, b, predicted, measured in found["pairs"]:
        assert predicted == pytest.approx(alone[a] + alone[b]) and 0 < measured != predicted


def test_a_curve_is_the_best_plan_of_every_budget(study):
    shares = [0.01, 0.11, 0.13, 0.2, 0.25]
    rows = curve(study, Limits(budgets={"bops": 0.05}), shares, measure=True)
    assert [row["budget"] for row in rows] == shares
    assert rows[0]["status"] == "infeasible" and "smallest feasible budget is" in rows[0]["why"]
    for row in rows[1:]:
        found = allocate(study, Limits(budget=row["budget"], budgets={"bops": 0.05}))
        assert (row["bits"], row["degradation"]) == (plan_of(found), found.degradation)
        assert row["costs"] == dict(found.costs) and row["binding"] == list(found.binding)
        assert row["measured"] == additivity(study, row["bits"])["measured"]
    moved = [row["degradation"] for row in rows[1:]]
    assert moved == sorted(moved, reverse=True) and moved[0] > moved[-1]


def test_pareto_in_one_call(prepared):
    recipe = Recipe.nearest(0.01, input_bits=(4, 8))
    rows = pareto(prepared("resnet"), images(6, side=16), recipe, [0.13, 0.2], bits={"fc": (8, 8)})
    made = quantize_model(
        prepared("resnet"), images(6, side=16), replace(recipe, budget=0.2), bits={"fc": (8, 8)}
    )
    assert widths(made) == rows[1]["bits"] and made.log[-1]["costs"] == rows[1]["costs"]
    rows = pareto(prepared("resnet"), images(6, side=16), replace(recipe, budget=1), [0.02], cost="bops")
    assert rows[0]["binding"] == ["bops"]


def test_a_recipe_of_two_budgets_end_to_end():
    recipe = Recipe.nearest(0.2, range(4, 9), budgets={"bops": 0.03, "activation_bytes": 0.2})
    q = quantize_model(build("resnet"), images(6, side=16), recipe)
    entry, found = q.log[-1], widths(q)
    for name in ("weight_bytes", "bops", "activation_bytes"):
        assert entry["costs"][name] == sum(COSTS[name](q, s, *b) for s, b in found.items())
    assert entry["costs"]["weight_bytes"] <= 0.2 * in_float(q, "weight_bytes")
    assert entry["costs"]["bops"] <= 0.03 * in_float(q, "bops")
    assert entry["costs"]["activation_bytes"] <= 0.2 * in_float(q, "activation_bytes")
    assert entry["additivity"]["pairs"] and entry["additivity"]["predicted"] > 0
