"""Bit allocation: which choice of bits each site gets (METHOD.md section 4).

Minimise the predicted degradation under budgets, or one cost under a limit on the degradation. Every total is
exact: costs are whole numbers, and a float64 degradation is a whole number of some power of two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from numbers import Integral, Real
from operator import le
from typing import Any

from pyquant.errors import BudgetError, DataError, SiteError
from pyquant.selection import Excess, Option, Problem, only, search, shared, total

DEGRADATION = "degradation"


@dataclass(frozen=True)
class Choice:
    """One candidate of one site.

    Args:
        weight_bits: width of the weight codes.
        input_bits: width of the input codes.
        degradation: predicted loss of the network with this site alone quantised so; finite, 0 or more.
        costs: cost name to a whole number, 0 or more: ``weight_bytes``, ``bops``... A table has the same
            names throughout, and none is called ``degradation``.
    """

    weight_bits: int
    input_bits: int
    degradation: float
    costs: Mapping[str, int]


Table = Mapping[str, Sequence[Choice]]


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
        gap: share of the objective by which a better plan may still be lower; at most 1e-9 if optimal.
        binding: the limits that bind. A limit binds if every single change that would lower the objective is
            too dear for it, or if one is too dear for it alone. A single change gives one site (and all tied
            to it on both widths) another choice, or gives sites tied on their input another input width.
    """

    choices: Mapping[str, Choice]
    degradation: float
    costs: Mapping[str, int]
    status: str
    gap: float
    binding: tuple[str, ...]


def monotone(table: Table) -> dict[str, list[Choice]]:
    """Clean measured degradations up: within a site, more bits are never worse.

    Isotonic regression in the largest-error norm over the order "at least as many weight bits and as many
    input bits": each degradation becomes the mean of the highest among choices with no fewer bits and the
    lowest among choices with no more. A monotone site is left as it is; the largest change is least.
    Degradations below 0, which only noise can give, count as 0.

    Args:
        table: site to its choices; degradations finite, of either sign.

    Returns:
        The same sites and choices with cleaned degradations.

    Raises:
        DataError: a table that makes no sense.

    Source: Stout, "Isotonic regression for multiple independent variables", the basic L-infinity regression.
    """
    _check(table, lowest=-math.inf)
    cleaned = {}
    for site, choices in table.items():
        known = [(c.weight_bits, c.input_bits, max(0.0, float(c.degradation))) for c in choices]
        cleaned[site] = [
            replace(
                c,
                degradation=max(d for w, a, d in known if w >= c.weight_bits and a >= c.input_bits) / 2
                + min(d for w, a, d in known if w <= c.weight_bits and a <= c.input_bits) / 2,
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
        BudgetError: a budget that is no positive whole number, is of an unknown cost, or cannot be met.
        DataError: a table that makes no sense.
        SiteError: a tie names an unknown site, or its sites have no choice in common.
    """
    _check_budgets(budgets, _check(table))
    unit = _unit(table)

    def amounts(choice: Choice) -> tuple[int, ...]:
        return _units(choice, unit), *(int(choice.costs[name]) for name in budgets)

    return _allocate(table, ties, amounts, budgets, [int(budget) for budget in budgets.values()], unit=unit)


def minimise_cost(
    table: Table,
    cost: str,
    max_degradation: float,
    budgets: Mapping[str, int] | None = None,
    ties: Sequence[Tie] = (),
) -> Allocation:
    """Choose bits so that one cost is least while the predicted degradation stays within a limit.

    Args:
        table: site to its choices. A site with one choice is pinned.
        cost: name of the cost to minimise.
        max_degradation: the largest predicted sum allowed, finite, 0 or more.
        budgets: further budgets, as in :func:`minimise_degradation`.
        ties: sites that must agree.

    Returns:
        The plan. Its ``binding`` calls the limit on the degradation ``degradation``.

    Raises:
        BudgetError: as in :func:`minimise_degradation`; or a limit that is no finite number of 0 or more.
        DataError, SiteError: as in :func:`minimise_degradation`.
    """
    names = _check(table)
    budgets = budgets or {}
    _check_cost(cost, names)
    _check_budgets(budgets, names)
    if not _is_number(max_degradation, 0):
        raise BudgetError(f"max_degradation={max_degradation!r} is no limit; use a finite number, 0 or more.")
    limit, unit = float(max_degradation), _unit(table)

    def amounts(choice: Choice) -> tuple[int, ...]:
        return int(choice.costs[cost]), _units(choice, unit), *(int(choice.costs[name]) for name in budgets)

    # A plan keeps the limit if its sum, rounded once, does: a known plan's degradation is a limit it keeps.
    highest = math.floor((Fraction(limit) + Fraction(math.nextafter(limit, math.inf))) / 2 * unit)
    highest -= highest / unit > limit
    caps = [highest, *(int(budget) for budget in budgets.values())]
    return _allocate(table, ties, amounts, {DEGRADATION: limit, **budgets}, caps, unit=unit)


def smallest_feasible(table: Table, cost: str, ties: Sequence[Tie] = ()) -> int:
    """Return the smallest total of ``cost`` that any plan has; errors as in :func:`minimise_degradation`."""
    _check_cost(cost, _check(table))
    _, problem = _gather(table, ties, lambda choice: (int(choice.costs[cost]),), ())
    return Excess.of(problem, only(problem, 0)).least


def _is_number(value: Any, lowest: float) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    return math.isfinite(float(value)) and float(value) >= lowest


def _is_whole(value: Any, lowest: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= lowest


def _check(table: Table, lowest: float = 0.0) -> list[str]:
    """Refuse a table that makes no sense; return the names of its costs."""
    if not table:
        raise DataError("The table holds no site; give every site of the network its choices.")
    names: list[str] | None = None
    for site, choices in table.items():
        if not choices:
            raise DataError(f"Site {site!r} has no choice; give it at least one, or leave it out.")
        seen = set()
        for choice in choices:
            bits = choice.weight_bits, choice.input_bits
            where = f"site {site!r} at {bits[0]} weight and {bits[1]} input bits"
            if bits in seen:
                raise DataError(f"The choice of {where} is given twice; keep the better one.")
            seen.add(bits)
            given = choice.degradation
            if not _is_number(given, lowest):
                wanted = "a finite number" if lowest < 0 else "a finite number, 0 or more"
                raise DataError(f"The degradation of {where} is {given!r}; it has to be {wanted}.")
            costs = sorted(choice.costs)
            names = costs if names is None else names
            if costs != names:
                raise DataError(f"The costs of {where} are {costs}, elsewhere {names}; name the same ones.")
            for name, cost in choice.costs.items():
                if name == DEGRADATION or not _is_whole(cost, 0):
                    rule = f"use whole numbers, 0 or more, and no cost called {DEGRADATION!r}"
                    raise DataError(f"The cost {name!r} of {where} is {cost!r}; {rule}.")
    return names or []


def _check_cost(cost: str, names: Sequence[str]) -> None:
    if cost not in names:
        raise BudgetError(f"The table has no cost {cost!r}; it has {', '.join(names) or 'none'}.")


def _check_budgets(budgets: Mapping[str, int], names: Sequence[str]) -> None:
    for name, budget in budgets.items():
        _check_cost(name, names)
        if not _is_whole(budget, 1):
            raise BudgetError(f"The budget {name}={budget!r} has no meaning; use a positive whole number.")


def _unit(table: Table) -> int:
    """Return the power of two of which every degradation, multiplied by it, is a whole number."""
    return max(float(c.degradation).as_integer_ratio()[1] for choices in table.values() for c in choices)


def _units(choice: Choice, unit: int) -> int:
    """Return the degradation in units of ``1 / unit``, exactly."""
    numerator, denominator = float(choice.degradation).as_integer_ratio()
    return numerator * (unit // denominator)


def _gather(
    table: Table, ties: Sequence[Tie], amounts: Callable[[Choice], tuple[int, ...]], caps: Sequence[int]
) -> tuple[list[list[str]], Problem]:
    """Merge sites tied on both widths into blocks, join blocks tied on inputs; also return who was merged."""
    for tie in ties:
        for site in tie.sites:
            if site not in table:
                raise SiteError(f"A tie names the site {site!r}, which the table does not have.")
    members = _classes(list(table), [tie.sites for tie in ties if tie.on == "both"])
    block_of = {site: b for b, sites in enumerate(members) for site in sites}
    linked = [[block_of[site] for site in tie.sites] for tie in ties if tie.on == "input"]
    blocks = []
    for sites in members:
        by_bits = [{(c.weight_bits, c.input_bits): amounts(c) for c in table[site]} for site in sites]
        options = [
            Option(*bits, tuple(map(sum, zip(*(known[bits] for known in by_bits), strict=True))))
            for bits in by_bits[0]
            if all(bits in known for known in by_bits)
        ]
        if not options:
            raise SiteError(f"The sites {', '.join(sites)} are tied but have no pair of widths in common.")
        blocks.append(_undominated(options))
    problem = Problem(blocks, _classes(list(range(len(blocks))), linked), caps)
    for join in problem.joins:
        if not shared(problem, join):
            sites = [site for b in join for site in members[b]]
            raise SiteError(f"The inputs of {', '.join(sites)} are tied but have no width in common.")
    return members, problem


def _classes(items: list[Any], groups: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Partition ``items`` so that those of a group are together, in the order of ``items``."""
    label = {item: n for n, item in enumerate(items)}
    for group in groups:
        joined = {label[item] for item in group}
        label = {item: min(joined) if n in joined else n for item, n in label.items()}
    members: dict[int, list[Any]] = {}
    for item, n in label.items():
        members.setdefault(n, []).append(item)
    return list(members.values())


def _undominated(options: list[Option]) -> list[Option]:
    """Drop an option if one of the same input width is no worse in any amount; of equals the first stays."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda o: o.amounts):
        rivals = (o.amounts for o in kept if o.input_bits == option.input_bits)
        if not any(all(map(le, amounts, option.amounts)) for amounts in rivals):
            kept.append(option)
    return kept


def _allocate(
    table: Table,
    ties: Sequence[Tie],
    amounts: Callable[[Choice], tuple[int, ...]],
    limits: Mapping[str, float],
    caps: Sequence[int],
    *,
    unit: int,
) -> Allocation:
    """Search and report; ``limits`` are as the caller gave them, ``caps`` the same as exact amounts."""
    members, problem = _gather(table, ties, amounts, caps)
    found = search(problem)
    if found.plan is None:
        raise BudgetError(_refusal(problem, limits, unit, found.proven))
    bits = {
        site: (option.weight_bits, option.input_bits)
        for sites, option in zip(members, found.plan, strict=True)
        for site in sites
    }
    choices = {s: next(c for c in table[s] if (c.weight_bits, c.input_bits) == bits[s]) for s in table}
    objective = total(found.plan, 0)
    return Allocation(
        choices,
        math.fsum(choice.degradation for choice in choices.values()),
        {
            name: sum(int(c.costs[name]) for c in choices.values())
            for name in next(iter(choices.values())).costs
        },
        "optimal" if found.proven else "feasible",
        float(1 - Fraction(found.bound, objective)) if objective > found.bound else 0.0,
        tuple(_binding(problem, found.plan, list(limits))),
    )


def _refusal(problem: Problem, limits: Mapping[str, float], unit: int, proven: bool) -> str:
    """Say which limits are not met, and what the smallest feasible value of each is."""
    leasts = [Excess.of(problem, only(problem, amount)).least for amount in range(1, 1 + len(limits))]
    asked = [f"{name} <= {limit}" for name, limit in limits.items()]
    alone = [cap < least for cap, least in zip(problem.caps, leasts, strict=True)]
    smallest = " and ".join(
        f"{name} {least / unit if name == DEGRADATION else least}"
        for name, least in zip(limits, leasts, strict=True)
    )
    hint = f"the smallest feasible is {smallest}" if len(limits) == 1 else f"each alone can reach {smallest}"
    if not proven:
        return f"The search ended without a plan for {' and '.join(asked)}; allow more: {hint}."
    if any(alone):
        impossible = " and ".join(text for text, hopeless in zip(asked, alone, strict=True) if hopeless)
        return f"No choice of bits meets {impossible}; {hint}."
    return f"No choice of bits meets {' and '.join(asked)} together; {hint}."


def _binding(problem: Problem, plan: Sequence[Option], names: Sequence[str]) -> Iterator[str]:
    """Yield the limits that bind, as :class:`Allocation` defines it."""
    spare = [cap - total(plan, amount) for amount, cap in enumerate(problem.caps, 1)]
    blocked = [
        {i for i, room in enumerate(spare) if added[i + 1] > room}
        for added in _changes(problem, plan)
        if added[0] < 0
    ]
    for i, name in enumerate(names):
        if blocked and (all(i in limits for limits in blocked) or {i} in blocked):
            yield name


def _changes(problem: Problem, plan: Sequence[Option]) -> Iterator[list[int]]:
    """Yield what every single change of the plan adds to each amount."""
    for join in problem.joins:
        width = plan[join[0]].input_bits
        swaps = [{b: o} for b in join for o in problem.blocks[b] if o.input_bits == width or len(join) == 1]
        for other in shared(problem, join):
            wanted = {b: (plan[b].weight_bits, other) for b in join}
            swap = {
                b: o for b in join for o in problem.blocks[b] if (o.weight_bits, o.input_bits) == wanted[b]
            }
            if len(swap) == len(join):
                swaps.append(swap)
        for swap in swaps:
            replaced = [plan[b] for b in swap]
            yield [total(swap.values(), i) - total(replaced, i) for i in range(len(plan[0].amounts))]
