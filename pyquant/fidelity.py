"""How faithful a quantised network is to the float one: label-free, on outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pyquant.data import Batch
from pyquant.graph import FloatView, View, outputs
from pyquant.model import QModel, QuantView


def divergence(target: Tensor, output: Tensor) -> Tensor:
    """How far ``output`` is from the float network's ``target``, one number a row; differentiable.

    Class scores ``[B, C]`` with ``C > 1``: the Kullback-Leibler divergence of their softmax. Any other shape: the squared error
    over the target's mean square.
    """
    if target.dim() == 2 and target.shape[1] > 1:
        p, q = F.log_softmax(target, 1), F.log_softmax(output, 1)
        return (p.exp() * (p - q)).sum(1)
    a, b = target.reshape(len(target), -1), output.reshape(len(output), -1)
    return (a - b).square().mean(1) / a.square().mean().clamp(min=1e-30)


def total_divergence(targets: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
    """The divergences of all outputs of a network added up, one float64 a row; differentiable."""
    return torch.stack([divergence(t, o).double() for t, o in zip(targets, outputs, strict=True)]).sum(0)


def float_outputs(q: QModel, batches: Sequence[Batch]) -> list[tuple[Tensor, ...]]:
    """What the float network gives on every batch, output by output."""
    return _outputs(q, FloatView(q.state), batches)


def network_loss(q: QModel, batches: Sequence[Batch], targets: Sequence[Sequence[Tensor]]) -> float:
    """Mean divergence a row of the fake-quantised network from the float outputs."""
    found = _outputs(q, QuantView(q), batches)
    return torch.cat([total_divergence(t, o) for t, o in zip(targets, found, strict=True)]).mean().item()


def _outputs(q: QModel, view: View, batches: Sequence[Batch]) -> list[tuple[Tensor, ...]]:
    with torch.no_grad():
        return [outputs(q.graph, view, batch) for batch in batches]
