"""What bit allocation refuses, and the sentence it says."""

import math

import pytest

from pyquant.errors import BudgetError, DataError, SiteError
from pyquant.steps.allocate import (
    Choice,
    Tie,
    minimise_cost,
    minimise_degradation,
    monotone,
    smallest_feasible,
)
from tests.steps.test_allocate import site

PAIR = {
    "a": site((4, 8, 0.5, 4, 90), (8, 8, 0.25, 8, 50)),
    "b": site((4, 8, 0.5, 6, 80), (8, 8, 0.25, 12, 40)),
}


def refused(error, message, call, *arguments):
    with pytest.raises(error) as caught:
        call(*arguments)
    assert str(caught.value) == message
    assert message.count(". ") == 0 and message.endswith(".")


def test_an_infeasible_budget_is_named_with_the_smallest_feasible_one():
    refused(
        BudgetError,
        "No choice of bits meets weight_bytes <= 9; the smallest feasible is weight_bytes 10.",
        minimise_degradation,
        PAIR,
        {"weight_bytes": 9},
    )
    refused(
        BudgetError,
        "No choice of bits meets degradation <= 0.4; the smallest feasible is degradation 0.5.",
        minimise_cost,
        PAIR,
        "weight_bytes",
        0.4,
    )


def test_of_several_budgets_the_infeasible_ones_are_named_with_the_smallest_of_each():
    refused(
        BudgetError,
        "No choice of bits meets weight_bytes <= 9; each alone can reach weight_bytes 10 and bops 90.",
        minimise_degradation,
        PAIR,
        {"weight_bytes": 9, "bops": 95},
    )
    refused(
        BudgetError,
        "No choice of bits meets weight_bytes <= 10 and bops <= 90 together; "
        "each alone can reach weight_bytes 10 and bops 90.",
        minimise_degradation,
        PAIR,
        {"weight_bytes": 10, "bops": 90},
    )


@pytest.mark.parametrize("budget", [0, -1, 9.5, 1e6, math.nan, math.inf, True, "12", None])
def test_a_budget_that_is_no_positive_whole_number_is_refused(budget):
    with pytest.raises(BudgetError, match="use a positive whole number"):
        minimise_degradation(PAIR, {"weight_bytes": budget})
    with pytest.raises(BudgetError, match="use a positive whole number"):
        minimise_cost(PAIR, "bops", 1.0, {"weight_bytes": budget})


@pytest.mark.parametrize("limit", [-0.1, math.nan, math.inf, True, "1", None])
def test_a_limit_on_the_degradation_that_is_no_number_is_refused(limit):
    with pytest.raises(BudgetError, match="use a finite number, 0 or more"):
        minimise_cost(PAIR, "weight_bytes", limit)


@pytest.mark.parametrize(
    "call",
    [
        lambda: minimise_degradation(PAIR, {"latency": 5}),
        lambda: minimise_cost(PAIR, "latency", 1.0),
        lambda: minimise_cost(PAIR, "bops", 1.0, {"latency": 5}),
        lambda: smallest_feasible(PAIR, "latency"),
    ],
)
def test_an_unknown_cost_is_refused(call):
    with pytest.raises(BudgetError, match=r"no cost 'latency'; it has bops, weight_bytes\."):
        call()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "holds no site"),
        ({"a": []}, "Site 'a' has no choice"),
        ({"a": site((4, 8, 0.1, 4), (4, 8, 0.2, 4))}, "given twice"),
        ({"a": site((4, 8, math.nan, 4))}, "'a' at 4 weight and 8 input bits is nan"),
        ({"a": site((4, 8, math.inf, 4))}, "is inf"),
        ({"a": site((4, 8, -0.1, 4))}, "0 or more"),
        ({"a": site((4, 8, "low", 4))}, "is 'low'"),
        ({"a": site((4, 8, 0.1, 4.0))}, "cost 'weight_bytes' of site 'a' .* is 4.0; use whole numbers"),
        ({"a": site((4, 8, 0.1, -4))}, "is -4; use whole numbers"),
        ({"a": site((4, 8, 0.1, True))}, "is True; use whole numbers"),
        ({"a": site((4, 8, 0.1, 4)), "b": site((4, 8, 0.1, 4, 5))}, "elsewhere"),
        ({"a": [Choice(4, 8, 0.1, {"degradation": 4})]}, "no cost called 'degradation'"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(table, message):
    with pytest.raises(DataError, match=message):
        minimise_degradation(table, {"weight_bytes": 100})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_monotone_refuses_what_is_not_finite(value):
    with pytest.raises(DataError, match="it has to be a finite number"):
        monotone({"a": site((4, 8, value, 4))})


def test_a_tie_that_cannot_be_kept_is_refused():
    table = {"a": site((4, 8, 0.1, 4)), "b": site((8, 4, 0.1, 4)), "c": site((8, 8, 0.1, 4))}
    with pytest.raises(SiteError, match=r"a, b are tied but have no pair of widths in common"):
        minimise_degradation(table, {"weight_bytes": 100}, [Tie(("a", "b"))])
    with pytest.raises(SiteError, match=r"inputs of a, b are tied but have no width in common"):
        minimise_degradation(table, {"weight_bytes": 100}, [Tie(("a", "b"), on="input")])
    with pytest.raises(SiteError, match="site 'd', which the table does not have"):
        smallest_feasible(table, "weight_bytes", [Tie(("a", "d"))])
    with pytest.raises(DataError, match='use "both" or "input"'):
        Tie(("a", "b"), on="output")
    assert (
        minimise_degradation(table, {"weight_bytes": 12}, [Tie(("a", "c"), on="input")]).status == "optimal"
    )
