"""From what was measured of a network to the bits of its sites: costs, budgets, ties, plans, and whole curves of plans."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from numbers import Real
from typing import Any

from pyquant.costs import COSTS, in_float
from pyquant.data import Batch
from pyquant.errors import BudgetError, SiteError
from pyquant.model import QModel, SiteWeights
from pyquant.regions import source
from pyquant.runtime.latency import Latencies
from pyquant.steps.allocate import (
    Allocation,
    Choice,
    Tie,
    minimise_cost,
    minimise_degradation,
    monotone,
    smallest_feasible,
)
from pyquant.steps.sensitivity import together

Bits = tuple[int, int]
LATENCY = "latency_ns"
NAMES = (*COSTS, LATENCY)
# How many pairs of sites the check of additivity takes.
PAIRS = 6


@dataclass(frozen=True)
class Study:
    """What the allocation needs to know of a network, measured once and usable for many budgets.

    Args:
        q: the calibrated model, all sites at the widest choice.
        found: (site, weight bits) -> weights.
        moved: site -> bits -> divergence of the output.
        rows: the inputs it was measured on.
        latencies: what each choice takes, where a budget asks for it.
        method: how activation ranges were placed.
    """

    q: QModel
    found: Mapping[tuple[str, int], SiteWeights]
    moved: Mapping[str, Mapping[Bits, float]] = field(default_factory=dict)
    rows: Sequence[Batch] = ()
    latencies: Latencies | None = None
    method: str = "mse"


@dataclass(frozen=True)
class Limits:
    """What plans have to keep.

    Args:
        budget: bytes of the weight codes over bytes of the float32 weights, at most; None leaves it open.
        budgets: name of a cost -> the most a plan may cost: above 1 in the cost's own unit, at most 1 as a share of the
            float32 network, or, of ``latency_ns``, of the network at its widest choice.
        max_degradation: the other direction: the least ``cost`` whose predicted degradation stays below this.
        cost: which cost that is.
        ties: sites that must share their bits, beside those the graph ties: ``Tie``, or names of sites.
    """

    budget: float | None = None
    budgets: Mapping[str, float] = field(default_factory=dict)
    max_degradation: float | None = None
    cost: str = "weight_bytes"
    ties: Sequence[Tie | Sequence[str]] = ()

    def names(self) -> set[str]:
        """The costs that are limited or minimised."""
        least = {self.cost} if self.max_degradation is not None else set()
        return {*self.budgets, *least, *(["weight_bytes"] if self.budget is not None else [])}


def check_limits(limits: Limits) -> None:
    """Raise BudgetError for numbers and names that make no sense, SiteError for ties that are none."""
    numbers = {"budget": limits.budget, "max_degradation": limits.max_degradation}
    if not isinstance(limits.budgets, Mapping):
        raise BudgetError(
            f"budgets={limits.budgets!r} is no mapping; give name -> number, such as {{'bops': 0.02}}."
        )
    numbers |= {f"budgets[{name!r}]": value for name, value in limits.budgets.items()}
    for name, value in numbers.items():
        number = isinstance(value, Real) and not isinstance(value, bool)
        if (value is None and "[" not in name) or (number and 0 < value < math.inf):  # type: ignore[operator]
            continue
        raise BudgetError(
            f"{name}={value!r} makes no sense; give a positive number, such as 0.13 of the float32 bytes."
        )
    for name in (*limits.budgets, limits.cost):
        if name not in NAMES:
            raise BudgetError(f"the cost {name!r} is unknown; use {', '.join(NAMES)}.")
    if limits.budget is not None and limits.budget > 1:
        share = float(limits.budget)
        raise BudgetError(
            f"budget={limits.budget} is above 1, the float32 size; {share:g} % is {share / 100:g}."
        )
    if limits.budget is not None and "weight_bytes" in limits.budgets:
        raise BudgetError("budget and budgets['weight_bytes'] limit the same bytes; leave one of them out.")
    for tie in limits.ties:
        if not isinstance(tie, Tie) and (isinstance(tie, str) or len(set(tie)) < 2):
            raise SiteError(f"the tie {tie!r} ties nothing; name two sites or more.")


def graph_ties(q: QModel) -> list[Tie]:
    """Sites that the graph ties.

    Sites that read one value read it at one width, and linear layers that do (queries, keys and values; gate and up) share their
    weight bits too, so that they can be stored and run as one. A residual add ties nothing more: the values that meet in it keep
    8 bits whatever reads them.
    """
    readers: dict[str, list[str]] = {}
    for site in q.graph.sites:
        readers.setdefault(source(q.graph, q.graph.by_name[site].inputs[0]), []).append(site)
    ties = [Tie(tuple(sites), on="input") for sites in readers.values() if len(sites) > 1]
    linear = [tuple(s for s in tie.sites if q.graph.by_name[s].op == "linear") for tie in ties]
    return ties + [Tie(sites) for sites in linear if len(sites) > 1]


def ties_of(q: QModel, limits: Limits) -> list[Tie]:
    """All ties: the graph's and the caller's. SiteError if one names a site that is not there."""
    given = [tie if isinstance(tie, Tie) else Tie(tuple(tie)) for tie in limits.ties]
    for tie in given:
        for site in tie.sites:
            q.graph.site(site)
    return graph_ties(q) + given


def allowed(
    q: QModel,
    limits: Limits,
    choices: Mapping[str, Collection[Bits]],
    times: Latencies | None = None,
) -> dict[str, int]:
    """The limits in whole units, by the name of their cost.

    Latency is passed over while it is not measured.

    Raises:
        BudgetError: no choice of bits meets one of them.
    """
    check_limits(limits)
    asked = dict(limits.budgets) | ({} if limits.budget is None else {"weight_bytes": limits.budget})
    asked = {name: share for name, share in asked.items() if name != LATENCY or times is not None}
    moved = {site: dict.fromkeys(pairs, 0.0) for site, pairs in choices.items()}
    table = _table(q, moved, {"weight_bytes", *asked}, times)
    ties, found = ties_of(q, limits), {}
    # Ties that contradict each other are found whatever is asked.
    smallest_feasible(table, "weight_bytes", ties)
    for name, share in asked.items():
        whole, of = _whole(q, name, choices, times)
        # In decimals, as it was written: 0.145 of 800 bytes are 116.
        found[name] = int(Fraction(str(share)) * (whole if share <= 1 else 1))
        # Ties count: where inputs are as wide as weights, a pinned neighbour rules the narrowest weights out.
        least = smallest_feasible(table, name, ties)
        if found[name] < least:
            given = f"budget={share}" if name not in limits.budgets else f"budgets[{name!r}]={share}"
            unit = "bytes of weight codes" if name == "weight_bytes" else name
            smallest = math.ceil(Fraction(10_000 * least, whole)) / 10_000 if share <= 1 else least
            raise BudgetError(
                f"{given} allows {found[name]} {unit}, of {whole} {of}, and no choice of bits takes fewer than {least}; "
                f"the smallest feasible budget is {smallest}."
            )
    return found


def allocate(study: Study, limits: Limits) -> Allocation:
    """Solve for the bits of every site.

    Raises:
        BudgetError: no plan keeps all limits. SiteError: ties that contradict each other.
    """
    budgets = allowed(study.q, limits, study.moved, study.latencies)
    names = limits.names() if study.latencies is not None else limits.names() - {LATENCY}
    if LATENCY in limits.names() and study.latencies is None:
        raise BudgetError("latency_ns is limited and was not measured; examine the model for these limits.")
    table = monotone(_table(study.q, study.moved, {"weight_bytes", *names}, study.latencies))
    ties = ties_of(study.q, limits)
    if limits.max_degradation is not None:
        return minimise_cost(table, limits.cost, limits.max_degradation, budgets, ties)
    return minimise_degradation(table, budgets, ties)


def plan_of(found: Allocation) -> dict[str, Bits]:
    """Site -> (weight bits, input bits)."""
    return {site: (choice.weight_bits, choice.input_bits) for site, choice in found.choices.items()}


def additivity(study: Study, bits: Mapping[str, Bits], pairs: int = PAIRS) -> dict[str, Any]:
    """Was it right to add up what single sites move?

    Args:
        study: what was measured.
        bits: the plan.
        pairs: how many pairs to measure: each of the sites that move most with the one that follows it in the network.

    Returns:
        ``predicted`` and ``measured`` of the whole plan, ``agreement`` of its outputs with the float network's (None where they are
        no class scores), and ``pairs``: (site, site, predicted, measured).
    """
    sites = [site for site in study.q.graph.sites if site in bits]
    single = {site: study.moved[site][bits[site]] for site in sites}
    tried = sorted(pairwise(sites), key=lambda pair: -sum(single[s] for s in pair))[:pairs]
    plans = [dict(bits), *({s: bits[s] for s in pair} for pair in tried)]
    whole, *of_pairs = together(study.q, study.rows, plans, study.found, method=study.method)
    return {
        "predicted": math.fsum(single.values()),
        "measured": whole.moved,
        "agreement": whole.agreement,
        "pairs": [
            (*pair, single[pair[0]] + single[pair[1]], found.moved)
            for pair, found in zip(tried, of_pairs, strict=True)
        ],
    }


def curve(
    study: Study, limits: Limits, shares: Sequence[float], cost: str = "weight_bytes", measure: bool = False
) -> list[dict[str, Any]]:
    """The best plan at every one of several budgets: accuracy against compression.

    Args:
        study: what was measured, once.
        limits: what all plans keep beside.
        shares: budgets of ``cost``, as in ``Limits.budgets``.
        measure: run each plan too, and say what it moves and how often it agrees with the float network.

    Returns:
        A row a budget: ``budget, degradation, costs, status, gap, binding, bits``, with ``measure`` also ``measured`` and
        ``agreement``. Where no plan fits, ``status`` is "infeasible" and ``why`` says what would be feasible.
    """
    rows: list[dict[str, Any]] = []
    for share in shares:
        others = {name: value for name, value in limits.budgets.items() if name != cost}
        at = replace(limits, budget=None if cost == "weight_bytes" else limits.budget, max_degradation=None)
        try:
            found = allocate(study, replace(at, budgets={**others, cost: share}))
        except BudgetError as error:
            rows.append({"budget": share, "status": "infeasible", "why": str(error)})
            continue
        bits = plan_of(found)
        row = {"budget": share, "degradation": found.degradation, "costs": dict(found.costs)}
        row |= {"status": found.status, "gap": found.gap, "binding": list(found.binding), "bits": bits}
        if measure:
            checked = additivity(study, bits, pairs=0)
            row |= {"measured": checked["measured"], "agreement": checked["agreement"]}
        rows.append(row)
    return rows


def _table(
    q: QModel, moved: Mapping[str, Mapping[Bits, float]], names: Collection[str], times: Latencies | None
) -> dict[str, list[Choice]]:
    """Choices of every site with the costs named. The first site carries the latency that is no site's."""
    first = next(iter(moved))

    def cost(name: str, site: str, bits: Bits) -> int:
        if name != LATENCY:
            return COSTS[name](q, site, *bits)
        assert times is not None
        return times.sites[site][bits] + (times.fixed if site == first else 0)

    return {
        site: [
            Choice(*bits, degradation, {name: cost(name, site, bits) for name in NAMES if name in names})
            for bits, degradation in options.items()
        ]
        for site, options in moved.items()
    }


def _whole(
    q: QModel, name: str, choices: Mapping[str, Collection[Bits]], times: Latencies | None
) -> tuple[int, str]:
    """What a budget at most 1 is a share of, and its name."""
    if name != LATENCY:
        return in_float(q, name), "in float32"
    assert times is not None
    return times.predict({site: max(pairs) for site, pairs in choices.items()}), "at the widest choice"
