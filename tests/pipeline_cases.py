"""What tests of the pipeline ask of a quantised model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyquant.model import QModel, SiteWeights


def widths(q: QModel) -> dict[str, tuple[int, int]]:
    """Site -> (weight bits, input bits)."""
    return {site: (grids.weight.bits, grids.input.bits) for site, grids in q.plan.items()}


def packed(q: QModel, bits: Mapping[str, int]) -> int:
    """Bytes of the codes of some sites: rows of 32-bit words, each row starting a word of its own."""
    rows = {site: q.state[f"{site}.weight"].flatten(1).shape for site in bits}
    return sum(n * 4 * ((k * bits[site] + 31) // 32) for site, (n, k) in rows.items())


def tensors(weights: SiteWeights) -> tuple[Tensor, ...]:
    """All tensors of a site's weights."""
    return weights.codes, weights.bias, weights.qparams.scale, weights.qparams.zero_point


def same(a: QModel, b: QModel) -> bool:
    """Are plan and weights of two models the same, byte for byte?"""
    return widths(a) == widths(b) and all(
        torch.equal(x, y)
        for site in a.graph.sites
        for x, y in zip(tensors(a.weights[site]), tensors(b.weights[site]), strict=True)
    )
