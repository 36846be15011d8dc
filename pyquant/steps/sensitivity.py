"""Sensitivity: how far the network's output moves when one site alone is quantised, for every choice of bits."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyquant.data import Batch, every_so_many, load_batches
from pyquant.fidelity import total_divergence
from pyquant.graph import FloatView, Graph, run
from pyquant.grid import QParams
from pyquant.journal import Journal
from pyquant.model import QModel, QuantView, SiteWeights, nearest_weights, with_bits
from pyquant.quantizer import choose_range
from pyquant.regions import source

Progress = Callable[[str, int, int], None]
Bits = tuple[int, int]
ROWS = 64
# Part of the name of every file of kept numbers: to be raised when the same call gives other numbers.
MEASURE = 1


def sensitivity(
    q: QModel,
    data: Any,
    choices: Mapping[str, Sequence[Bits]],
    found: Mapping[tuple[str, int], SiteWeights] | None = None,
    *,
    method: str = "mse",
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, dict[Bits, float]]:
    """Measure every (site, weight bits, input bits), one site at a time, the rest float.

    The float prefix of each batch is computed once, and only what depends on the site runs again. At most :data:`ROWS` rows are
    used, at even distance: a mean over more hardly moves, and every row costs a run per site and choice.

    Args:
        q: a calibrated model.
        data: unlabelled inputs.
        choices: site -> (weight bits, input bits) to try.
        found: weights already rounded, such as by ``adaquant.candidates``; nearest rounding for those that are missing.
        method: how the range of the site's input is placed.
        cache: a folder that keeps every number once it is known, under a digest of the model, the rows and the method: a run that
            was killed goes on where it was, and ends with the same bytes.
        progress: called with (site, done, total), once a site and batch.

    Returns:
        site -> bits -> mean divergence of the output.
    """
    q.check_calibrated("sensitivity")
    graph, total = q.graph, {site: dict.fromkeys(bits, 0.0) for site, bits in choices.items()}
    batches = every_so_many(load_batches(data, graph), ROWS)
    rows = sum(batch[0].shape[0] for batch in batches)
    journal = None
    if cache is not None:
        journal = Journal(Path(cache) / f"sensitivity-{_digest(q, batches, method)}.jsonl")
    sites = _Sites(q, method, found or {})
    keys = {
        (site, bits): sites.key(site, bits) if journal is not None else ""
        for site, options in choices.items()
        for bits in options
    }
    below = {site: _dependents(graph, site) for site in choices}
    with torch.no_grad():
        for index, batch in enumerate(batches):
            names = {pair: f"batch {index}, {key}" for pair, key in keys.items()}
            known = {pair: journal[name] for pair, name in names.items() if journal and name in journal}
            values = run(graph, FloatView(q.state), batch, keep=None) if len(known) < len(names) else {}
            for done, site in enumerate(choices):
                start = {name: value for name, value in values.items() if name not in below[site]}
                for bits in choices[site]:
                    if (site, bits) not in known:
                        out = run(graph, sites.view({site: bits}), batch, start=start)
                        moved = total_divergence(*([v[n] for n in graph.outputs] for v in (values, out)))
                        known[site, bits] = moved.sum().item()
                        if journal is not None:
                            journal.put(names[site, bits], known[site, bits])
                    total[site][bits] += known[site, bits]
                if progress is not None:
                    progress(site, index * len(choices) + done + 1, len(batches) * len(choices))
    return {site: {bits: moved / rows for bits, moved in table.items()} for site, table in total.items()}


def edges(choices: Sequence[Bits]) -> Sequence[Bits]:
    """The choices to measure: of all pairs of some weight and some input widths, those with one of them at its widest.

    What the two move apart is added up by :func:`filled`, as it is between sites; any other set of choices is measured whole.
    """
    weights, inputs = ({pair[i] for pair in choices} for i in range(2))
    if min(len(weights), len(inputs)) < 2 or len(set(choices)) < len(weights) * len(inputs):
        return choices
    return [(w, a) for w, a in choices if w == max(weights) or a == max(inputs)]


def filled(moved: Mapping[Bits, float], choices: Sequence[Bits]) -> dict[Bits, float]:
    """Add up, for choices of one site that were not measured, what fewer weight bits and fewer input bits move."""
    most = max(w for w, _ in choices), max(a for _, a in choices)

    def of(w: int, a: int) -> float:
        if (w, a) in moved:
            return moved[w, a]
        return max(0.0, moved[w, most[1]] + moved[most[0], a] - moved[most])

    return {(w, a): of(w, a) for w, a in choices}


@dataclass(frozen=True)
class Moved:
    """How far a plan moves the output: mean divergence, and the share of rows whose best class stays (None without classes)."""

    moved: float
    agreement: float | None


def together(
    q: QModel,
    data: Any,
    plans: Sequence[Mapping[str, Bits]],
    found: Mapping[tuple[str, int], SiteWeights] | None = None,
    *,
    method: str = "mse",
) -> list[Moved]:
    """Measure several sites at once, for every plan: site -> (weight bits, input bits); the sites it leaves out are float.

    Rows, ranges and weights are those of :func:`sensitivity`, so that the two can be compared.
    """
    q.check_calibrated("together")
    graph, sites = q.graph, _Sites(q, method, found or {})
    batches = every_so_many(load_batches(data, graph), ROWS)
    below = [frozenset().union(*(_dependents(graph, site) for site in plan)) for plan in plans]
    moved, same = [0.0] * len(plans), [0] * len(plans)
    with torch.no_grad():
        for batch in batches:
            exact = run(graph, FloatView(q.state), batch, keep=None)
            for i, plan in enumerate(plans):
                start = {name: value for name, value in exact.items() if name not in below[i]}
                out = run(graph, sites.view(plan), batch, start=start)
                parts = [[v[name] for name in graph.outputs] for v in (exact, out)]
                moved[i] += total_divergence(*parts).sum().item()
                if _has_classes(parts[0]):
                    same[i] += int((parts[0][0].argmax(1) == parts[1][0].argmax(1)).sum())
    rows = sum(batch[0].shape[0] for batch in batches)
    classes = _has_classes([exact[name] for name in graph.outputs])
    return [Moved(m / rows, s / rows if classes else None) for m, s in zip(moved, same, strict=True)]


def _has_classes(outputs: Sequence[Tensor]) -> bool:
    return len(outputs) == 1 and outputs[0].dim() == 2 and outputs[0].shape[1] > 1


class _SomeSites(QuantView):
    """Some sites quantised, weights and input; every other value float."""

    def __init__(self, q: QModel, qparams: Mapping[str, QParams]) -> None:
        super().__init__(q, tuple(qparams), values=False)
        self.qparams = qparams

    def site_input(self, node, value):
        """Fake-quantise the inputs of these sites."""
        if node.name not in self.qparams:
            return value
        return self.fake_quantize(value, self.qparams[node.name], self.q.plan[node.name].input)


class _Sites:
    """Weights and ranges of every site and choice, made when first asked for."""

    def __init__(self, q: QModel, method: str, found: Mapping[tuple[str, int], SiteWeights]) -> None:
        self.q, self.method, self.found = q, method, found
        # A range depends on the input bits alone, and its search takes longer than all the rest of a view.
        self.ranges: dict[tuple[str, int], QParams] = {}
        self.weights: dict[tuple[str, int], SiteWeights] = {}
        self.views: dict[tuple[tuple[str, Bits], ...], _SomeSites] = {}

    def view(self, plan: Mapping[str, Bits]) -> _SomeSites:
        """The network with these sites quantised; the view of a single site is kept."""
        key = tuple(plan.items())
        if key in self.views:
            return self.views[key]
        weights = {site: self._weights(site, w) for site, (w, _) in plan.items()}
        ranges = {site: self._range(site, a) for site, (_, a) in plan.items()}
        q = replace(self.q, plan=with_bits(self.q.plan, plan), weights=weights)
        view = _SomeSites(q, ranges)
        if len(plan) == 1:
            self.views[key] = view
        return view

    def key(self, site: str, bits: Bits) -> str:
        """What a number of one choice depends on beside the model, the rows and the method."""
        known = self.found.get((site, bits[0]))
        tensors = (
            () if known is None else (known.codes, known.bias, known.qparams.scale, known.qparams.zero_point)
        )
        of_weights = "nearest" if known is None else _sha(_bytes_of(tensors))
        return (
            f"{site} at {bits[0]}, {bits[1]} with {self.q.plan[site].weight.with_bits(bits[0])} {of_weights}"
        )

    def _weights(self, site: str, bits: int) -> SiteWeights:
        key = (site, bits)
        if key not in self.weights:
            known = self.found.get(key)
            grid = self.q.plan[site].weight.with_bits(bits)
            self.weights[key] = nearest_weights(self.q, site, grid) if known is None else known
        return self.weights[key]

    def _range(self, site: str, bits: int) -> QParams:
        key = (site, bits)
        if key not in self.ranges:
            name = source(self.q.graph, self.q.graph.by_name[site].inputs[0])
            grid = self.q.plan[site].input.with_bits(bits)
            self.ranges[key] = choose_range(self.q.observed[name], grid, self.method)
        return self.ranges[key]


def _digest(q: QModel, batches: Sequence[Batch], method: str) -> str:
    """All that every number depends on: the float network, what calibration saw, the rows, the method, and torch."""

    def parts() -> Iterator[bytes]:
        yield repr((MEASURE, method, torch.__version__, torch.backends.cpu.get_cpu_capability())).encode()
        for node in q.graph.nodes:
            yield repr((node.name, node.op, node.inputs, node.attrs, node.params, node.shape)).encode()
        yield repr((q.graph.inputs, q.graph.outputs)).encode()
        for name, tensor in sorted(q.state.items()):
            yield name.encode()
            yield from _bytes_of((tensor,))
        for name, seen in sorted(q.observed.items()):
            yield repr((name, seen.low, seen.high, seen.mean_low, seen.mean_high, seen.images)).encode()
            yield from _bytes_of((seen.sample,))
        for site, grids in sorted(q.plan.items()):
            yield repr((site, grids.input.with_bits(8))).encode()
        for batch in batches:
            yield from _bytes_of(batch)

    return _sha(parts())


def _bytes_of(tensors: Sequence[Tensor]) -> Iterator[bytes]:
    for tensor in tensors:
        yield repr((tensor.dtype, tuple(tensor.shape))).encode()
        yield tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _sha(parts: Iterator[bytes]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.hexdigest()[:32]


def _dependents(graph: Graph, site: str) -> frozenset[str]:
    """The site and every node that needs its value."""
    names = {site}
    for node in graph.nodes:
        if names.intersection(node.inputs):
            names.add(node.name)
    return frozenset(names)
