"""One option a block, least objective, under caps: the integer programme behind bit allocation.

Python-MIP's CBC does the search, in floating point, and cannot be trusted with the problem as it stands. It
ignores improvements below about 1e-5: with raw losses from 1e-6 to 1e-1 it calls plans optimal that are worse
by percents. Its preprocessing has lost the optimum of a well-scaled problem of 8,000 options. Hence:

- every amount is an exact Python integer, of any size;
- prices on the capped amounts give an exact lower bound on the objective of every plan with a given option;
  CBC sees only the options whose bound is within a window, which grows until it holds the plan found;
- CBC sees that small core counted from its least totals, in units of the window and of what the caps leave;
- every plan of CBC's is summed in integers; one above a cap is cut off and the search repeated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from operator import mul
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import mip

# What a window, and what the caps leave, is to CBC; its tolerances are absolute, 1e-5 and 1e-6.
OBJECTIVE_SCALE, ROW_SCALE = 10**5, 10**3
# An objective beyond this many windows costs CBC the digits it needs; windows are shrunk instead.
MOST_WINDOWS = 10**4
# A limit in nodes rather than seconds, so that the same problem gives the same plan on every machine.
MAX_NODES = 100_000
MAX_CUTS = 50
# Prices only have to be good: any of them give a valid bound.
MAX_PRICE, MAX_PRICINGS = 1e4, 100
PROOF_SCALE, PROOF_TOLERANCE = 10**6, 1e-3


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
    bound: int = 0


@dataclass(frozen=True)
class Excess:
    """One amount, counted from the least total that any plan has.

    A plan's total is ``least``, plus ``of_input`` of each join at its width, plus ``of_option`` a block.
    """

    least: int
    of_input: list[dict[int, int]]
    of_option: list[list[int]]

    @classmethod
    def of(cls, problem: Problem, mix: Sequence[int]) -> Excess:
        """Split the sum of ``mix[i] * amounts[i]`` so; every join shares a width."""
        low: list[dict[int, int]] = []
        values = [[sum(map(mul, mix, o.amounts)) for o in options] for options in problem.blocks]
        for options, of_options in zip(problem.blocks, values, strict=True):
            low.append({})
            for o, value in zip(options, of_options, strict=True):
                low[-1][o.input_bits] = min(value, low[-1].get(o.input_bits, value))
        totals = [{a: sum(low[b][a] for b in join) for a in shared(problem, join)} for join in problem.joins]
        leasts = [min(total.values()) for total in totals]
        return cls(
            sum(leasts),
            [{a: n - least for a, n in total.items()} for total, least in zip(totals, leasts, strict=True)],
            [
                [value - low[b][o.input_bits] for o, value in zip(options, values[b], strict=True)]
                for b, options in enumerate(problem.blocks)
            ],
        )

    def within(self, problem: Problem, room: int) -> Problem:
        """Keep the options that are part of any plan with an excess of at most ``room``."""
        blocks = list(problem.blocks)
        for join, of_input in zip(problem.joins, self.of_input, strict=True):
            for b in join:
                blocks[b] = [
                    o
                    for o, above in zip(blocks[b], self.of_option[b], strict=True)
                    if o.input_bits in of_input and of_input[o.input_bits] + above <= room
                ]
        return replace(problem, blocks=blocks)

    def cheapest(self, problem: Problem) -> list[Option]:
        """Return a plan with no excess."""
        plan = {}
        for join, of_input in zip(problem.joins, self.of_input, strict=True):
            width = min(of_input, key=of_input.__getitem__)
            for b in join:
                pairs = zip(problem.blocks[b], self.of_option[b], strict=True)
                plan[b] = next(o for o, above in pairs if o.input_bits == width and above == 0)
        return [plan[b] for b in range(len(plan))]

    def ranked(self, problem: Problem) -> list[int]:
        """Return the least excess of a plan with each option, ascending."""
        return sorted(
            of_input[o.input_bits] + above
            for join, of_input in zip(problem.joins, self.of_input, strict=True)
            for b in join
            for o, above in zip(problem.blocks[b], self.of_option[b], strict=True)
            if o.input_bits in of_input
        )


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


def only(problem: Problem, amount: int) -> list[int]:
    """Return the mix that is one amount alone."""
    return [int(i == amount) for i in range(1 + len(problem.caps))]


def search(problem: Problem) -> Found:
    """Find the plan of least objective within the caps; the caps hold exactly, whatever CBC's tolerance."""
    threads = torch.get_num_threads()
    try:
        return _search(problem)
    finally:
        # CBC sets OpenMP's number of threads to 1, for the whole process.
        torch.set_num_threads(threads)


def _search(problem: Problem) -> Found:
    possible = _trim(problem)
    if possible is None:
        return Found(None, proven=True)
    problem, mix = possible, _prices(possible)
    excess = Excess.of(problem, mix)
    paid = sum(map(mul, mix[1:], problem.caps))
    bound = math.ceil(Fraction(excess.least - paid, mix[0]))
    ranked = excess.ranked(problem)
    window = max(1, ranked[min(2 * len(problem.blocks), len(ranked) - 1)])
    cuts: list[_Cut] = []
    while True:
        core = _trim(excess.within(problem, window))
        found = _branch_and_bound(core, Fraction(window, mix[0]), cuts) if core else Found(None, proven=True)
        whole = window >= ranked[-1]
        if found.plan is None:
            if whole:
                return found
            window *= 8
        else:
            needed = mix[0] * total(found.plan, 0) + paid - excess.least
            if whole or needed <= window:
                return replace(found, bound=max(bound, found.bound))
            window = needed


def _trim(problem: Problem) -> Problem | None:
    """Drop options whose cheapest completion breaks a cap, one amount at a time; None if no plan stays."""
    before = -1
    while before != sum(map(len, problem.blocks)):
        before = sum(map(len, problem.blocks))
        for amount, cap in enumerate(problem.caps, 1):
            if not all(shared(problem, join) for join in problem.joins):
                return None
            excess = Excess.of(problem, only(problem, amount))
            problem = excess.within(problem, cap - excess.least)
    return problem if all(shared(problem, join) for join in problem.joins) else None


def _prices(problem: Problem) -> list[int]:
    """Return the mix of objective and priced amounts whose least total proves most.

    Kelley's cutting planes on the Lagrangian dual: every plan seen bounds what any prices can prove.
    """
    import mip

    objective = Excess.of(problem, only(problem, 0))
    widest = max(1, objective.ranked(problem)[-1])
    spans = [
        max(1, cap - Excess.of(problem, only(problem, amount)).least)
        for amount, cap in enumerate(problem.caps, 1)
    ]
    unit = max(spans, default=1) << 64
    model = _model(mip.MAXIMIZE)
    proof = model.add_var(lb=-mip.INF, obj=1.0)
    prices = [model.add_var(ub=MAX_PRICE) for _ in spans]
    # CBC reports on standard output whenever no variable is an integer.
    model.add_var(var_type=mip.BINARY)
    given = [0.0] * len(spans)
    best: tuple[int, list[int]] = (-1, [])
    for _ in range(MAX_PRICINGS):
        mix = [unit, *(int(Fraction(p) * widest * unit / span) for p, span in zip(given, spans, strict=True))]
        excess = Excess.of(problem, mix)
        proven = excess.least - sum(map(mul, mix[1:], problem.caps))
        best = max(best, (proven, mix)) if best[1] else (proven, mix)
        plan = excess.cheapest(problem)
        over = [
            (total(plan, amount) - cap) * PROOF_SCALE / span
            for amount, (cap, span) in enumerate(zip(problem.caps, spans, strict=True), 1)
        ]
        above = (total(plan, 0) - objective.least) * PROOF_SCALE / widest
        model.add_constr(proof <= above + mip.xsum(map(mul, over, prices)))
        model.optimize()
        given = [max(0.0, price.x) for price in prices]
        if proof.x - (best[0] - objective.least * unit) * PROOF_SCALE / (widest * unit) < PROOF_TOLERANCE:
            break
    return best[1]


def _model(sense: str) -> mip.Model:
    """Return an empty model that is silent and gives the same answer every time."""
    import mip

    model = mip.Model(sense=sense, solver_name=mip.CBC)
    model.verbose, model.threads, model.seed, model.preprocess = 0, 1, 0, 0
    model.max_mip_gap, model.max_mip_gap_abs = 1e-9, 1e-12
    return model


def _branch_and_bound(problem: Problem, window: Fraction, cuts: list[_Cut]) -> Found:
    """Let CBC search, the objective in units of ``window``; extend ``cuts`` until a plan keeps every cap."""
    import mip

    parts = [Excess.of(problem, only(problem, amount)) for amount in range(1 + len(problem.caps))]
    window = max(window, Fraction(parts[0].ranked(problem)[-1], MOST_WINDOWS))
    while True:
        model = _model(mip.MINIMIZE)
        takes = _state(model, problem, parts, window)
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
        over = [amount for amount, cap in enumerate(problem.caps, 1) if total(plan, amount) > cap]
        if not over:
            bound = parts[0].least + Fraction(model.objective_bound) * window / OBJECTIVE_SCALE
            # Objectives are whole numbers, so that a bound between two of them is the upper one.
            return Found(plan, status == mip.OptimizationStatus.OPTIMAL, math.ceil(bound))
        if len(cuts) == MAX_CUTS:
            return Found(None, proven=False)
        cuts.append(_cover(problem, plan, over[0]))


def _state(
    model: mip.Model, problem: Problem, parts: Sequence[Excess], window: Fraction
) -> list[list[mip.Var]]:
    """Write the problem into ``model``; return one variable a block and option, 1 if that option is taken."""
    import mip

    spans = [cap - part.least for cap, part in zip(problem.caps, parts[1:], strict=True)]
    rows: list[list[mip.LinExpr]] = [[] for _ in spans]

    def binary(objective: int, *amounts: int) -> mip.Var:
        variable = model.add_var(var_type=mip.BINARY, obj=float(objective * OBJECTIVE_SCALE / window))
        for row, amount, span in zip(rows, amounts, spans, strict=True):
            # Where nothing is left to spend, trimming left nothing that costs.
            if amount:
                row.append(amount * ROW_SCALE / span * variable)
        return variable

    takes = []
    for b, options in enumerate(problem.blocks):
        takes.append([binary(*(part.of_option[b][k] for part in parts)) for k in range(len(options))])
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
