"""BN tuning (para-normalisation): give every site's output the mean and spread it had in the float network.

The batch normalisation is long folded; putting one back, estimating its statistics through the quantised network site after
site, and folding it again comes down to one affine correction a channel, which goes into the weight SCALES and the bias. The
codes do not change, so it is free at inference. The target is what the float network itself shows on the same images: with
the folded gamma and beta as target, tuning hurts when the images are not drawn like the training set.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyquant.data import held_out, load_batches
from pyquant.fidelity import float_outputs, network_loss
from pyquant.grid import QParams
from pyquant.model import QModel, SiteWeights
from pyquant.moments import Moments, walk
from pyquant.quantizer import usable_scale

# A correction beyond this is a site that is broken otherwise; mean corrections alone can destroy a network far off.
MAX_RATIO = 1.5


def bn_tune(q: QModel, data: Any, *, cache_bytes: int = 2 << 30) -> QModel:
    """Re-estimate output statistics in order, through the quantised prefix, and fold the correction into scales and biases.

    Args:
        q: a calibrated model.
        data: unlabelled inputs; an eighth of the rows is held out. A site whose squared error on them would rise keeps what
            it had, and so does the whole network if its output would move further from the float one.
        cache_bytes: bound of the live values that are kept.

    Returns:
        The model with corrected scales and biases; ``log`` says how many sites changed.
    """
    q.check_calibrated("bn_tune")
    fit, held = held_out(load_batches(data, q.graph))
    tuned: list[str] = []

    def correct(q: QModel, site: str, moments: list[Moments]) -> QModel:
        new = _corrected(q, site, moments[0])
        old = q.weights[site]
        if new is None or _error(q, site, new, moments[-1]) >= _error(q, site, old, moments[-1]):
            return q
        tuned.append(site)
        return replace(q, weights={**q.weights, site: new})

    new = walk(q, (fit, held), correct, cache_bytes)
    targets = float_outputs(q, held)
    before, after = network_loss(q, held, targets), network_loss(new, held, targets)
    kept = after < before
    return (new if kept else q).logged("bn_tune", sites=len(tuned) if kept else 0, before=before, after=after)


def _real(q: QModel, site: str, weights: SiteWeights, moments: Moments) -> Tensor:
    """Dequantised weights as ``[G, n, K]`` float64."""
    return (
        weights.dequantized(q.plan[site].weight)
        .double()
        .reshape(moments.h.shape[0], -1, moments.h.shape[-1] - 1)
    )


def _error(q: QModel, site: str, weights: SiteWeights, moments: Moments) -> float:
    real = _real(q, site, weights, moments)
    return moments.error(real, weights.bias.reshape(real.shape[:2])).sum().item()


def _corrected(q: QModel, site: str, moments: Moments) -> SiteWeights | None:
    """Scale and bias that match mean and standard deviation of every output channel; None where a scale serves many channels."""
    grid, old = q.plan[site].weight, q.weights[site]
    if grid.axis is None:
        return None
    w = _real(q, site, old, moments)
    bias = old.bias.double().reshape(w.shape[:2])
    full = torch.cat([w, bias[..., None]], -1)
    quant_mean = (full * moments.h[..., -1][:, None, :]).sum(-1) / moments.rows
    quant_var = ((full @ moments.h) * full).sum(-1) / moments.rows - quant_mean.square()
    float_mean = moments.t[..., -1] / moments.rows
    float_var = moments.yy / moments.rows - float_mean.square()
    alive = (quant_var > 1e-12 * quant_var.max()) & (float_var > 0)
    ratio = torch.where(
        alive, (float_var.clamp(min=0) / quant_var.clamp(min=1e-300)).sqrt(), torch.ones(()).double()
    )
    ratio = ratio.clamp(1 / MAX_RATIO, MAX_RATIO).reshape(-1)
    new_bias = (bias.reshape(-1) - quant_mean.reshape(-1)) * ratio + float_mean.reshape(-1)
    scale = old.qparams.scale.double() * ratio.reshape(-1, *(1,) * (old.qparams.scale.dim() - 1))
    return SiteWeights(old.codes, QParams(usable_scale(scale), old.qparams.zero_point), new_bias.float())
