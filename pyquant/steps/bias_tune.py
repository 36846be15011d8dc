"""Bias tuning: train the biases alone so that the quantised network's output follows the float network's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyquant.data import held_out, load_batches
from pyquant.fidelity import float_outputs, network_loss, total_divergence
from pyquant.graph import outputs
from pyquant.model import QModel, QuantView, SiteWeights
from pyquant.regions import source

# Step of a bias, as a share of its site's output step or spread; see bias_tune.
RATE = 2e-3
PATIENCE = 3  # epochs without a better state, after which few ever bring one


def bias_tune(
    q: QModel,
    data: Any,
    *,
    epochs: int = 8,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> QModel:
    """Minimise the divergence of the quantised output from the float one over all biases, straight through the rounding.

    Args:
        q: a calibrated model.
        data: unlabelled inputs; an eighth of the rows is held out, and the best state on them is returned, which may be the
            one given.
        epochs: passes over the fit rows, at most, with a cosine schedule of Adam.
        seed: orders the batches.

    Returns:
        The model with new biases; weights and scales are untouched.
    """
    q.check_calibrated("bias_tune")
    fit, held = held_out(load_batches(data, q.graph))
    fit_targets, held_targets = float_outputs(q, fit), float_outputs(q, held)
    # Output channels differ in size: rates are relative to the spread of what the site gives.
    biases = {site: q.weights[site].bias.clone().requires_grad_() for site in q.graph.sites}
    unit = {site: _spread(q, site) for site in q.graph.sites}
    first = {site: torch.zeros_like(b) for site, b in biases.items()}
    second = {site: torch.zeros_like(b) for site, b in biases.items()}
    best, best_value, best_epoch = q, network_loss(q, held, held_targets), -1
    start_value, step, steps = best_value, 0, epochs * len(fit)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        for i in torch.randperm(len(fit), generator=generator).tolist():
            with torch.enable_grad():
                now = outputs(q.graph, QuantView(_with(q, biases)), fit[i])
                loss = total_divergence(fit_targets[i], now).mean()
                gradients = torch.autograd.grad(loss, list(biases.values()), allow_unused=True)
            step += 1
            rate = RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
            for site, gradient in zip(biases, gradients, strict=True):
                if gradient is None:  # such as a site behind a comparison
                    continue
                scaled = gradient * unit[site]
                first[site].lerp_(scaled, 0.1)
                second[site].lerp_(scaled.square(), 0.01)
                move = (first[site] / (1 - 0.9**step)) / ((second[site] / (1 - 0.99**step)).sqrt() + 1e-12)
                biases[site] = (biases[site].detach() - rate * unit[site] * move).requires_grad_()
        state = _with(q, {site: b.detach() for site, b in biases.items()})
        value = network_loss(state, held, held_targets)
        if value < best_value:
            best, best_value, best_epoch = state, value, epoch
        over = epoch - best_epoch >= PATIENCE
        if progress is not None:
            progress("bias_tune", epochs if over else epoch + 1, epochs)
        if over:
            break
    return best.logged("bias_tune", before=start_value, after=best_value, epochs=epochs)


def _with(q: QModel, biases: dict[str, Tensor]) -> QModel:
    weights = {site: SiteWeights(w.codes, w.qparams, biases[site]) for site, w in q.weights.items()}
    return replace(q, weights=weights)


def _spread(q: QModel, site: str) -> Tensor:
    """A step for each bias: the norm of the channel's float weight, times the typical size of the input; ``[N]``."""
    value = q.graph.by_name[site].inputs[0]
    seen = q.observed[source(q.graph, value)].sample
    return (q.state[f"{site}.weight"].flatten(1).norm(dim=1) * seen.std().clamp(min=1e-6)).clamp(min=1e-8)
