"""Bit allocation against plain enumeration, exact dynamic programmes, and its own promises."""

import time
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch

from pyquant.errors import BudgetError
from pyquant.steps.allocate import (
    Choice,
    Tie,
    minimise_cost,
    minimise_degradation,
    monotone,
    smallest_feasible,
)
from tests.steps.exact_allocation import every_plan, least_objective, least_under_two_caps

# Degradations of the random tables are whole multiples of this, so that int64 sums of them are exact.
UNIT = 2.0**-50


def site(*choices):
    """Write a site's choices as (weight bits, input bits, degradation, weight bytes) or with bops besides."""
    return [
        Choice(w, a, d, dict(zip(("weight_bytes", "bops"), costs, strict=False)))
        for w, a, d, *costs in choices
    ]


def network(sites, widths, seed):
    """Return a table of real sizes with losses from 1e-6 to 1e-1, and its units, weight bytes and bops."""
    rng = np.random.default_rng(seed)
    weights, macs = (
        np.round(10 ** rng.uniform(*span, sites)).astype(np.int64) for span in ((3, 6.7), (5, 8))
    )
    of_weight, of_input = (10 ** rng.uniform(-5, -1, sites) for _ in range(2))
    bits = list(product(*widths))
    w, a = np.array(bits).T
    loss = np.outer(of_weight, 4.0 ** (2 - w)) + np.outer(of_input, 4.0 ** (2 - a)) * (len(widths[1]) > 1)
    loss = np.clip(loss * np.exp(0.1 * rng.normal(size=loss.shape)), 1e-6, 1e-1)
    units = np.round(loss / UNIT).astype(np.int64)
    size, work = weights[:, None] * w // 8, macs[:, None] * w * a
    table = {
        f"layer{s}": [
            Choice(*bits[k], units[s, k] * UNIT, {"weight_bytes": int(size[s, k]), "bops": int(work[s, k])})
            for k in range(len(bits))
        ]
        for s in range(sites)
    }
    return table, units, size, work


# --- monotone ----------------------------------------------------------------------------------------------


def degradations(table):
    return {name: [choice.degradation for choice in choices] for name, choices in table.items()}


def test_monotone_leaves_a_monotone_site_as_it_is_and_keeps_everything_else():
    table = {"a": site((8, 8, 0.0, 8), (4, 8, 0.25, 4), (2, 8, 0.5, 2)), "b": site((4, 4, 0.5, 1))}
    assert monotone(table) == table


def test_monotone_meets_a_violation_half_way():
    noisy = {"a": site((2, 8, 1.0, 2), (4, 8, 0.25, 4), (8, 8, 0.75, 8))}
    assert degradations(monotone(noisy)) == {"a": [1.0, 0.5, 0.5]}
    by_input = {"a": site((4, 8, 0.75, 2), (4, 4, 0.25, 4))}
    assert degradations(monotone(by_input)) == {"a": [0.5, 0.5]}


def test_monotone_compares_only_choices_where_one_has_no_fewer_bits_of_either():
    crossed = {"a": site((4, 8, 0.25, 4), (8, 4, 0.75, 8))}
    assert monotone(crossed) == crossed


def test_monotone_counts_negative_noise_as_nothing():
    assert degradations(monotone({"a": site((4, 8, 0.5, 4), (8, 8, -0.25, 8))})) == {"a": [0.5, 0.0]}


@pytest.mark.parametrize("seed", range(5))
def test_monotone_is_monotone_idempotent_and_never_moves_a_value_further_than_it_must(seed):
    rng = np.random.default_rng(seed)
    bits = [bits for bits in product(range(2, 9), repeat=2) if rng.random() < 0.8]
    noisy = {"a": site(*((w, a, float(10 ** rng.uniform(-6, -1)), 1) for w, a in bits))}
    clean = monotone(noisy)
    pairs = list(product(zip(noisy["a"], clean["a"], strict=True), repeat=2))
    more = [
        (x, y)
        for x, y in pairs
        if x[0].weight_bits >= y[0].weight_bits and x[0].input_bits >= y[0].input_bits
    ]
    assert all(x[1].degradation <= y[1].degradation for x, y in more)
    assert monotone(clean) == clean
    must = max(x[0].degradation - y[0].degradation for x, y in more) / 2
    moved = max(abs(b.degradation - c.degradation) for b, c in zip(noisy["a"], clean["a"], strict=True))
    assert moved == pytest.approx(must, rel=1e-12)


# --- against every plan ------------------------------------------------------------------------------------


def small_case(seed):
    """Return a random small table with ties, as choices and as tuples for the enumeration."""
    rng = np.random.default_rng(seed)
    bits = list(product((2, 4, 8), (4, 8)))
    table, plain = {}, []
    for s in range(5):
        kept = [b for b in bits if b == (4, 8) or rng.random() < 0.7]
        units = np.round(10 ** rng.uniform(-6, -1, len(kept)) / UNIT)
        costs = rng.integers(1, 60, (len(kept), 2))
        table[f"s{s}"] = site(
            *((*b, float(u * UNIT), int(c[0]), int(c[1])) for b, u, c in zip(kept, units, costs, strict=True))
        )
        plain.append(
            [(b, Fraction(float(u * UNIT)), c.tolist()) for b, u, c in zip(kept, units, costs, strict=True)]
        )
    ties = [[], [Tie(("s0", "s3"))], [Tie(("s0", "s1"), on="input"), Tie(("s1", "s4"), on="input")]]
    ties += [[Tie(("s4", "s2")), Tie(("s2", "s0", "s1"), on="input")]]
    chosen = ties[seed % 4]

    def allowed(plan):
        for tie in chosen:
            of_tie = {
                plan[int(name[1:])] if tie.on == "both" else plan[int(name[1:])][1] for name in tie.sites
            }
            if len(of_tie) > 1:
                return False
        return True

    return table, chosen, list(every_plan(plain, allowed)), rng


def keeps_ties(allocation, ties):
    for tie in ties:
        chosen = [allocation.choices[name] for name in tie.sites]
        bits = {(c.weight_bits if tie.on == "both" else None, c.input_bits) for c in chosen}
        if len(bits) > 1:
            return False
    return True


@pytest.mark.parametrize("seed", range(32))
def test_least_degradation_is_that_of_the_best_of_all_plans(seed):
    table, ties, plans, rng = small_case(seed)
    names = ("weight_bytes", "bops")[: 1 + seed % 2]
    lows = [min(costs[i] for _, costs in plans) for i in range(2)]
    budgets = {name: int(lows[i] * rng.uniform(1.0, 1.8)) for i, name in enumerate(names)}
    fits = [d for d, costs in plans if all(costs[i] <= budgets[name] for i, name in enumerate(names))]
    if not fits:
        with pytest.raises(BudgetError, match="together"):
            minimise_degradation(table, budgets, ties)
        return
    found = minimise_degradation(table, budgets, ties)
    assert sum(Fraction(c.degradation) for c in found.choices.values()) == min(fits)
    assert found.degradation == float(min(fits))
    assert list(found.choices) == list(table) and all(c in table[name] for name, c in found.choices.items())
    assert keeps_ties(found, ties)
    assert all(found.costs[name] <= budgets[name] for name in names)
    assert found.costs == {
        n: sum(c.costs[n] for c in found.choices.values()) for n in ("weight_bytes", "bops")
    }
    assert found.status == "optimal" and 0 <= found.gap <= 1e-9


@pytest.mark.parametrize("seed", range(32))
def test_least_cost_is_that_of_the_best_of_all_plans(seed):
    table, ties, plans, rng = small_case(seed)
    limit = float(min(d for d, _ in plans)) * rng.uniform(1.0, 3.0)
    budgets = {"bops": int(min(costs[1] for _, costs in plans) * 1.6)} if seed % 2 else {}
    fits = [
        costs[0]
        for d, costs in plans
        if d <= Fraction(limit) and (not budgets or costs[1] <= budgets["bops"])
    ]
    if not fits:
        with pytest.raises(BudgetError, match=r"degradation <= .* and bops <= .* together"):
            minimise_cost(table, "weight_bytes", limit, budgets, ties)
        return
    found = minimise_cost(table, "weight_bytes", limit, budgets, ties)
    assert found.costs["weight_bytes"] == min(fits)
    assert found.degradation <= limit and keeps_ties(found, ties)
    assert all(found.costs[name] <= budgets[name] for name in budgets)


@pytest.mark.parametrize("seed", range(8))
def test_smallest_feasible_is_the_least_cost_of_all_plans_and_can_be_asked_for(seed):
    table, ties, plans, _ = small_case(seed)
    for i, cost in enumerate(("weight_bytes", "bops")):
        least = smallest_feasible(table, cost, ties)
        assert least == min(costs[i] for _, costs in plans)
        assert minimise_degradation(table, {cost: least}, ties).costs[cost] == least
        with pytest.raises(
            BudgetError, match=f"{cost} <= {least - 1}; the smallest feasible is {cost} {least}"
        ):
            minimise_degradation(table, {cost: least - 1}, ties)


@pytest.mark.parametrize(("limit", "cost"), [(1.0, 2), (1.0 + 2.0**-52, 3)])
def test_a_sum_half_way_between_two_floats_is_rounded_to_even(limit, cost):
    """Half a unit in the last place above 1 rounds down, and above its neighbour up, past the limit."""
    half_way = Fraction(limit) + Fraction(1, 2**53) - 1
    table = {"a": site((8, 8, 1.0, 1)), "b": site((4, 8, float(half_way), 1), (8, 8, 0.0, 2))}
    found = minimise_cost(table, "weight_bytes", limit)
    assert found.costs["weight_bytes"] == cost and found.degradation <= limit


# --- against the exact dynamic programmes ------------------------------------------------------------------

NETWORKS = [(50, 7), (50, 49), (200, 7), (200, 49)]


def widths_of(choices):
    return range(2, 9), range(2, 9) if choices == 49 else (8,)


@pytest.mark.parametrize("share", [0.35, 0.5, 0.8])
@pytest.mark.parametrize(("sites", "choices"), NETWORKS)
def test_many_sites_reach_the_exact_least_degradation(sites, choices, share, record_property):
    table, units, size, _ = network(sites, widths_of(choices), seed=sites + choices)
    budget = int(size.max(1).sum() * share)
    started = time.perf_counter()
    found = minimise_degradation(table, {"weight_bytes": budget})
    record_property("seconds", time.perf_counter() - started)
    best = least_objective(units.astype(np.float64), size, budget) * UNIT
    assert found.degradation == pytest.approx(best, rel=1e-9)
    assert found.costs["weight_bytes"] <= budget
    assert found.status == "optimal" and found.binding == ("weight_bytes",)


@pytest.mark.parametrize(("sites", "choices"), NETWORKS)
def test_many_sites_reach_the_exact_least_cost(sites, choices):
    table, units, size, _ = network(sites, widths_of(choices), seed=sites * choices)
    limit = float(units.min(1).sum() * UNIT) * 5
    found = minimise_cost(table, "weight_bytes", limit)
    assert found.costs["weight_bytes"] == least_objective(size.astype(np.float64), units, int(limit / UNIT))
    assert found.degradation <= limit
    assert found.status == "optimal" and found.binding == ("degradation",)


@pytest.mark.parametrize("seed", range(6))
def test_two_budgets_reach_the_exact_least_degradation(seed):
    table, units, _, _ = network(30, widths_of(49), seed)
    rng = np.random.default_rng(seed)
    bits = np.array([(c.weight_bits, c.input_bits) for c in table["layer0"]])
    weights = np.stack(
        [rng.integers(1, 4, (30, 1)) * bits[:, 0], rng.integers(1, 3, (30, 1)) * bits.sum(1)], axis=2
    )
    table = {
        name: [
            Choice(c.weight_bits, c.input_bits, c.degradation, {"weight_bytes": int(x), "bops": int(y)})
            for c, (x, y) in zip(choices, weights[s], strict=True)
        ]
        for s, (name, choices) in enumerate(table.items())
    }
    caps = tuple(int(weights[:, :, i].max(1).sum() * 0.55) for i in range(2))
    found = minimise_degradation(table, {"weight_bytes": caps[0], "bops": caps[1]})
    best = least_under_two_caps(units.astype(np.float64), weights, caps) * UNIT
    assert found.degradation == pytest.approx(best, rel=1e-9)
    assert found.costs["weight_bytes"] <= caps[0] and found.costs["bops"] <= caps[1]


def test_the_two_oracles_agree():
    _, units, _, _ = network(20, widths_of(7), seed=1)
    weight = np.random.default_rng(1).integers(1, 5, (20, 1)) * np.arange(2, 9)
    cap = int(weight.max(1).sum() // 2)
    unbounded = np.stack([weight, np.zeros_like(weight)], axis=2)
    expected = least_under_two_caps(units.astype(np.float64), unbounded, (cap, 0))
    assert least_objective(units.astype(np.float64), weight, cap) == expected


def test_the_two_directions_meet():
    table, _, size, _ = network(50, widths_of(7), seed=9)
    budget = int(size.max(1).sum() // 2)
    first = minimise_degradation(table, {"weight_bytes": budget})
    back = minimise_cost(table, "weight_bytes", first.degradation)
    assert back.degradation <= first.degradation and back.costs["weight_bytes"] <= first.costs["weight_bytes"]
    again = minimise_degradation(table, {"weight_bytes": back.costs["weight_bytes"]})
    assert again.degradation == pytest.approx(first.degradation, rel=1e-9)


def test_a_budget_holds_to_the_last_unit_where_floats_cannot_tell():
    huge = 10**18
    table = {f"s{i}": site((4, 8, 0.5, huge), (8, 8, 0.0, 2 * huge + (i % 2))) for i in range(6)}
    found = minimise_degradation(table, {"weight_bytes": 9 * huge})
    assert found.costs["weight_bytes"] == 9 * huge and found.degradation == 1.5
    assert {name for name, c in found.choices.items() if c.weight_bits == 8} == {"s0", "s2", "s4"}


def test_cutting_off_a_plan_one_unit_above_a_budget_cuts_off_no_plan_within_it():
    huge = 10**18
    table = {f"s{i}": site((4, 8, 0.5, huge), (8, 8, 0.0, 2 * huge)) for i in range(6)}
    table["tiny"] = site((4, 8, 0.5, 0), (8, 8, 0.25, 1))
    found = minimise_degradation(table, {"weight_bytes": 9 * huge})
    assert found.degradation == 2.0 and found.choices["tiny"].weight_bits == 4


# --- the report --------------------------------------------------------------------------------------------


def test_a_pinned_site_keeps_its_one_choice():
    table = {"stem": site((8, 8, 0.0, 80)), "fc": site((4, 8, 0.2, 40), (8, 8, 0.1, 80))}
    assert minimise_degradation(table, {"weight_bytes": 120}).choices["stem"].weight_bits == 8


def test_of_equal_degradations_the_cheaper_choice_is_taken():
    table = {"a": site((8, 8, 0.0, 8), (4, 8, 0.0, 4), (2, 8, 0.5, 2))}
    assert minimise_degradation(table, {"weight_bytes": 100}).choices["a"].weight_bits == 4


def test_a_budget_binds_only_if_it_stands_in_the_way():
    table = {
        "a": site((4, 8, 0.5, 4, 32), (8, 8, 0.1, 8, 64)),
        "b": site((4, 8, 0.3, 4, 32), (8, 8, 0.2, 8, 64)),
    }
    assert minimise_degradation(table, {"weight_bytes": 15, "bops": 1000}).binding == ("weight_bytes",)
    assert minimise_degradation(table, {"weight_bytes": 1000, "bops": 96}).binding == ("bops",)
    assert minimise_degradation(table, {"weight_bytes": 12, "bops": 96}).binding == ("weight_bytes", "bops")
    assert minimise_degradation(table, {"weight_bytes": 16, "bops": 128}).binding == ()
    assert minimise_degradation(table, {}).binding == ()


def test_budgets_that_each_block_another_change_both_bind():
    table = {"a": site((4, 8, 0.5, 4, 0), (8, 8, 0.1, 8, 0)), "b": site((8, 4, 0.3, 0, 4), (8, 8, 0.2, 0, 8))}
    assert minimise_degradation(table, {"weight_bytes": 6, "bops": 6}).binding == ("weight_bytes", "bops")


def test_a_change_of_a_tied_input_width_counts_as_one_change():
    both = [(8, 4, 0.5, 1, 4), (8, 8, 0.1, 1, 8)]
    table = {"a": site(*both), "b": site(*both)}
    tie = Tie(("a", "b"), on="input")
    assert minimise_degradation(table, {"weight_bytes": 2, "bops": 15}, [tie]).binding == ("bops",)
    assert minimise_degradation(table, {"weight_bytes": 2, "bops": 16}, [tie]).binding == ()


def test_the_same_table_gives_the_same_plan_silently(capfd):
    table, _, size, work = network(30, widths_of(49), seed=4)
    budgets = {"weight_bytes": int(size.max(1).sum() // 2), "bops": int(work.max(1).sum() // 3)}
    first = minimise_degradation(table, budgets)
    assert minimise_degradation(table, budgets) == first
    minimise_degradation({"a": site((8, 8, 0.0, 8))}, {"weight_bytes": 8})
    assert capfd.readouterr() == ("", "")


def test_numbers_of_numpy_are_taken_without_their_overflow():
    many = np.int64(2**62)
    table = {n: [Choice(8, 8, np.float32(0.5), {"bops": many})] for n in "abcd"}
    found = minimise_degradation(table, {"bops": 2**64})
    assert found.costs == {"bops": 2**64} and found.degradation == 2.0


def test_solving_leaves_torchs_threads_alone():
    """CBC, told how many threads to use, leaves the process one."""
    table, _, size, _ = network(6, widths_of(9), seed=5)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        minimise_degradation(table, {"weight_bytes": int(size.max(1).sum() // 2)})
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
