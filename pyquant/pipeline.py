"""Recipes: which steps run, in which order, for whom. ``quantize`` is the one line for the impatient."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyquant import allocation
from pyquant.allocation import LATENCY, Limits, Study, additivity, allowed, check_limits, plan_of
from pyquant.capture import example_of
from pyquant.costs import float_bytes, weight_bytes
from pyquant.data import load_batches, read_once
from pyquant.errors import BudgetError, DataError, GridError, SiteError
from pyquant.grid import Grid
from pyquant.journal import Journal
from pyquant.model import QModel, check_bits, nearest_weights, prepare, with_bits, with_ranges
from pyquant.runtime.latency import latencies
from pyquant.runtime.net import Net, deploy
from pyquant.steps.adaquant import adaquant, candidates
from pyquant.steps.allocate import Allocation, Tie
from pyquant.steps.bias_tune import bias_tune
from pyquant.steps.bn_tune import bn_tune
from pyquant.steps.calibrate import calibrate
from pyquant.steps.sensitivity import edges, filled, sensitivity

__all__ = [
    "RECIPES", "Recipe", "Study", "allocate", "assemble", "examine", "float_bytes", "pareto", "quantize", "quantize_model",
    "weight_bytes",
]  # fmt: skip

Progress = Callable[[str, int, int], None]
Bits = tuple[int, int]
Widths = int | Sequence[int] | None


@dataclass(frozen=True)
class Recipe:
    """A pipeline as a value.

    Args:
        name: for reports.
        choices: (weight bits, input bits) that every site may have; one choice needs no allocation.
        budget: bytes of the weight codes over bytes of the float32 weights, at most; in (0, 1], None leaves it open.
        budgets: further limits by the name of a cost, any number at once: ``weight_bytes``, ``bops``, ``activation_bytes`` (see
            :mod:`pyquant.costs`) and ``latency_ns``, measured on this machine with our kernels. Above 1 in the cost's own unit, at
            most 1 as a share of the float32 network's, of the network at its widest choice for ``latency_ns``.
        max_degradation: the other direction: the least ``cost`` whose predicted degradation stays below this.
        cost: which cost that is.
        ties: names of sites that must share their bits, such as ``(("q", "k", "v"),)``, beside those that the graph ties.
        learn: AdaQuant, or round to nearest.
        flow: AdaQuant's: ``"parallel"`` or ``"sequential"``.
        tune_norms, tune_biases: BN tuning, bias tuning.
        ends: bits of the first and the last site, outside the allocation; None leaves them in it.
        method: how activation ranges are placed.

    Raises:
        GridError: choices or ends that are no pairs of widths from 2 to 8.
        BudgetError: a budget outside (0, 1], a limit that is not positive, or several choices and nothing to
            choose by, or one choice and a limit.
        SiteError: a tie of fewer than two sites.
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
    budgets: Mapping[str, float] = field(default_factory=dict)
    cost: str = "weight_bytes"
    ties: tuple[Tie | tuple[str, ...], ...] = ()

    @property
    def limits(self) -> Limits:
        """What plans have to keep."""
        return Limits(self.budget, self.budgets, self.max_degradation, self.cost, self.ties)

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
        check_limits(self.limits)
        limited = self.budget is not None or self.max_degradation is not None or bool(self.budgets)
        if len(self.choices) == 1 and limited:
            raise BudgetError(
                "a recipe with one choice has nothing that a budget or a max_degradation could choose; leave them out."
            )
        if len(self.choices) > 1 and not limited:
            raise BudgetError(
                "a recipe with several choices needs a budget (such as 0.13) or a max_degradation to choose by."
            )

    @staticmethod
    def light(budget: float | None = 0.13, input_bits: Widths = 8, **limits: Any) -> Recipe:
        """Integer programming over {4, 8} bits and BN tuning; no learning.

        Args:
            budget: share of the float32 weight bytes; None where ``limits`` says more.
            input_bits: width of the inputs, or several widths to choose from, or None: as wide as the weights.
            limits: ``budgets``, ``max_degradation``, ``cost``, ``ties``, as of :class:`Recipe`.
        """
        choices = _choices((4, 8), input_bits)
        return Recipe("light", choices, budget, learn=False, tune_biases=False, **limits)

    @staticmethod
    def advanced(budget: float | None = 0.13, input_bits: Widths = 8, **limits: Any) -> Recipe:
        """AdaQuant, integer programming over {4, 8} bits, BN tuning, bias tuning."""
        return Recipe("advanced", _choices((4, 8), input_bits), budget, **limits)

    @staticmethod
    def relaxed(budget: float | None = 0.13, input_bits: Widths = 8, **limits: Any) -> Recipe:
        """Advanced, with every width from 2 to 8 to choose from."""
        return Recipe("relaxed", _choices(range(2, 9), input_bits), budget, **limits)

    @staticmethod
    def fixed(weight_bits: int = 8, input_bits: int = 8, ends: Bits | None = (8, 8)) -> Recipe:
        """One pair of widths for all sites but the first and the last."""
        return Recipe(f"fixed-w{weight_bits}a{input_bits}", ((weight_bits, input_bits),), ends=ends)

    @staticmethod
    def nearest(budget: float | None = 0.13, input_bits: Widths = 8, **limits: Any) -> Recipe:
        """Round to nearest within a budget, nothing tuned: what the others are measured against."""
        plain: dict[str, Any] = {"learn": False, "tune_norms": False, "tune_biases": False}
        return Recipe("nearest", _choices((4, 8), input_bits), budget, **plain, **limits)


RECIPES: Mapping[str, Callable[..., Recipe]] = {
    "nearest": Recipe.nearest,
    "light": Recipe.light,
    "advanced": Recipe.advanced,
    "relaxed": Recipe.relaxed,
}


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2


def _choices(widths: Sequence[int], input_bits: Widths) -> tuple[Bits, ...]:
    if input_bits is None:
        return tuple((w, w) for w in widths)
    inputs = input_bits if isinstance(input_bits, Sequence) else (input_bits,)
    return tuple((w, a) for w in widths for a in inputs)


def quantize_model(
    model: nn.Module | QModel,
    data: Any,
    recipe: Recipe,
    *,
    bits: Mapping[str, Bits] | None = None,
    exclude: Collection[str] = (),
    cache: str | os.PathLike[str] | None = None,
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
        cache: a folder for sensitivities and latencies: what is measured is kept, and a run that was killed goes on from it.
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
    q, rows, pins = _begin(model, data, recipe, bits, exclude)
    study = examine(q, rows, recipe, pins, progress, cache)
    return assemble(study, rows, recipe, pins, progress)


def _begin(
    model: nn.Module | QModel,
    data: Any,
    recipe: Recipe,
    bits: Mapping[str, Bits] | None,
    exclude: Collection[str],
) -> tuple[QModel, Any, dict[str, Bits]]:
    """The prepared model, its data read, and every pin."""
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
    return q, rows, pins


def pareto(
    model: nn.Module | QModel,
    data: Any,
    recipe: Recipe,
    budgets: Sequence[float],
    *,
    cost: str = "weight_bytes",
    measure: bool = False,
    bits: Mapping[str, Bits] | None = None,
    exclude: Collection[str] = (),
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """The best plan at every one of several budgets, from one study of the network.

    Args:
        model, data, recipe, bits, exclude, cache, progress: as for :func:`quantize_model`; of the recipe's limits, those on other
            costs stay.
        budgets: of ``cost``, as in ``Recipe.budgets``.
        cost: which cost.
        measure: run each plan too, as a simulation of its sites alone.

    Returns:
        A row a budget, as :func:`pyquant.allocation.curve` describes them; the bits of a row are ``quantize_model``'s ``bits``.

    Raises:
        PyquantError: as for :func:`quantize_model`.
    """
    q, rows, pins = _begin(model, data, recipe, bits, exclude)
    # Of budgets, those that no plan keeps are rows of their own.
    open_budget = {name: value for name, value in recipe.budgets.items() if name != cost} | {cost: 1}
    share = None if cost == "weight_bytes" else recipe.budget
    opened = replace(recipe, budget=share, budgets=open_budget, max_degradation=None)
    return allocation.curve(
        examine(q, rows, opened, pins, progress, cache), opened.limits, budgets, cost, measure
    )


def quantize(
    model: nn.Module,
    data: Any,
    recipe: Recipe | None = None,
    *,
    bits: Mapping[str, Bits] | None = None,
    exclude: Collection[str] = (),
    backend: str = "auto",
    threads: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Net:
    """Quantise a trained model and return a network that runs in integers.

    Args:
        model: the trained model; left unchanged.
        data: a few hundred unlabelled inputs, as for :func:`quantize_model`.
        recipe: what to do; ``Recipe.advanced(budget=0.13)`` by default.
        bits, exclude, cache, progress: as for :func:`quantize_model`.
        backend, threads: as for :func:`pyquant.runtime.net.deploy`.

    Returns:
        A network that takes what the model takes, float32 ``[B, ...]`` of any ``B``, and gives what it gives.

    Raises:
        PyquantError: as for :func:`quantize_model`; BackendError as for :func:`pyquant.runtime.net.deploy`.
    """
    recipe = Recipe.advanced() if recipe is None else recipe
    q = quantize_model(model, data, recipe, bits=bits, exclude=exclude, cache=cache, progress=progress)
    return deploy(q, backend=backend, threads=threads)


def examine(
    q: QModel,
    data: Any,
    recipe: Recipe,
    pins: Mapping[str, Bits],
    progress: Progress | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> Study:
    """Calibrate, and measure every choice of every site where there is something to choose."""
    choices = {site: (pins[site],) if site in pins else recipe.choices for site in q.graph.sites}
    widest = (max(w for w, _ in recipe.choices), max(a for _, a in recipe.choices))
    q = replace(q, plan=with_bits(q.plan, {site: pins.get(site, widest) for site in q.graph.sites}))
    # An infeasible budget is known from the shapes alone: say so before the hours, not after.
    allowed(q, recipe.limits, choices)
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
        q,
        rows,
        {site: edges(options) for site, options in choices.items()},
        found,
        method=recipe.method,
        cache=cache,
        progress=_stage(progress, "sensitivity"),
    )
    moved = {site: filled(moved[site], options) for site, options in choices.items()}
    times = None
    if LATENCY in recipe.limits.names():
        table = None if cache is None else Journal(Path(cache) / "latency.jsonl")
        times = latencies(q, choices, found, table=table)
        allowed(q, recipe.limits, choices, times)
    return Study(q, found, moved, load_batches(rows, q.graph), times, recipe.method)


def assemble(
    study: Study, data: Any, recipe: Recipe, pins: Mapping[str, Bits], progress: Progress | None = None
) -> QModel:
    """Choose the bits, take the weights found for them, and tune."""
    q = study.q
    if len(recipe.choices) > 1:
        chosen = allocate(study, recipe)
        bits = plan_of(chosen)
        weights = {site: study.found[site, w] for site, (w, _) in bits.items()}
        q = with_ranges(replace(q, plan=with_bits(q.plan, bits), weights=weights), recipe.method)
        facts = {
            "status": chosen.status,
            "gap": chosen.gap,
            "binding": list(chosen.binding),
            "costs": dict(chosen.costs),
            "additivity": additivity(study, bits),
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
    """Solve for the bits of every site within a recipe's limits."""
    return allocation.allocate(study, recipe.limits)


def _stage(progress: Progress | None, name: str) -> Progress | None:
    return None if progress is None else lambda _, done, total: progress(name, done, total)
