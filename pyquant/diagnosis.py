"""Diagnosis of a quantised model: what each site loses, where, how much it matters, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyquant.data import Batch, every_so_many, load_batches
from pyquant.graph import FloatView, Node, compute, run
from pyquant.grid import MAX_BITS
from pyquant.model import QModel, QuantView, input_key, value_grids
from pyquant.regions import source
from pyquant.steps.sensitivity import Moved, together

ROWS = 32
# A site that gives a tenth of what all sites move gets advice; so does the worst one.
MATTERS = 0.1
# Inputs beyond the range of their grid: more than this share means that calibration has not seen them.
BEYOND = 0.01
# Sums of single sites that are further off than this say little about the whole.
FAR = 2.0


@dataclass(frozen=True)
class SiteReport:
    """What one site loses, on the rows it was looked at with.

    Args:
        site: its name.
        weight_bits, input_bits: its widths.
        weight_snr, input_snr: power of the float tensor over power of its error, in decibels; infinite without error.
        output_snr: of the site's output, weights and inputs quantised, given the float network's input.
        network_snr: of the same output in the quantised network, where errors of the sites before it come in.
        of_weights, of_inputs: shares of the output's error power from each of the two alone.
        low, high: the range that calibration saw of its input.
        beyond: share of its inputs that lie beyond the range of their grid.
        moves: mean divergence of the network's output with this site alone quantised.
        engine: rounding engine that won, None where nothing was learnt.
        gain: held-out error of nearest rounding over that of the engine that won, None likewise.
        advice: what to do, one sentence; empty where the site hardly matters.
    """

    site: str
    weight_bits: int
    input_bits: int
    weight_snr: float
    input_snr: float
    output_snr: float
    network_snr: float
    of_weights: float
    of_inputs: float
    low: float
    high: float
    beyond: float
    moves: float
    engine: str | None
    gain: float | None
    advice: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """What a network loses: its sites, in order, and the whole beside the sum of them.

    Args:
        sites: a report each.
        predicted: sum of what single sites move.
        measured: what all of them together move.
        agreement: share of rows whose best class stays; None without classes.
        rows: how many rows were looked at.
        summary: one or two sentences: the worst site, and whether the sum is to be trusted.
    """

    sites: tuple[SiteReport, ...]
    predicted: float
    measured: float
    agreement: float | None
    rows: int
    summary: str

    def as_json(self) -> dict[str, Any]:
        """Plain numbers, strings and lists; infinite decibels become None."""
        return _finite(asdict(self))


def diagnose(q: QModel, data: Any, *, method: str = "mse", rows: int = ROWS) -> Diagnosis:
    """Look at every site of a quantised model.

    Args:
        q: a calibrated model, as ``quantize_model`` gives it.
        data: unlabelled inputs, best some that did not calibrate it.
        method: how activation ranges were placed.
        rows: the most rows to look at, taken at even distance.

    Returns:
        The diagnosis; ``pyquant.cli`` prints it as a table.
    """
    q.check_calibrated("diagnose")
    batches = every_so_many(load_batches(data, q.graph), rows)
    bits = {site: (q.plan[site].weight.bits, q.plan[site].input.bits) for site in q.graph.sites}
    found = {(site, w): q.weights[site] for site, (w, _) in bits.items()}
    whole, *alone = together(q, batches, [bits, *({s: b} for s, b in bits.items())], found, method=method)
    powers = _powers(q, batches)
    learnt: Mapping[str, Any] = next((e for e in reversed(q.log) if e["step"] == "adaquant"), {})
    total = math.fsum(single.moved for single in alone)
    sites = [
        _site(q, site, powers[site], single, learnt)
        for site, single in zip(q.graph.sites, alone, strict=True)
    ]
    worst = max(sites, key=lambda report: report.moves)
    sites = [
        replace(report, advice=_advice(q, report))
        if report is worst or report.moves >= MATTERS * total
        else report
        for report in sites
    ]
    worst = next(report for report in sites if report.site == worst.site)
    count = sum(batch[0].shape[0] for batch in batches)
    return Diagnosis(tuple(sites), total, whole.moved, whole.agreement, count, _summary(worst, total, whole))


def _powers(q: QModel, batches: Sequence[Batch]) -> dict[str, dict[str, float]]:
    """Sums over all rows: of squares of inputs and outputs, of squared errors, and of inputs beyond their grid."""
    graph, exact, quant = q.graph, FloatView(q.state), QuantView(q)
    weights_only, grids = QuantView(q, values=False), value_grids(q)
    sums = {
        site: dict.fromkeys(("x", "dx", "y", "both", "w", "a", "net", "beyond", "n"), 0.0)
        for site in graph.sites
    }

    def add(site: str, name: str, value: Tensor) -> None:
        sums[site][name] += value.double().square().sum().item()

    with torch.no_grad():
        for batch in batches:
            size = batch[0].shape[0]
            inputs = {graph.by_name[site].inputs[0] for site in graph.sites}
            values = run(graph, exact, batch, keep={*inputs, *graph.sites})
            # Of a site the quantised network shows the raw output, before a residual or an activation joins it.
            made: dict[str, Tensor] = {}

            def keep(node: Node, value: Any, made: dict[str, Tensor] = made) -> None:
                if node.name in sums:
                    made[node.name] = value

            run(graph, quant, batch, on_value=keep)
            for site in graph.sites:
                node = graph.by_name[site]
                x, y = values[node.inputs[0]], values[site]
                key = input_key(q, site)
                xq = quant.quantized_input(site, x)
                add(site, "x", x)
                add(site, "dx", xq - x)
                add(site, "y", y)
                for name, view, given in (
                    ("both", weights_only, xq),
                    ("w", weights_only, x),
                    ("a", exact, xq),
                ):
                    add(site, name, compute(view, node, {node.inputs[0]: given}, size) - y)
                add(site, "net", made[site] - y)
                scale, zero = q.ranges[key].scale, q.ranges[key].zero_point
                low, high = (
                    (bound - zero) * scale for bound in (grids[key].qmin - 0.5, grids[key].qmax + 0.5)
                )
                sums[site]["beyond"] += int(((x < low) | (x > high)).sum())
                sums[site]["n"] += x.numel()
    return sums


def _site(
    q: QModel, site: str, p: Mapping[str, float], alone: Moved, learnt: Mapping[str, Any]
) -> SiteReport:
    weight = q.state[f"{site}.weight"].double()
    error = q.weights[site].dequantized(q.plan[site].weight).double() - weight
    seen = q.observed[source(q.graph, q.graph.by_name[site].inputs[0])]
    parts = max(p["w"] + p["a"], 1e-300)
    errors = learnt.get("errors", {}).get(site)
    return SiteReport(
        site,
        q.plan[site].weight.bits,
        q.plan[site].input.bits,
        _decibels(weight.square().sum().item(), error.square().sum().item()),
        _decibels(p["x"], p["dx"]),
        _decibels(p["y"], p["both"]),
        _decibels(p["y"], p["net"]),
        p["w"] / parts,
        p["a"] / parts,
        seen.low,
        seen.high,
        p["beyond"] / p["n"],
        alone.moved,
        learnt.get("won", {}).get(site),
        None if errors is None else errors[1] / max(errors[0], 1e-300),
    )


def _advice(q: QModel, report: SiteReport) -> str:
    """What helps most, by where the error comes from."""
    name, grid = report.site, q.plan[report.site].weight
    if report.beyond > BEYOND:
        return (
            f"{report.beyond:.1%} of what site {name!r} reads lies beyond the range that calibration saw; calibrate on more data, "
            "or on data like this."
        )
    if report.of_weights >= report.of_inputs:
        if grid.bits == MAX_BITS:
            return f"Site {name!r} loses most by its weights, and has 8 bits already; leave it float with exclude=[{name!r}]."
        if grid.axis is None:
            return f"Site {name!r} loses most by its weights, which share one scale; give Grid({grid.bits}, axis=0)."
        if grid.symmetric and _one_sided(q.state[f"{name}.weight"]):
            return (
                f"Site {name!r} loses most by its weights, which lie on one side of 0; give them a zero point with "
                f"Grid({grid.bits}, axis=0, symmetric=False)."
            )
        return f"Site {name!r} loses most by its weights; keep them at 8 bits with bits={{{name!r}: (8, {report.input_bits})}}."
    if report.input_bits < MAX_BITS:
        return f"Site {name!r} loses most by its inputs; keep them at 8 bits with bits={{{name!r}: ({report.weight_bits}, 8)}}."
    return (
        f"Site {name!r} loses most by its inputs, from {report.low:.3g} to {report.high:.3g}, and has 8 bits already; calibrate on "
        f"data without outliers, or leave it float with exclude=[{name!r}]."
    )


def _one_sided(weight: Tensor) -> bool:
    """Whether a zero point would save a bit or more for most channels: their mean is beyond half of their reach."""
    rows = weight.flatten(1)
    reach = rows.abs().amax(1).clamp(min=1e-30)
    return ((rows.amax(1) + rows.amin(1)).abs() > reach).double().mean().item() > 0.5


def _summary(worst: SiteReport, total: float, whole: Moved) -> str:
    if not total:
        return "No site moves the output."
    first = f"The worst site is {worst.site!r}: alone it moves the output by {worst.moves:.3g}, {worst.moves / total:.0%} of the sum."
    ratio = whole.moved / total
    if 1 / FAR <= ratio <= FAR:
        return f"{first} All sites together move it {ratio:.2f} times as far as the sum says."
    side = "further" if ratio > 1 else "less"
    return (
        f"{first} All sites together move it {ratio:.2f} times as far as the sum says, much {side}: choose bits by what is measured, "
        "not by the prediction."
    )


def _decibels(signal: float, noise: float) -> float:
    if noise == 0.0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
