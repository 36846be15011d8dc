"""The paper's experiments on networks that install from the registries (Hubara et al., arXiv 2006.10518).

Figure 1: how accuracy grows with calibration images, from one up, by method and seed. Figure 2: how far learning moves weights, and
what solving bias and scale beside them adds. Figure 3: accuracy against the bytes of the weight codes, by recipe. Everything runs in
integers but figure 2, which is of single sites. A run can be stopped at any moment: the next one goes on where it was.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import accuracy
from bench.accuracy import EFFICIENTNET, FASHION, Case
from bench.record import Row
from pyquant import zoo
from pyquant.data import held_out, load_batches
from pyquant.errors import MissingPackageError
from pyquant.model import QModel, prepare
from pyquant.moments import Moments, parallel_moments
from pyquant.quantizer import weight_qparams
from pyquant.steps.calibrate import calibrate
from pyquant.steps.rounding import adaquant as learned
from pyquant.steps.rounding.objective import Objective, Rounded, nearest

SEEDS = (0, 1, 2)
SIZES = (1, 4, 16, 64, 160)
METHODS = ("nearest", "parallel", "sequential", "blockwise")
BUDGETS = {
    "light": (0.13, 0.16, 0.20, 0.25),
    "advanced": (0.13, 0.16, 0.20, 0.25),
    "relaxed": (0.08, 0.1, 0.13, 0.16, 0.2),
}
BITS = 4


@dataclass(frozen=True)
class Weights:
    """Figure 2 of one network: all its sites, their inputs at 8 bits."""

    network: str

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.network} W{BITS} weights"


def cases(quick: bool) -> Iterator[Case | Weights]:
    """Of all figures, the cheap networks first; quick: two of figure 1 and figure 2 on ResNet-20."""
    if quick:
        for count in (1, 16):
            yield Case("resnet20", "parallel", BITS, BITS, protocol="test", calibration_images=count)
        yield Weights("resnet20")
        return
    for network in (*FASHION, EFFICIENTNET):
        first = Case(
            network, "", BITS, 8 if network == EFFICIENTNET else BITS, protocol=accuracy.protocol_of(network)
        )
        yield Weights(network)
        for seed in SEEDS:
            for count in SIZES:
                for method in METHODS:
                    yield replace(first, method=method, calibration_images=count, seed=seed)
        for recipe, budgets in BUDGETS.items():
            for budget in budgets:
                yield replace(first, method=recipe, weights=None, inputs=8, budget=budget)


def measure(case: Case | Weights, threads: int, quick: bool) -> Iterator[Row]:
    """Rows of one case, with the number of their figure."""
    if isinstance(case, Weights):
        torch.set_num_threads(threads)
        yield from _weights(case)
        return
    for row in accuracy.measure(case, threads, quick):
        yield {"figure": 1 if case.budget is None else 3, **row}


# ------------------------------------------------------------------------------------------------ figure 2
def _weights(case: Weights) -> Iterator[Row]:
    """Shares of weights by how many codes they moved, and errors of what is learned together, medians over the sites."""
    model, data = zoo.load(case.network), zoo.calibration(case.network)[:160]
    q = prepare(model, data[:1])
    plan = {s: replace(grids, weight=grids.weight.with_bits(BITS)) for s, grids in q.plan.items()}
    q = calibrate(replace(q, plan=plan), data)
    fit, held = held_out(load_batches(data, q.graph))
    on_fit, on_held = (parallel_moments(q, part, q.graph.sites) for part in (fit, held))
    moved: list[Tensor] = []
    errors: dict[str, list[float]] = {}
    for site in q.graph.sites:
        start, found = together(q, site, on_fit[site], on_held[site])
        moved.append(start)
        for name, error in found.items():
            errors.setdefault(name, []).append(error)
    codes = torch.cat(moved).abs()
    about = {"backend": "simulated", "figure": 2, "network": case.network, "weights": BITS, "seconds": 0.0}
    for steps in range(4):
        here = codes == steps if steps < 3 else codes >= steps
        label = f"{steps}{' or more' if steps == 3 else ''} codes from nearest"
        yield {
            "case": f"{case.name}: {label}",
            **about,
            "metric": label,
            "value": here.double().mean().item(),
            "n": len(codes),
        }
    plain = errors["nearest"]
    for name, found in errors.items():
        ratio = statistics.median(e / p for e, p in zip(found, plain, strict=True))
        label = f"error over nearest: {name}"
        yield {"case": f"{case.name}: {label}", **about, "metric": label, "value": ratio, "n": len(found)}


def together(q: QModel, site: str, fit: Moments, held: Moments) -> tuple[Tensor, dict[str, float]]:
    """Learn one site's weights alone, with the bias, and with bias and scale.

    Returns:
        By how many codes each weight differs from nearest rounding when all is learned, and the errors on held-out rows.
    """
    grid, weight, bias = q.plan[site].weight, q.state[f"{site}.weight"], q.state[f"{site}.bias"]
    objective = Objective.of(fit, weight)
    shape = objective.weight.shape
    qparams = weight_qparams(weight, grid)
    scale, zero = (p.reshape(*shape[:2], 1) for p in (qparams.scale, qparams.zero_point))
    given = bias.double().reshape(shape[:2])
    plain = nearest(objective.weight, scale, zero, grid)
    # Fixed scales are those of a grid whose elements have one each.
    every = scale.expand(shape), zero.expand(shape)
    alone = learned.learn(_with_bias(objective, fit, given), *every, grid)
    with_bias = learned.learn(objective, *every, grid)
    whole = learned.learn(objective, scale, zero, grid)

    def error(rounded: Rounded, b: Tensor | None = None) -> float:
        return held.error(rounded.real(), fit.best_bias(rounded.real()) if b is None else b).sum().item()

    errors = {
        "nearest": error(plain, given),
        "nearest, bias": error(plain),
        "weights": error(alone, given),
        "weights, bias": error(with_bias),
        "weights, bias, scale": error(whole),
    }
    return (whole.codes - plain.codes).flatten(), errors


def _with_bias(objective: Objective, moments: Moments, bias: Tensor) -> Objective:
    """The objective where the bias stays what it is, with the pull towards the float weight that ``objective`` has."""
    centred, _ = moments.centred()
    pull = torch.diagonal(objective.h - centred, dim1=-2, dim2=-1)
    h = moments.h[..., :-1, :-1] / moments.rows + torch.diag_embed(pull)
    mean = moments.h[..., :-1, -1] / moments.rows
    t = moments.t[..., :-1] / moments.rows - bias[..., None] * mean[..., None, :]
    return Objective(objective.weight, h, t + pull[:, None, :] * objective.weight)


# ------------------------------------------------------------------------------------------------ plots
def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw figures 1 to 3 of the rows of one run, a line for each network, to an SVG file.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingPackageError(
            "matplotlib is not installed, so the rows are kept and nothing is drawn; run: pip install 'pyquant-engine[bench]'"
        ) from None

    networks = list(dict.fromkeys(row["network"] for row in rows))
    figure = Figure(figsize=(15, 4.2 * len(networks)), layout="constrained")
    panels = figure.subplots(len(networks), 3, squeeze=False)
    for line, network in zip(panels, networks, strict=True):
        here = [row for row in rows if row["network"] == network]
        _sizes(line[0], [r for r in here if r["figure"] == 1 and r["metric"] == "agreement"], network)
        _bars(line[1], [r for r in here if r["figure"] == 2], network)
        _budgets(line[2], [r for r in here if r["figure"] == 3 and r["metric"] == "agreement"], network)
    figure.savefig(path, format="svg")


def _sizes(panel: Any, rows: Sequence[Row], network: str) -> None:
    panel.set(
        title=f"{network}: calibration size",
        xlabel="calibration images",
        ylabel="agreement with float",
        xscale="log",
    )
    for method, protocol in dict.fromkeys((row["method"], row["protocol"]) for row in rows):
        mine = [row for row in rows if (row["method"], row["protocol"]) == (method, protocol)]
        sizes = sorted({row["calibration_images"] for row in mine})
        values = [[row["value"] for row in mine if row["calibration_images"] == size] for size in sizes]
        means = [statistics.mean(found) for found in values]
        spread = [
            [m - min(v) for m, v in zip(means, values, strict=True)],
            [max(v) - m for m, v in zip(means, values, strict=True)],
        ]
        panel.errorbar(sizes, means, spread, label=f"{method}, {protocol}", marker="o", capsize=3)
    if rows:
        panel.legend()


def _bars(panel: Any, rows: Sequence[Row], network: str) -> None:
    panel.set(
        title=f"{network}: weights at {BITS} bits",
        xlabel="share of weights, and error over nearest (median of sites)",
    )
    panel.barh(
        [row["metric"].removeprefix("error over nearest: ") for row in rows], [row["value"] for row in rows]
    )
    panel.invert_yaxis()


def _budgets(panel: Any, rows: Sequence[Row], network: str) -> None:
    panel.set(
        title=f"{network}: compression",
        xlabel="weight code bytes over float32",
        ylabel="agreement with float",
    )
    for method, protocol in dict.fromkeys((row["method"], row["protocol"]) for row in rows):
        mine = sorted(
            (row["weight_share"], row["value"])
            for row in rows
            if (row["method"], row["protocol"]) == (method, protocol)
        )
        panel.plot(*zip(*mine, strict=True), label=f"{method}, {protocol}", marker="o")
    if rows:
        panel.legend()
