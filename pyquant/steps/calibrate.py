"""Calibrate: observe every value that gets a grid, place the grids, round the weights to nearest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from pyquant.data import load_batches
from pyquant.errors import DataError
from pyquant.graph import FloatView, run
from pyquant.model import QModel, nearest_weights, value_grids, with_ranges
from pyquant.quantizer import Observation, merge, observe
from pyquant.regions import regions


def calibrate(q: QModel, data: Any, *, method: str = "mse") -> QModel:
    """Find the range of every activation on the data, in one pass, and round every weight to nearest.

    Args:
        q: a prepared model.
        data: unlabelled inputs ``[B, ...]`` float32, as the model takes them, in any form that
            :func:`pyquant.data.load_batches` takes.
        method: ``"minmax"``, ``"mean_minmax"`` (the paper's) or ``"mse"`` (least squared error).

    Returns:
        A model with ranges and weights: round-to-nearest quantization, ready to run or to improve.

    Raises:
        DataError: no prepared model, an unknown method, data that is empty, or values that are not finite.
        ShapeError, DTypeError: data that the model does not take.
    """
    if not isinstance(q, QModel):
        raise DataError(
            f"calibrate takes what prepare returns, and a {type(q).__name__} was given; call prepare(model, example) first."
        )
    batches = load_batches(data, q.graph)
    wanted = frozenset(regions(q.graph).quantized)
    seen: dict[str, Observation] = {}

    def look(node, value):
        if node.name in wanted:
            new = observe(value, node.name)
            seen[node.name] = merge(seen[node.name], new) if node.name in seen else new

    view = FloatView(q.state)
    with torch.no_grad():
        for batch in batches:
            run(q.graph, view, batch, on_value=look)
    q = with_ranges(replace(q, observed=seen), method)
    weights = {site: nearest_weights(q, site, q.plan[site].weight) for site in q.graph.sites}
    images = sum(batch[0].shape[0] for batch in batches)
    return replace(q, weights=weights).logged(
        "calibrate", method=method, images=images, values=len(value_grids(q))
    )
