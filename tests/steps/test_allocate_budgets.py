"""Several budgets at once on instances too large to enumerate: against an exact search, and against optima that were planted."""

import numpy as np
import pytest

from pyquant.steps.allocate import Choice, minimise_cost, minimise_degradation
from tests.steps.exact_allocation import least_objective, least_under_caps
from tests.steps.test_allocate import UNIT, network, widths_of

NAMES = ("weight_bytes", "bops", "activation_bytes")


def with_activations(table, seed):
    """A third cost, which depends on the input bits alone."""
    rng = np.random.default_rng(seed)
    elements = np.round(10 ** rng.uniform(3, 6, len(table))).astype(np.int64)
    bits = [(c.weight_bits, c.input_bits) for c in next(iter(table.values()))]
    read = elements[:, None] * np.array([a for _, a in bits]) // 8
    return read, {
        name: [
            Choice(c.weight_bits, c.input_bits, c.degradation, {**c.costs, NAMES[2]: int(read[s, k])})
            for k, c in enumerate(choices)
        ]
        for s, (name, choices) in enumerate(table.items())
    }


@pytest.mark.parametrize(("sites", "budgets", "seed"), [(16, 2, 0), (8, 3, 2), (6, 3, 2)])
def test_several_budgets_reach_the_exact_least_degradation(sites, budgets, seed):
    table, units, size, work = network(sites, widths_of(49), seed)
    read, table = with_activations(table, seed)
    weights = np.stack([size, work, read][:budgets], axis=2)
    share = np.random.default_rng(seed).uniform(0.3, 0.6, budgets)
    caps = [int(cap) for cap in weights.max(1).sum(0) * share]
    found = minimise_degradation(table, dict(zip(NAMES, caps, strict=False)))
    # The search drops only what cannot be better than the plan found: one that is better would stay.
    best = least_under_caps(units.astype(np.float64), weights, caps, found.degradation / UNIT) * UNIT
    assert found.degradation == pytest.approx(best, rel=1e-9)
    assert all(found.costs[name] <= cap for name, cap in zip(NAMES, caps, strict=False))
    assert found.status == "optimal" and found.gap <= 1e-9


def test_the_exact_search_agrees_with_the_one_for_one_budget():
    _, units, size, _ = network(20, widths_of(7), seed=6)
    cap = int(size.max(1).sum() * 0.5)
    want = least_objective(units.astype(np.float64), size, cap)
    assert least_under_caps(units.astype(np.float64), size[:, :, None], [cap], want * 1.2) == want
    assert least_under_caps(units.astype(np.float64), size[:, :, None], [cap], want * 0.99) == want * 0.99


def planted(sites, seed):
    """A table of 49 choices a site whose best plan is known.

    Each site has one choice that is cheapest at some prices of the costs. The caps are what these choices cost together, so that
    whatever else keeps the caps is dearer at the prices, and no less in degradation.

    Returns:
        The table, the caps, and the best degradation.
    """
    rng = np.random.default_rng(seed)
    _, _, size, work = network(sites, widths_of(49), seed)
    read, _ = with_activations(network(sites, widths_of(49), seed)[0], seed)
    costs = np.stack([size, work, read], axis=2)
    prices = (1e14 / costs.mean((0, 1)) * rng.uniform(0.5, 2, 3)).astype(np.int64) + 1
    chosen, rows = rng.integers(0, 49, sites), np.arange(sites)
    worth = costs @ prices
    # How much dearer than the planted one each other choice is: much or hardly.
    dearer = np.round(worth.max() * 10 ** rng.uniform(-6, 0, worth.shape)).astype(np.int64)
    dearer[rows, chosen] = 0
    units = worth.max(1)[:, None] - worth + dearer
    bits = [(w, a) for w in widths_of(49)[0] for a in widths_of(49)[1]]
    table = {
        f"layer{s}": [
            Choice(*bits[k], float(units[s, k]) * UNIT, dict(zip(NAMES, costs[s, k].tolist(), strict=True)))
            for k in range(49)
        ]
        for s in range(sites)
    }
    assert all(
        int(n) == c.degradation / UNIT
        for s in range(sites)
        for n, c in zip(units[s], table[f"layer{s}"], strict=True)
    )
    return table, costs[rows, chosen].sum(0).tolist(), units[rows, chosen].astype(object).sum()


@pytest.mark.parametrize("seed", range(3))
def test_two_hundred_sites_under_three_budgets(seed):
    """Both ways: the least degradation within the caps, and the least of a cost within that degradation and the other caps."""
    table, caps, best = planted(200, seed)
    budgets = dict(zip(NAMES, caps, strict=True))
    found = minimise_degradation(table, budgets)
    assert found.degradation == pytest.approx(best * UNIT, rel=1e-12)
    assert all(found.costs[name] <= cap for name, cap in budgets.items()) and found.status == "optimal"
    limit = budgets.pop("bops")
    back = minimise_cost(table, "bops", found.degradation, budgets)
    assert back.costs["bops"] <= limit and back.degradation <= found.degradation
