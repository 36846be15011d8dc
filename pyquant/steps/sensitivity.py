"""Sensitivity: how far the network's output moves when one site alone is quantised, for every choice of bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from pyquant.data import every_so_many, load_batches
from pyquant.fidelity import total_divergence
from pyquant.graph import FloatView, Graph, run
from pyquant.grid import QParams
from pyquant.model import QModel, QuantView, SiteWeights, nearest_weights, with_bits
from pyquant.quantizer import choose_range
from pyquant.regions import source

Progress = Callable[[str, int, int], None]
Bits = tuple[int, int]
ROWS = 64


def sensitivity(
    q: QModel,
    data: Any,
    choices: Mapping[str, Sequence[Bits]],
    found: Mapping[tuple[str, int], SiteWeights] | None = None,
    *,
    method: str = "mse",
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
        progress: called with (site, done, total), once a site and batch.

    Returns:
        site -> bits -> mean divergence of the output.
    """
    q.check_calibrated("sensitivity")
    graph, total = q.graph, {site: dict.fromkeys(bits, 0.0) for site, bits in choices.items()}
    # A range depends on the input bits alone, and its search takes longer than all the rest of a view.
    ranges = {
        (site, input_bits): _input_range(q, site, input_bits, method)
        for site in choices
        for input_bits in {bits[1] for bits in choices[site]}
    }
    views = {
        (site, bits): _single(q, site, bits, (found or {}).get((site, bits[0])), ranges[site, bits[1]])
        for site in choices
        for bits in choices[site]
    }
    below = {site: _dependents(graph, site) for site in choices}
    rows = 0
    batches = every_so_many(load_batches(data, graph), ROWS)
    with torch.no_grad():
        for index, batch in enumerate(batches):
            values = run(graph, FloatView(q.state), batch, keep=None)
            rows += batch[0].shape[0]
            for done, site in enumerate(choices):
                start = {name: value for name, value in values.items() if name not in below[site]}
                for bits in choices[site]:
                    out = run(graph, views[site, bits], batch, start=start)
                    moved = total_divergence(*([v[name] for name in graph.outputs] for v in (values, out)))
                    total[site][bits] += moved.sum().item()
                if progress is not None:
                    progress(site, index * len(choices) + done + 1, len(batches) * len(choices))
    return {site: {bits: moved / rows for bits, moved in table.items()} for site, table in total.items()}


class _SingleSite(QuantView):
    """One site quantised, weights and input; every other value float."""

    def __init__(self, q: QModel, site: str, qparams: QParams) -> None:
        super().__init__(q, (site,), values=False)
        self.site, self.grid, self.qparams = site, q.plan[site].input, qparams

    def site_input(self, node, value):
        """Fake-quantise the input of the one site."""
        if node.name != self.site:
            return value
        return self.fake_quantize(value, self.qparams, self.grid)


def _input_range(q: QModel, site: str, bits: int, method: str) -> QParams:
    name = source(q.graph, q.graph.by_name[site].inputs[0])
    return choose_range(q.observed[name], q.plan[site].input.with_bits(bits), method)


def _single(q: QModel, site: str, bits: Bits, weights: SiteWeights | None, qparams: QParams) -> _SingleSite:
    one = replace(q, plan=with_bits(q.plan, {site: bits}))
    weights = weights or nearest_weights(one, site, one.plan[site].weight)
    return _SingleSite(replace(one, weights={site: weights}), site, qparams)


def _dependents(graph: Graph, site: str) -> frozenset[str]:
    """The site and every node that needs its value."""
    names = {site}
    for node in graph.nodes:
        if names.intersection(node.inputs):
            names.add(node.name)
    return frozenset(names)
