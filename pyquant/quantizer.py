"""From tensors to quantization parameters: what was observed, and which scale and zero point suit a grid."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyquant.errors import DataError
from pyquant.grid import MAX_BITS, Grid, QParams
from pyquant.reference import fake_quantize, spread

RANGE_METHODS = ("minmax", "mean_minmax", "mse")
# How far a range may shrink in the squared-error search, and in how many steps.
_SHRINK = torch.linspace(1.0, 0.3, 71)
_SAMPLE = 1 << 12


@dataclass(frozen=True)
class Observation:
    """What calibration saw of one value.

    Args:
        low, high: smallest and largest element.
        mean_low, mean_high: per-image extremes averaged over images.
        images: how many images were seen.
        sample: float32, at most 4096 elements of every batch, taken at even distance.
    """

    low: float
    high: float
    mean_low: float
    mean_high: float
    images: int
    sample: Tensor


def observe(batch: Tensor, name: str) -> Observation:
    """Summarise one batch ``[B, ...]`` of a value.

    Raises:
        DataError: an element is NaN or infinite; the message names the value.
    """
    lows, highs = batch.flatten(1).amin(1), batch.flatten(1).amax(1)
    if not bool(torch.isfinite(lows).all() and torch.isfinite(highs).all()):
        raise DataError(
            f"the value {name!r} has NaN or infinite elements on the calibration data; check the data and the model's weights."
        )
    # An odd stride walks through all channels and positions.
    sample = batch.flatten()[:: max(1, -(-batch.numel() // _SAMPLE)) | 1].float().clone()
    return Observation(
        lows.min().item(), highs.max().item(), lows.mean().item(), highs.mean().item(), len(lows), sample
    )


def merge(a: Observation, b: Observation) -> Observation:
    """Combine what was seen in two streams of images."""
    n = a.images + b.images
    return Observation(
        min(a.low, b.low),
        max(a.high, b.high),
        (a.mean_low * a.images + b.mean_low * b.images) / n,
        (a.mean_high * a.images + b.mean_high * b.images) / n,
        n,
        torch.cat([a.sample, b.sample]),
    )


def choose_range(seen: Observation, grid: Grid, method: str) -> QParams:
    """Place a per-tensor grid on an observed value.

    Args:
        seen: the observation.
        grid: per-tensor grid.
        method: ``"minmax"``, ``"mean_minmax"`` (per-image extremes averaged, the paper's), or ``"mse"`` (the range of least
            squared error on the sample, searched from the observed range inwards).

    Returns:
        Scale and zero point, 0-dimensional; real 0 always has a code, and the scale is a positive normal number even for a
        constant.
    """
    if method not in RANGE_METHODS:
        raise DataError(f"range method {method!r} is unknown; use {', '.join(RANGE_METHODS)}.")
    low, high = (seen.mean_low, seen.mean_high) if method == "mean_minmax" else (seen.low, seen.high)
    if method != "mse":
        return affine_qparams(torch.tensor(low), torch.tensor(high), grid)
    best, best_error = affine_qparams(torch.tensor(low), torch.tensor(high), grid), float("inf")
    x = seen.sample
    for shrink in _SHRINK:
        candidate = affine_qparams(low * shrink, high * shrink, grid)
        error = (
            (fake_quantize(x, candidate.scale, candidate.zero_point, grid.qmin, grid.qmax) - x)
            .double()
            .square()
            .sum()
            .item()
        )
        if error < best_error:
            best, best_error = candidate, error
    return best


def affine_qparams(low: Tensor, high: Tensor, grid: Grid) -> QParams:
    """Scale and zero point that cover ``[low, high]``, widened to hold 0; elementwise over tensors of one shape."""
    low, high = low.double().clamp(max=0.0), high.double().clamp(min=0.0)
    if grid.symmetric:
        middle = 0 if grid.signed else (grid.qmax + 1) // 2
        scale = torch.maximum(high / (grid.qmax - middle), low / (grid.qmin - middle))
        zero = torch.full_like(scale, middle)
    else:
        scale = (high - low) / (grid.qmax - grid.qmin)
        zero = torch.where(
            scale > 0, grid.qmin - low / scale.clamp(min=1e-300), torch.zeros(()).double()
        ).round()
        zero = zero.clamp(grid.qmin, grid.qmax)
    return QParams(usable_scale(scale), zero.float())


def usable_scale(scale: Tensor) -> Tensor:
    """Round to float32; a zero or denormal scale (a constant, a dead channel) becomes 1."""
    scale = scale.float()
    return torch.where(scale >= torch.finfo(torch.float32).tiny, scale, torch.ones_like(scale))


def weight_qparams(weight: Tensor, grid: Grid, importance: Tensor | None = None) -> QParams:
    """Place a weight grid: the range of least squared error, searched per scale from the extremes inwards.

    Args:
        weight: ``[N, ...]`` float32, finite.
        grid: per tensor, per channel of axis 0, or per group.
        importance: weights of the squared error, broadcastable to ``weight``; None means 1.

    Returns:
        Scale and zero point of shape ``grid.scale_shape(weight.shape)``. With 8 bits it is the symmetric one whatever the grid
        allows: kernels multiply code minus zero point as int8, and a wider range has no room there.
    """
    if grid.bits == MAX_BITS:
        grid = replace(grid, symmetric=True)
    rows = _rows(weight, grid)
    cost = torch.ones(()) if importance is None else _rows(importance.expand_as(weight), grid)
    low, high = rows.amin(1), rows.amax(1)
    best = affine_qparams(low, high, grid)
    best_error = torch.full_like(low, float("inf"))
    for shrink in _SHRINK:
        candidate = affine_qparams(low * shrink, high * shrink, grid)
        scale, zero = candidate.scale[:, None], candidate.zero_point[:, None]
        error = ((fake_quantize(rows, scale, zero, grid.qmin, grid.qmax) - rows).square() * cost).sum(1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best = QParams(
            torch.where(better, candidate.scale, best.scale),
            torch.where(better, candidate.zero_point, best.zero_point),
        )
    shape = grid.scale_shape(tuple(weight.shape))
    return QParams(best.scale.reshape(shape), best.zero_point.reshape(shape))


def _rows(weight: Tensor, grid: Grid) -> Tensor:
    """One row for everything that shares a scale."""
    if grid.axis is None:
        return weight.reshape(1, -1)
    if grid.axis != 0:
        raise DataError(f"weight grids lie along axis 0, the output channels; axis={grid.axis} was given.")
    return (
        weight.reshape(weight.shape[0], -1)
        if grid.group_size is None
        else weight.reshape(-1, grid.group_size)
    )


def spread_qparams(qparams: QParams, grid: Grid, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Scale and zero point shaped to broadcast over a tensor of ``shape``."""
    return spread(qparams.scale, shape, grid.axis, grid.group_size), spread(
        qparams.zero_point, shape, grid.axis, grid.group_size
    )
