"""Bit allocation: which choice of bits each site gets, found by integer programming (METHOD.md section 4).

Minimise ``sum of degradation`` (or of one cost) over one choice a site, under budgets on sums of costs. Python-MIP's
CBC does the search. It works in floating point and ignores improvements below about 1e-5, so that raw losses from 1e-6
to 1e-1 make it call plans optimal that are percents worse than the optimum. Hence:

- every amount is kept as an exact Python integer (a float64 is a whole number of some power of two);
- a choice whose cheapest completion breaks a budget, or is worse than a plan already found, is dropped beforehand;
- CBC sees amounts above the least possible total only, scaled by the room there is, and scaled anew when a plan
  shows that the room was ten times smaller;
- every plan of CBC's is summed in integers, and one above a budget is cut off and the search repeated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from numbers import Integral, Real

from pyquant.errors import BudgetError, DataError, SiteError

DEGRADATION = "degradation"
# CBC's objective and rows reach up to these; its tolerances are absolute, 1e-5 to 1e-9.
OBJECTIVE_SCALE, ROW_SCALE = 10**6, 10**3
# A limit in nodes rather than seconds, so that the same table gives the same plan on every machine.
MAX_NODES = 100_000
MAX_CUTS = 50

Table = Mapping[str, Sequence["Choice"]]


@dataclass(frozen=True)
class Choice:
    """One candidate of one site.

    Args:
        weight_bits: width of the weight codes.
        input_bits: width of the input codes.
        degradation: predicted loss of the network if this site alone is quantised so; finite, 0 or more.
        costs: cost name to a whole number, 0 or more: ``weight_bytes``, ``bops``... The same names in a whole table.
    """

    weight_bits: int
    input_bits: int
    degradation: float
    costs: Mapping[str, int]


@dataclass(frozen=True)
class Tie:
    """Sites that must agree: on both widths (``on="both"``), or on the input width alone (``on="input"``)."""

    sites: tuple[str, ...]
    on: str = "both"

    def __post_init__(self) -> None:
        if self.on not in ("both", "input"):
            raise DataError(f'A tie on {self.on!r} has no meaning; use "both" or "input".')


@dataclass(frozen=True)
class Allocation:
    """The plan that was found, and how good it is known to be.

    Args:
        choices: site to its choice, in the order of the table.
        degradation: predicted sum, rounded once.
        costs: cost name to its exact total.
        status: ``optimal``, or ``feasible`` if the search ended before the proof.
        gap: share of the objective by which a better plan may still be lower; 0 for an optimal plan.
        binding: the budgets that bind. A budget binds if every single change that would lower the objective is too
            dear for it, or if one is too dear for it alone. A single change gives one site (with those tied to it on
            both widths) another choice, or sites tied on their input another input width at the same weight widths.
    """

    choices: Mapping[str, Choice]
    degradation: float
    costs: Mapping[str, int]
    status: str
    gap: float
    binding: tuple[str, ...]


def monotone(table: Table) -> dict[str, list[Choice]]:
    """Clean measured degradations up: within a site, more bits are never worse.

    Isotonic regression in the largest-error norm over the order "at least as many weight bits and as many input
    bits": each degradation becomes the mean of the highest among choices with no fewer bits and the lowest among
    choices with no more. A monotone site is left unchanged; no change is larger than it has to be in the worst case.
    Degradations below 0, which only noise can give, count as 0.

    Args:
        table: site to its choices; degradations finite, of either sign.

    Returns:
        The same sites and choices with cleaned degradations.

    Raises:
        DataError: no site, a site without choices, a degradation that is not a finite number, a choice given twice.

    Source: Stout, "Isotonic regression for multiple independent variables" (the basic L-infinity regression).
    """
    _check(table, lowest=-math.inf)
    cleaned = {}
    for site, choices in table.items():
        known = [(c.weight_bits, c.input_bits, max(0.0, float(c.degradation))) for c in choices]
        cleaned[site] = [
            Choice(
                c.weight_bits,
                c.input_bits,
                max(d for w, a, d in known if w >= c.weight_bits and a >= c.input_bits) / 2
                + min(d for w, a, d in known if w <= c.weight_bits and a <= c.input_bits) / 2,
                c.costs,
            )
            for c in choices
        ]
    return cleaned


def minimise_degradation(table: Table, budgets: Mapping[str, int], ties: Sequence[Tie] = ()) -> Allocation:
    """Choose bits so that the predicted degradation is least under every budget.

    Args:
        table: site to its choices. A site with one choice is pinned.
        budgets: cost name to the largest total allowed, a positive whole number.
        ties: sites that must agree.

    Returns:
        The plan. Its exact totals never exceed a budget.

    Raises:
        BudgetError: a budget that is not a positive whole number, of an unknown cost, or that nothing meets.
        DataError: a table that makes no sense.
        SiteError: a tie names an unknown site, or its sites have no choice in common.
    """
    names = _check(table)
    _check_budgets(budgets, names)
    unit = _unit(table)
    blocks, joins = _gather(table, ties, lambda c: (_whole(c, unit), *(int(c.costs[n]) for n in budgets)))
    limits = {name: int(budget) for name, budget in budgets.items()}
    return _allocate(table, blocks, joins, limits, shown=dict.fromkeys(budgets, 1))


def minimise_cost(
    table: Table,
    cost: str,
    max_degradation: float,
    budgets: Mapping[str, int] | None = None,
    ties: Sequence[Tie] = (),
) -> Allocation:
    """Choose bits so that one cost is least while the predicted degradation stays within a limit.

    Args:
        table: site to its choices.
        cost: name of the cost to minimise.
        max_degradation: the largest predicted sum allowed, finite, 0 or more.
        budgets: further budgets, as in :func:`minimise_degradation`.
        ties: sites that must agree.

    Returns:
        The plan. Its ``binding`` names the limit on degradation as ``degradation``.

    Raises:
        BudgetError: a limit that is no finite number of 0 or more, that nothing meets, or an unknown cost.
        DataError, SiteError: as in :func:`minimise_degradation`.
    """
    names = _check(table)
    budgets = budgets or {}
    _check_budgets(budgets, names)
    _check_cost(cost, names)
    if not _is_number(max_degradation) or max_degradation < 0:
        raise BudgetError(f"max_degradation={max_degradation!r} is not a limit; use a finite number, 0 or more.")
    unit = _unit(table)
    blocks, joins = _gather(
        table, ties, lambda c: (int(c.costs[cost]), _whole(c, unit), *(int(c.costs[n]) for n in budgets))
    )
    # A plan meets the limit if its sum, rounded once, does: so the degradation of a known plan is a limit it meets.
    limit = float(max_degradation)
    highest = math.floor((Fraction(limit) + Fraction(math.nextafter(limit, math.inf))) / 2 * unit)
    highest -= highest / unit > limit
    limits = {DEGRADATION: highest} | {name: int(budget) for name, budget in budgets.items()}
    return _allocate(table, blocks, joins, limits, shown={DEGRADATION: unit} | dict.fromkeys(budgets, 1))


def smallest_feasible(table: Table, cost: str, ties: Sequence[Tie] = ()) -> int:
    """Return the smallest total of ``cost`` that any choice of bits reaches; errors as :func:`minimise_degradation`."""
    _check_cost(cost, _check(table))
    blocks, joins = _gather(table, ties, lambda c: (int(c.costs[cost]),))
    return _excess(blocks, joins, 0).least


# --- What is searched: blocks of sites that move as one, joined where their inputs agree -------------------------


@dataclass(frozen=True)
class _Option:
    """One choice of a block: ``amounts`` is the objective, then one amount a budget."""

    choices: Mapping[str, Choice]
    weight_bits: int
    input_bits: int
    amounts: tuple[int, ...]


_Blocks = list[list[_Option]]
_Joins = list[list[int]]


@dataclass(frozen=True)
class _Excess:
    """One amount, counted from the least total any plan has.

    A plan's total is ``least`` plus, for each join, ``of_input`` at its input width, plus ``of_option`` of each block.
    """

    least: int
    of_input: list[dict[int, int]]
    of_option: list[list[int]]


def _excess(blocks: _Blocks, joins: _Joins, amount: int) -> _Excess:
    """Split ``amounts[amount]`` into the least total and the excess of every choice over it."""
    best: list[dict[int, int]] = []
    for options in blocks:
        best.append({})
        for option in options:
            value = option.amounts[amount]
            best[-1][option.input_bits] = min(value, best[-1].get(option.input_bits, value))
    totals = [{a: sum(best[b][a] for b in join) for a in _shared(best, join)} for join in joins]
    leasts = [min(total.values()) for total in totals]
    return _Excess(
        sum(leasts),
        [{a: value - least for a, value in total.items()} for total, least in zip(totals, leasts, strict=True)],
        [[o.amounts[amount] - low[o.input_bits] for o in options] for options, low in zip(blocks, best, strict=True)],
    )


def _shared(widths: Sequence[Mapping[int, object]], join: list[int]) -> list[int]:
    """Return the input widths that every block of the join has."""
    return [a for a in widths[join[0]] if all(a in widths[b] for b in join)]


def _gather(table: Table, ties: Sequence[Tie], amounts) -> tuple[_Blocks, _Joins]:
    """Merge sites tied on both widths into blocks, and join blocks tied on their inputs."""
    for tie in ties:
        for site in tie.sites:
            if site not in table:
                raise SiteError(f"A tie names the site {site!r}, which the table does not have.")
    members = _classes(list(table), [tie.sites for tie in ties if tie.on == "both"])
    block_of = {site: b for b, sites in enumerate(members) for site in sites}
    linked = [[block_of[site] for site in tie.sites] for tie in ties if tie.on == "input"]
    joins = _classes(range(len(members)), linked)
    blocks = []
    for sites in members:
        by_bits = [{(c.weight_bits, c.input_bits): c for c in table[site]} for site in sites]
        options = []
        for bits in by_bits[0]:
            if all(bits in known for known in by_bits):
                chosen = {site: known[bits] for site, known in zip(sites, by_bits, strict=True)}
                total = tuple(sum(column) for column in zip(*map(amounts, chosen.values()), strict=True))
                options.append(_Option(chosen, *bits, total))
        if not options:
            raise SiteError(f"The sites {', '.join(sites)} are tied but have no pair of widths in common.")
        blocks.append(_undominated(options))
    for join in joins:
        if not _shared([{o.input_bits: o for o in options} for options in blocks], join):
            sites = [site for b in join for site in members[b]]
            raise SiteError(f"The inputs of the sites {', '.join(sites)} are tied but have no width in common.")
    return blocks, joins


def _classes(items: Sequence, groups: Sequence[Sequence]) -> list[list]:
    """Partition ``items`` so that those of a group are together, in the order of ``items``."""
    class_of = {item: {item: None} for item in items}
    for group in groups:
        union = reduce(lambda one, other: one | other, (class_of[item] for item in group), {})
        class_of |= dict.fromkeys(union, union)
    distinct = {id(members): members for members in class_of.values()}
    return [[item for item in items if item in members] for members in distinct.values()]


def _undominated(options: list[_Option]) -> list[_Option]:
    """Drop an option where another of the same input width is no worse in any amount; of equals the first stays."""
    kept: list[_Option] = []
    for option in sorted(options, key=lambda o: o.amounts):
        rivals = (o for o in kept if o.input_bits == option.input_bits)
        if not any(all(r <= o for r, o in zip(rival.amounts, option.amounts, strict=True)) for rival in rivals):
            kept.append(option)
    return kept


# --- The search -----------------------------------------------------------------------------------------------


def _allocate(
    table: Table, blocks: _Blocks, joins: _Joins, limits: Mapping[str, int], shown: Mapping[str, int]
) -> Allocation:
    """Search, then report; ``shown`` is what one unit of a limit divides by in a message."""
    caps = list(limits.values())
    found = _search(blocks, joins, caps)
    if found is None:
        asked = {name: cap if shown[name] == 1 else cap / shown[name] for name, cap in limits.items()}
        least = {name: _excess(blocks, joins, i).least for i, name in enumerate(limits, 1)}
        raise BudgetError(_infeasible(asked, limits, least, shown))
    plan, proven, bound = found
    chosen = {site: choice for option in plan for site, choice in option.choices.items()}
    value = sum(option.amounts[0] for option in plan)
    return Allocation(
        choices={site: chosen[site] for site in table},
        degradation=math.fsum(float(choice.degradation) for choice in chosen.values()),
        costs={n: sum(int(c.costs[n]) for c in chosen.values()) for n in next(iter(chosen.values())).costs},
        status="optimal" if proven else "feasible",
        gap=float(1 - Fraction(bound, value)) if value > bound else 0.0,
        binding=tuple(_binding(blocks, joins, plan, limits)),
    )
