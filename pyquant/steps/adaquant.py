"""AdaQuant, layer by layer: find the codes, scales and bias that keep each site's output, on a small calibration set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from pyquant.data import Batch, held_out, load_batches
from pyquant.errors import DataError
from pyquant.grid import Grid, QParams
from pyquant.model import QModel, SiteWeights
from pyquant.moments import Moments, parallel_moments, site_groups, walk
from pyquant.quantizer import weight_qparams
from pyquant.reference import spread
from pyquant.steps.rounding import adaquant as learned
from pyquant.steps.rounding.coordinate import descend
from pyquant.steps.rounding.gptq import feed_back
from pyquant.steps.rounding.objective import DAMPING, DAMPINGS, Objective, Rounded, nearest

Progress = Callable[[str, int, int], None]
FLOWS = ("parallel", "sequential")
Engine = Callable[[Objective, torch.Tensor, torch.Tensor, Grid], Rounded]


@dataclass(frozen=True)
class SiteResult:
    """What AdaQuant found for one site at one width.

    Args:
        weights: codes, scales and bias, ready for ``QModel.weights``.
        engine: which rounding won on the held-out rows: ``"nearest"``, ``"adaquant"`` or ``"gptq"``.
        damping: the pull towards the float weight that suited it.
        error, nearest_error: mean squared error on held-out rows over the output's variance, of the winner and of nearest.
    """

    weights: SiteWeights
    engine: str
    damping: float
    error: float
    nearest_error: float


def adaquant(
    q: QModel,
    data: Any,
    *,
    flow: str = "parallel",
    cache_bytes: int = 2 << 30,
    progress: Progress | None = None,
) -> QModel:
    """Calibrate every site's weights layer by layer; no site ends worse than nearest rounding on held-out rows.

    Args:
        q: a calibrated model.
        data: unlabelled inputs; an eighth of the rows is held out.
        flow: ``"parallel"`` gives each site the float network's inputs, so that sites are independent; ``"sequential"`` gives it
            those of the quantised network before it. Targets are always the float outputs of float inputs.
        cache_bytes: bound of the cache of moments (parallel) or of live values (sequential).
        progress: called with (site, done, total).

    Returns:
        The model with new weights, scales and biases.
    """
    q.check_calibrated("adaquant")
    if flow not in FLOWS:
        raise DataError(f"flow={flow!r} is unknown; use {' or '.join(FLOWS)}.")
    fit, held = held_out(load_batches(data, q.graph))
    results: dict[str, SiteResult] = {}

    def decide(q: QModel, site: str, moments: list[Moments]) -> QModel:
        results[site] = solve_site(q, site, q.plan[site].weight, moments[0], moments[-1])
        if progress is not None:
            progress(site, len(results), len(q.graph.sites))
        return replace(q, weights={**q.weights, site: results[site].weights})

    with torch.no_grad():
        if flow == "sequential":
            q = walk(q, (fit, held), decide, cache_bytes)
        else:
            for group in site_groups(q, cache_bytes):
                on_fit, on_held = parallel_moments(q, fit, group), parallel_moments(q, held, group)
                for site in group:
                    q = decide(q, site, [on_fit[site], on_held[site]])
    engines = {
        name: sum(r.engine == name for r in results.values()) for name in ("nearest", "gptq", "adaquant")
    }
    return q.logged(
        "adaquant",
        flow=flow,
        engines=engines,
        errors={s: (r.error, r.nearest_error) for s, r in results.items()},
        won={s: r.engine for s, r in results.items()},
    )


def candidates(
    q: QModel,
    data: Any,
    widths: Mapping[str, tuple[int, ...]],
    *,
    cache_bytes: int = 2 << 30,
    progress: Progress | None = None,
) -> tuple[dict[tuple[str, int], SiteWeights], list[Batch]]:
    """Round every site at several widths, in parallel and in closed form, for the bit allocation to choose from.

    Only half of the rows are used. Where rows are few and weights are many, a site fits its rows whatever the width, and its
    sensitivity shows on the other half alone.

    Args:
        q: a calibrated model.
        data: unlabelled inputs.
        widths: site -> weight bits to try.

    Returns:
        (site, weight bits) -> weights, and the rows that were not used.
    """
    q.check_calibrated("candidates")
    used, unseen = held_out(load_batches(data, q.graph), 0.5)
    found: dict[tuple[str, int], SiteWeights] = {}
    with torch.no_grad():
        for group in site_groups(q, cache_bytes):
            moments = parallel_moments(q, used, group)
            for site in group:
                _check_finite(site, moments[site])
                for bits in widths[site]:
                    grid = q.plan[site].weight.with_bits(bits)
                    rounded, bias = _solve(
                        feed_back,
                        Objective.of(moments[site], q.state[f"{site}.weight"]),
                        moments[site],
                        q.state[f"{site}.weight"],
                        grid,
                    )
                    found[site, bits] = _site_weights(q, site, grid, rounded, bias)
                if progress is not None:
                    progress(site, len({s for s, _ in found}), len(q.graph.sites))
    return found, unseen


def solve_site(q: QModel, site: str, grid: Grid, fit: Moments, held: Moments) -> SiteResult:
    """Round by each engine on the fit rows and keep what is best on the held-out rows, which nothing else is fitted to.

    The closed form is tried at every damping, gradient descent at the one that suited it. Nearest is among them, and stays if
    nothing beats it.
    """
    _check_finite(site, fit, held)
    weight = q.state[f"{site}.weight"]
    objectives = {damping: Objective.of(fit, weight, damping) for damping in DAMPINGS}
    shape = objectives[DAMPING].weight.shape
    plain = _elementwise(weight_qparams(weight, grid), grid, weight.shape, shape)
    power = (held.yy - held.t[..., -1].square() / held.rows).sum().clamp(min=1e-30) / held.rows

    def scored(rounded: Rounded, bias: torch.Tensor) -> _Tried:
        error = held.error(rounded.real(), bias.reshape(shape[:2])).sum() / power
        return _Tried(rounded, bias, error.item())

    def solved(engine: Engine, damping: float) -> _Tried:
        return scored(*_solve(engine, objectives[damping], fit, weight, grid))

    closed = {damping: solved(feed_back, damping) for damping in DAMPINGS}
    damping = min(closed, key=lambda d: closed[d].error)
    tried = {
        "nearest": scored(nearest(objectives[DAMPING].weight, *plain, grid), q.state[f"{site}.bias"]),
        "gptq": closed[damping],
        "adaquant": solved(learned.learn, damping),
    }
    best = min(tried, key=lambda name: tried[name].error)
    weights = _site_weights(q, site, grid, tried[best].rounded, tried[best].bias)
    return SiteResult(weights, best, damping, tried[best].error, tried["nearest"].error)


def _check_finite(site: str, *parts: Moments) -> None:
    if not all(bool(torch.isfinite(m.h).all() and torch.isfinite(m.t).all()) for m in parts):
        raise DataError(
            f"what site {site!r} reads or gives is too large to square in float32; scale the inputs as the model was trained on."
        )


class _Tried(NamedTuple):
    """One rounding, its bias ``[N]`` and its error on held-out rows."""

    rounded: Rounded
    bias: torch.Tensor
    error: float


def _solve(
    engine: Engine, objective: Objective, moments: Moments, weight: torch.Tensor, grid: Grid
) -> tuple[Rounded, torch.Tensor]:
    """Run one engine, polish its codes by coordinate descent, and solve for the bias ``[N]``."""
    shape = objective.weight.shape
    importance = (
        torch.diagonal(objective.h, dim1=-2, dim2=-1)[:, None, :].expand(shape).reshape(weight.shape).float()
    )
    scale, zero = _elementwise(weight_qparams(weight, grid, importance), grid, weight.shape, shape)
    rounded = descend(objective, engine(objective, scale, zero, grid), grid)
    return rounded, moments.best_bias(rounded.real()).reshape(-1).float()


def _site_weights(q: QModel, site: str, grid: Grid, rounded: Rounded, bias: torch.Tensor) -> SiteWeights:
    """What was rounded, in the shape of the site's weight."""
    shape = q.state[f"{site}.weight"].shape
    return SiteWeights(rounded.codes.to(grid.code_dtype).reshape(shape), _shared(rounded, grid, shape), bias)


def _elementwise(
    qparams: QParams, grid: Grid, weight: torch.Size, shape: torch.Size
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point as ``[G, n, 1]`` where each row has its own, else ``[G, n, K]``."""
    params = (qparams.scale, qparams.zero_point)
    if grid.axis == 0 and grid.group_size is None:
        scale, zero = (p.reshape(*shape[:2], 1) for p in params)
    else:
        scale, zero = (
            spread(p, weight, grid.axis, grid.group_size).expand(weight).reshape(shape) for p in params
        )
    return scale, zero


def _shared(rounded: Rounded, grid: Grid, weight: torch.Size) -> QParams:
    """Back to one scale for all that share it."""
    shape = grid.scale_shape(tuple(weight))
    step = 1 if grid.group_size is None else grid.group_size
    if grid.axis is None:
        return QParams(rounded.scale.float().flatten()[0], rounded.zero.float().flatten()[0])
    return QParams(
        *(
            p.float().reshape(weight[0], -1)[:, ::step].reshape(shape).contiguous()
            for p in (rounded.scale, rounded.zero)
        )
    )
