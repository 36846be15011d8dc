"""Recipes: which steps run, in which order, for whom. ``quantize`` is the one line for the impatient."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from numbers import Real
from typing import Any

import torch
from torch import nn

from pyquant.capture import example_of
from pyquant.data import load_batches, read_once
from pyquant.errors import BudgetError, DataError, GridError, SiteError
from pyquant.grid import Grid
from pyquant.model import QModel, SiteWeights, check_bits, nearest_weights, prepare, with_bits, with_ranges
from pyquant.regions import source
from pyquant.runtime.net import Net, deploy
from pyquant.steps.adaquant import adaquant, candidates
from pyquant.steps.allocate import (
    Allocation,
    Choice,
    Tie,
    minimise_cost,
    minimise_degradation,
    monotone,
    smallest_feasible,
)
from pyquant.steps.bias_tune import bias_tune
from pyquant.steps.bn_tune import bn_tune
from pyquant.steps.calibrate import calibrate
from pyquant.steps.sensitivity import sensitivity

Progress = Callable[[str, int, int], None]
Bits = tuple[int, int]


@dataclass(frozen=True)
class Recipe:
    """A pipeline as a value.

    Args:
        name: for reports.
        choices: (weight bits, input bits) that every site may have; one choice needs no allocation.
        budget: bytes of the weight codes over bytes of the float32 weights, at most; in (0, 1], None leaves it open.
        max_degradation: the other direction: the least bytes whose predicted degradation stays below this.
        learn: AdaQuant, or round to nearest.
        flow: AdaQuant's: ``"parallel"`` or ``"sequential"``.
        tune_norms, tune_biases: BN tuning, bias tuning.
        ends: bits of the first and the last site, outside the allocation; None leaves them in it.
        method: how activation ranges are placed.

    Raises:
        GridError: choices or ends that are no pairs of widths from 2 to 8.
        BudgetError: a budget outside (0, 1], a max_degradation that is not positive, or several choices and nothing to
            choose by, or one choice and a limit.
    """

    name: str
    choices: tuple[Bits, ...]
    budget: float | None = None
    max_degradation: float | None = None
    learn: bool = True
    flow: str = "sequential"
    tune_norms: bool = True
    tune_biases: bool = True
    ends: Bits | None = None
    method: str = "mse"

    def __post_init__(self) -> None:
        if not self.choices:
            raise GridError("a recipe needs at least one (weight bits, input bits) choice.")
        if not isinstance(self.choices, Sequence) or not all(map(_is_pair, self.choices)):
            raise GridError(
                f"choices={self.choices!r} are no pairs; give tuples (weight bits, input bits), such as ((4, 8), (8, 8))."
            )
        if self.ends is not None and not _is_pair(self.ends):
            raise GridError(
                f"ends={self.ends!r} is no pair; give (weight bits, input bits), such as (8, 8), or None."
            )
        for pair in (*self.choices, *([] if self.ends is None else [self.ends])):
            for width in pair:
                Grid(width)
        limits = {"budget": self.budget, "max_degradation": self.max_degradation}
        for name, value in limits.items():
            number = isinstance(value, Real) and not isinstance(value, bool)
            if value is not None and not (number and 0 < value < float("inf")):
                raise BudgetError(
                    f"{name}={value!r} makes no sense; give a positive number, such as 0.13 of the float32 bytes."
                )
        if self.budget is not None and self.budget > 1:
            share = float(self.budget)
            raise BudgetError(
                f"budget={self.budget} is above 1, the float32 size; {share:g} % is {share / 100:g}."
            )
        limited = self.budget is not None or self.max_degradation is not None
        if len(self.choices) == 1 and limited:
            raise BudgetError(
                "a recipe with one choice has nothing that a budget or a max_degradation could choose; leave them out."
            )
        if len(self.choices) > 1 and not limited:
            raise BudgetError(
                "a recipe with several choices needs a budget (such as 0.13) or a max_degradation to choose by."
            )

    @staticmethod
    def light(budget: float = 0.13, input_bits: int | None = 8) -> Recipe:
        """Integer programming over {4, 8} bits and BN tuning; no learning. ``input_bits=None``: as wide as the weights."""
        return Recipe("light", _choices((4, 8), input_bits), budget, learn=False, tune_biases=False)

    @staticmethod
    def advanced(budget: float = 0.13, input_bits: int | None = 8) -> Recipe:
        """AdaQuant, integer programming over {4, 8} bits, BN tuning, bias tuning."""
        return Recipe("advanced", _choices((4, 8), input_bits), budget)

    @staticmethod
    def relaxed(budget: float = 0.13, input_bits: int | None = 8) -> Recipe:
        """Advanced, with every width from 2 to 8 to choose from."""
        return Recipe("relaxed", _choices(range(2, 9), input_bits), budget)

    @staticmethod
    def fixed(weight_bits: int = 8, input_bits: int = 8, ends: Bits | None = (8, 8)) -> Recipe:
        """One pair of widths for all sites but the first and the last."""
        return Recipe(f"fixed-w{weight_bits}a{input_bits}", ((weight_bits, input_bits),), ends=ends)

    @staticmethod
    def nearest(budget: float = 0.13, input_bits: int | None = 8) -> Recipe:
        """Round to nearest within a budget, nothing tuned: what the others are measured against."""
        return Recipe(
            "nearest", _choices((4, 8), input_bits), budget, learn=False, tune_norms=False, tune_biases=False
        )


RECIPES: Mapping[str, Callable[..., Recipe]] = {
    "nearest": Recipe.nearest,
    "light": Recipe.light,
    "advanced": Recipe.advanced,
    "relaxed": Recipe.relaxed,
}


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2


def _choices(widths, input_bits: int | None) -> tuple[Bits, ...]:
    return tuple((w, w if input_bits is None else input_bits) for w in widths)


@dataclass(frozen=True)
class Study:
    """What the allocation needs to know of a network, measured once and usable for many budgets.

    Args:
        q: the calibrated model, all sites at the widest choice.
        found: (site, weight bits) -> weights.
        moved: site -> bits -> divergence of the output.
    """

    q: QModel
    found: Mapping[tuple[str, int], SiteWeights]
    moved: Mapping[str, Mapping[Bits, float]] = field(default_factory=dict)


def quantize_model(
    model: nn.Module | QModel,
    data: Any,
    recipe: Recipe,
    *,
    bits: Mapping[str, Bits] | None = None,
    exclude: Collection[str] = (),
    progress: Progress | None = None,
) -> QModel:
    """Run a recipe.

    Args:
        model: a trained model, or one that :func:`prepare` gave.
        data: a few hundred unlabelled inputs ``[B, ...]`` float32, as the model takes them: a tensor, or an iterable of
            batches that are tensors, tuples whose leading tensors are the inputs, or dicts keyed by input names; read once.
        recipe: what to do.
        bits: site -> (weight bits, input bits) for sites pinned outside the allocation.
        exclude: sites that stay float.
        progress: called with (stage, done, total).

    Returns:
        The quantised model, ready for ``deploy``.

    Raises:
        CaptureError: the model cannot be captured.
        SiteError: a site in ``bits`` or ``exclude`` that the model does not have, or pins that contradict each other.
        GridError: bits outside 2 to 8.
        BudgetError: no choice of bits meets the recipe's budget, said before calibration; or its max_degradation.
        DataError, ShapeError, DTypeError: the data is empty, not finite, or not what the model takes; no recipe.
    """
    if not isinstance(recipe, Recipe):
        raise DataError(f"recipe={recipe!r} is no Recipe; give one, such as Recipe.advanced(budget=0.13).")
    if not isinstance(model, QModel):
        data = read_once(data)
        model = prepare(model, example_of(model, data), exclude=exclude)
    elif exclude:
        raise SiteError(
            "exclude comes too late for a prepared model; give it to prepare(model, example, exclude=...)."
        )
    q = model
    columns = [torch.cat(column) for column in zip(*load_batches(data, q.graph), strict=True)]
    rows: Any = [tuple(columns)]
    pins = {} if bits is None else bits
    check_bits(q.graph, pins)
    pins = {site: (w, a) for site, (w, a) in pins.items()}
    if recipe.ends is not None:
        pins = {q.graph.sites[0]: recipe.ends, q.graph.sites[-1]: recipe.ends} | pins
    study = examine(q, rows, recipe, pins, progress)
    return assemble(study, rows, recipe, pins, progress)


def quantize(
    model: nn.Module,
    data: Any,
    recipe: Recipe | None = None,
    *,
    bits: Mapping[str, Bits] | None = None,
    exclude: Collection[str] = (),
    backend: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Net:
    """Quantise a trained model and return a network that runs in integers.

    Args:
        model: the trained model; left unchanged.
        data: a few hundred unlabelled inputs, as for :func:`quantize_model`.
        recipe: what to do; ``Recipe.advanced(budget=0.13)`` by default.
        bits, exclude, progress: as for :func:`quantize_model`.
        backend, threads: as for :func:`pyquant.runtime.net.deploy`.

    Returns:
        A network that takes what the model takes, float32 ``[B, ...]`` of any ``B``, and gives what it gives.

    Raises:
        PyquantError: as for :func:`quantize_model`; BackendError as for :func:`pyquant.runtime.net.deploy`.
    """
    recipe = Recipe.advanced() if recipe is None else recipe
    q = quantize_model(model, data, recipe, bits=bits, exclude=exclude, progress=progress)
    return deploy(q, backend=backend, threads=threads)


def examine(
    q: QModel, data: Any, recipe: Recipe, pins: Mapping[str, Bits], progress: Progress | None = None
) -> Study:
    """Calibrate, and measure every choice of every site where there is something to choose."""
    choices = {site: (pins[site],) if site in pins else recipe.choices for site in q.graph.sites}
    widest = (max(w for w, _ in recipe.choices), max(a for _, a in recipe.choices))
    q = replace(q, plan=with_bits(q.plan, {site: pins.get(site, widest) for site in q.graph.sites}))
    # An infeasible budget is known from the shapes alone: say so before the hours, not after.
    _budgets(q, recipe, choices)
    q = calibrate(q, data, method=recipe.method)
    if len(recipe.choices) == 1:
        return Study(q, {})
    widths = {site: tuple(sorted({w for w, _ in options})) for site, options in choices.items()}
    if recipe.learn:
        found, rows = candidates(q, data, widths, progress=_stage(progress, "candidates"))
    else:
        found = {
            (s, w): nearest_weights(q, s, q.plan[s].weight.with_bits(w))
            for s in q.graph.sites
            for w in widths[s]
        }
        rows = data
    moved = sensitivity(
        q, rows, choices, found, method=recipe.method, progress=_stage(progress, "sensitivity")
    )
    return Study(q, found, moved)


def assemble(
    study: Study, data: Any, recipe: Recipe, pins: Mapping[str, Bits], progress: Progress | None = None
) -> QModel:
    """Choose the bits, take the weights found for them, and tune."""
    q = study.q
    if len(recipe.choices) > 1:
        chosen = allocate(study, recipe)
        bits = {site: (c.weight_bits, c.input_bits) for site, c in chosen.choices.items()}
        weights = {site: study.found[site, w] for site, (w, _) in bits.items()}
        q = with_ranges(replace(q, plan=with_bits(q.plan, bits), weights=weights), recipe.method)
        facts = {
            "status": chosen.status,
            "gap": chosen.gap,
            "binding": list(chosen.binding),
            "costs": dict(chosen.costs),
        }
        q = q.logged("allocate", degradation=chosen.degradation, **facts)
    if recipe.learn:
        q = adaquant(q, data, flow=recipe.flow, progress=_stage(progress, "adaquant"))
    if recipe.tune_norms:
        q = bn_tune(q, data)
    if recipe.tune_biases:
        q = bias_tune(q, data, progress=_stage(progress, "bias tuning"))
    return q


def allocate(study: Study, recipe: Recipe) -> Allocation:
    """Solve for the bits of every site."""
    q = study.q
    table = {
        site: [
            Choice(w, a, moved, {"weight_bytes": weight_bytes(q, site, w)})
            for (w, a), moved in options.items()
        ]
        for site, options in study.moved.items()
    }
    table = monotone(table)
    ties = _shared_inputs(q)
    budgets = _budgets(q, recipe, study.moved)
    if recipe.max_degradation is not None:
        return minimise_cost(table, "weight_bytes", recipe.max_degradation, budgets, ties)
    return minimise_degradation(table, budgets, ties)


def _budgets(q: QModel, recipe: Recipe, choices: Mapping[str, Collection[Bits]]) -> dict[str, int]:
    """The recipe's budget in bytes, by the name of its cost; BudgetError if no choice of bits meets it."""
    if recipe.budget is None:
        return {}
    table = {
        site: [Choice(w, a, 0.0, {"weight_bytes": weight_bytes(q, site, w)}) for w, a in options]
        for site, options in choices.items()
    }
    # Ties count: where inputs are as wide as weights, a pinned neighbour rules the narrowest weights out.
    whole, least = float_bytes(q), smallest_feasible(table, "weight_bytes", _shared_inputs(q))
    # In decimals, as it was written: 0.145 of 800 bytes are 116.
    allowed = int(Fraction(str(recipe.budget)) * whole)
    if allowed < least:
        raise BudgetError(
            f"budget={recipe.budget} allows {allowed} bytes of weight codes, of {whole} in float32, and no choice of bits takes "
            f"fewer than {least}; the smallest feasible budget is {math.ceil(Fraction(10_000 * least, whole)) / 10_000}."
        )
    return {"weight_bytes": allowed}


def weight_bytes(q: QModel, site: str, bits: int) -> int:
    """Bytes of a site's packed codes in the file."""
    weight = q.state[f"{site}.weight"]
    return weight.shape[0] * 4 * -(-weight[0].numel() * bits // 32)


def float_bytes(q: QModel) -> int:
    """Bytes of all sites' weights in float32."""
    return sum(4 * q.state[f"{site}.weight"].numel() for site in q.graph.sites)


def _shared_inputs(q: QModel) -> list[Tie]:
    """Sites that read one value read it at one width."""
    readers: dict[str, list[str]] = {}
    for site in q.graph.sites:
        readers.setdefault(source(q.graph, q.graph.by_name[site].inputs[0]), []).append(site)
    return [Tie(tuple(sites), on="input") for sites in readers.values() if len(sites) > 1]


def _stage(progress: Progress | None, name: str) -> Progress | None:
    return None if progress is None else lambda _, done, total: progress(name, done, total)
