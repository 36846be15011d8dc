"""One option a block, least objective, under limits: the integer programme behind bit allocation.

Python-MIP's CBC does the search, in floating point, and ignores improvements below about 1e-5: on raw losses
from 1e-6 to 1e-1 it calls plans optimal that are percents worse than the optimum. Hence:

- every amount is an exact Python integer, of any size;
- an option whose cheapest completion breaks a limit, or is worse than a known plan, is dropped first;
- CBC sees only what is above the least possible total, in units of the room there is, and searches again
  in smaller units where the plan shows that the room was ten times smaller;
- every plan of CBC's is summed in integers; one above a limit is cut off and the search repeated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

# How far CBC's objective and rows reach; its tolerances are absolute, 1e-5 for the objective, 1e-6 for a row.
OBJECTIVE_SCALE, ROW_SCALE = 10**6, 10**3
# The first search only shows how little room there is; the last one proves its plan.
ROUGH_GAP, FINE_GAP = 1e-2, 1e-9
# A limit in nodes rather than seconds, so that the same problem gives the same plan on every machine.
MAX_NODES = 100_000
MAX_CUTS = 50


@dataclass(frozen=True)
class Option:
    """One option of a block: ``amounts`` is the objective, then one amount a cap, all exact and 0 or more."""

    weight_bits: int
    input_bits: int
    amounts: tuple[int, ...]


@dataclass(frozen=True)
class Problem:
    """What is searched.

    Args:
        blocks: the options of every block; a plan takes one of each.
        joins: a partition of the blocks' indices; blocks of a join take options of the same ``input_bits``.
        caps: the largest total of each amount after the objective.
    """

    blocks: Sequence[Sequence[Option]]
    joins: Sequence[Sequence[int]]
    caps: Sequence[int]


@dataclass(frozen=True)
class Found:
    """What the search knows.

    Args:
        plan: one option a block; None if there is none, or none was found.
        proven: the plan is optimal within CBC's tolerance, or there is certainly none.
        bound: no plan has a smaller objective.
    """

    plan: Sequence[Option] | None
    proven: bool
    bound: Fraction = Fraction(0)


@dataclass(frozen=True)
class Excess:
    """One amount, counted from the least total that any plan has.

    A plan's total is ``least``, plus ``of_input`` of each join at its width, plus ``of_option`` a block.
    """

    least: int
    of_input: list[dict[int, int]]
    of_option: list[list[int]]

    @classmethod
    def of(cls, problem: Problem, amount: int) -> Excess:
        """Split ``amounts[amount]`` of every option so; every join shares a width."""
        low: list[dict[int, int]] = []
        for options in problem.blocks:
            low.append({})
            for o in options:
                low[-1][o.input_bits] = min(o.amounts[amount], low[-1].get(o.input_bits, o.amounts[amount]))
        totals = [{a: sum(low[b][a] for b in join) for a in shared(problem, join)} for join in problem.joins]
        leasts = [min(total.values()) for total in totals]
        return cls(
            sum(leasts),
            [{a: n - least for a, n in total.items()} for total, least in zip(totals, leasts, strict=True)],
            [[o.amounts[amount] - low[b][o.input_bits] for o in os] for b, os in enumerate(problem.blocks)],
        )

    def widest(self) -> int:
        """Return the largest excess of a single option or input width, at least 1."""
        return max(1, *(max(of_width.values()) for of_width in self.of_input), *map(max, self.of_option))


@dataclass(frozen=True)
class _Cut:
    """Of these blocks, not all may have an option with at least this much of ``amounts[amount]``."""

    amount: int
    at_least: Mapping[int, int]


def total(plan: Iterable[Option], amount: int) -> int:
    """Return the exact sum of one amount."""
    return sum(option.amounts[amount] for option in plan)


def shared(problem: Problem, join: Sequence[int]) -> list[int]:
    """Return the input widths that every block of the join has, ascending."""
    return sorted(set.intersection(*({o.input_bits for o in problem.blocks[b]} for b in join)))


def search(problem: Problem) -> Found:
    """Find the plan of least objective within the caps; the caps hold exactly, whatever CBC's tolerance."""
    best = Found(None, proven=True)
    ceiling: float = math.inf
    room, gap = 0, ROUGH_GAP
    cuts: list[_Cut] = []
    while (trimmed := _trim(problem, ceiling)) is not None:
        problem = trimmed
        excess = Excess.of(problem, 0)
        if best.plan is None:
            room, gap = excess.widest(), ROUGH_GAP
        elif total(best.plan, 0) == excess.least:
            return Found(best.plan, True, Fraction(excess.least))
        elif gap == FINE_GAP and room <= 10 * (total(best.plan, 0) - excess.least):
            return best
        else:
            room, gap = total(best.plan, 0) - excess.least, FINE_GAP
        found = _branch_and_bound(problem, room, gap, cuts)
        if found.plan is None:
            return best if best.plan else found
        better = best.plan is None or total(found.plan, 0) < ceiling
        best = replace(found, plan=found.plan if better else best.plan)
        ceiling = min(ceiling, total(found.plan, 0))
    return best


def _trim(problem: Problem, ceiling: float) -> Problem | None:
    """Drop options whose cheapest completion breaks a limit, one amount at a time; None if no plan stays."""
    before = -1
    while before != sum(map(len, problem.blocks)):
        before = sum(map(len, problem.blocks))
        for amount, limit in enumerate((ceiling, *problem.caps)):
            if not all(shared(problem, join) for join in problem.joins):
                return None
            excess = Excess.of(problem, amount)
            blocks = list(problem.blocks)
            for join, of_input in zip(problem.joins, excess.of_input, strict=True):
                for b in join:
                    blocks[b] = [
                        o
                        for o, above in zip(blocks[b], excess.of_option[b], strict=True)
                        if o.input_bits in of_input and excess.least + of_input[o.input_bits] + above <= limit
                    ]
            problem = replace(problem, blocks=blocks)
    return problem


def _branch_and_bound(problem: Problem, room: int, gap: float, cuts: list[_Cut]) -> Found:
    """Let CBC search, the objective in units of ``room``; extend ``cuts`` until its plan keeps every cap."""
    import mip

    parts = [Excess.of(problem, amount) for amount in range(1 + len(problem.caps))]
    while True:
        model = mip.Model(sense=mip.MINIMIZE, solver_name=mip.CBC)
        model.verbose, model.threads, model.seed = 0, 1, 0
        model.max_mip_gap, model.max_mip_gap_abs = gap, 1e-12
        takes = _state(model, problem, parts, room)
        for cut in cuts:
            dear = [
                take
                for b, least in cut.at_least.items()
                for take, option in zip(takes[b], problem.blocks[b], strict=True)
                if option.amounts[cut.amount] >= least
            ]
            model.add_constr(mip.xsum(dear) <= len(cut.at_least) - 1)
        status = model.optimize(max_nodes=MAX_NODES)
        if not model.num_solutions:
            return Found(None, proven=status == mip.OptimizationStatus.INFEASIBLE)
        plan = [
            max(zip(options, taken, strict=True), key=lambda pair: pair[1].x)[0]
            for options, taken in zip(problem.blocks, takes, strict=True)
        ]
        over = [i for i, cap in enumerate(problem.caps, 1) if total(plan, i) > cap]
        if not over:
            bound = parts[0].least + Fraction(model.objective_bound) * room / OBJECTIVE_SCALE
            return Found(plan, status == mip.OptimizationStatus.OPTIMAL, bound)
        if len(cuts) == MAX_CUTS:
            return Found(None, proven=False)
        cuts.append(_cover(problem, plan, over[0]))


def _state(model, problem: Problem, parts: Sequence[Excess], room: int) -> list[list]:
    """Write the problem into ``model``; return one variable a block and option, 1 if that option is taken."""
    import mip

    spans = [cap - part.least for cap, part in zip(problem.caps, parts[1:], strict=True)]
    rows: list[list] = [[] for _ in spans]

    def binary(objective: int, *amounts: int):
        variable = model.add_var(var_type=mip.BINARY, obj=objective * OBJECTIVE_SCALE / room)
        for row, amount, span in zip(rows, amounts, spans, strict=True):
            # Where nothing is left to spend, trimming left nothing that costs.
            if amount:
                row.append(amount * ROW_SCALE / span * variable)
        return variable

    takes = [
        [binary(*(part.of_option[b][k] for part in parts)) for k in range(len(options))]
        for b, options in enumerate(problem.blocks)
    ]
    for j, join in enumerate(problem.joins):
        inputs = {a: binary(*(part.of_input[j][a] for part in parts)) for a in parts[0].of_input[j]}
        model.add_constr(mip.xsum(inputs.values()) == 1)
        for b in join:
            for a, has_input in inputs.items():
                at = [t for t, o in zip(takes[b], problem.blocks[b], strict=True) if o.input_bits == a]
                model.add_constr(mip.xsum(at) == has_input)
    for row in filter(None, rows):
        model.add_constr(mip.xsum(row) <= ROW_SCALE)
    return takes


def _cover(problem: Problem, plan: Sequence[Option], amount: int) -> _Cut:
    """Cut off a plan above a cap, with others that are above it for the same reason, and none within it."""
    above = [
        option.amounts[amount] - min(o.amounts[amount] for o in options)
        for option, options in zip(plan, problem.blocks, strict=True)
    ]
    spare = total(plan, amount) - problem.caps[amount - 1]
    at_least = {}
    for b in sorted(range(len(plan)), key=above.__getitem__):
        # A block may drop out as long as the others alone, all else at its least, are above the cap.
        if above[b] < spare:
            spare -= above[b]
        else:
            at_least[b] = plan[b].amounts[amount]
    return _Cut(amount, at_least)
