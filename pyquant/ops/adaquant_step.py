"""One iteration of AdaQuant in one pass: fake-quantize's gradient, Adam on weights and scales, the next fake-quantized weight.

A weight is ``position * start``: it is learned in steps of the scale that it started from, and its scale as
``start * exp(log_scale)``. All in float32, each operation rounded by itself; only the sum for a scale runs in
float64, over 16 lanes of its row, element ``i`` in lane ``i % 16``, so that every backend gives the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyquant import reference
from pyquant.errors import BackendError, GridError
from pyquant.grid import Grid
from pyquant.ops.backend import choose, extension, register
from pyquant.ops.checks import check_apart, check_contiguous, check_grid, check_like, check_values

BETAS = (0.9, 0.99)
_EPSILON = 1e-12
_LANES = 16


@dataclass(frozen=True)
class LearnedWeight:
    """What AdaQuant learns of a weight, and Adam's moments; :func:`adaquant_step` writes all but the first two in place.

    Args:
        start, zero_point: ``[N]`` float32; the scale to start from, and whole zero points.
        position, first, second: ``[N, K]`` float32; the weight in steps of ``start``, and its moments.
        log_scale, scale_first, scale_second: ``[N]`` float32; how far the scale has grown, and its moments.
    """

    start: Tensor
    zero_point: Tensor
    position: Tensor
    first: Tensor
    second: Tensor
    log_scale: Tensor
    scale_first: Tensor
    scale_second: Tensor

    @staticmethod
    def of(weight: Tensor, scale: Tensor, zero_point: Tensor) -> LearnedWeight:
        """Start from a weight ``[N, K]`` and its grid: scale and zero point ``[N]``, float32."""
        check_grid(weight, scale, zero_point, Grid(8, axis=0))
        check_values(scale, zero_point)
        position = (weight / scale[:, None]).float().contiguous()
        rows = [torch.zeros_like(position) for _ in range(2)]
        entries = [torch.zeros_like(scale) for _ in range(3)]
        return LearnedWeight(
            scale.contiguous(), torch.round(zero_point).contiguous(), position, *rows, *entries
        )

    def scale(self) -> Tensor:
        """The scale learned so far, ``[N]``."""
        return self.start * _exponential(self.log_scale)


def adaquant_step(
    learned: LearnedWeight,
    gradient: Tensor,
    grid: Grid,
    step: int,
    weight_rate: float,
    scale_rate: float,
    *,
    out: Tensor,
    backend: str = "auto",
) -> Tensor:
    """Learn from the gradient of the last fake-quantized weight, and write the next one.

    Args:
        learned: the state; moved in place.
        gradient: ``[N, K]`` float32, of the loss in the fake-quantized weight that ``learned`` stands for.
        grid: bits and sign; a scale belongs to a row, ``axis=0``.
        step: iterations before this one.
        weight_rate: codes a step, Adam's rate for the weights.
        scale_rate: share of itself a step, Adam's rate for the scales; 0 keeps them.
        out: ``[N, K]`` float32, the next fake-quantized weight; it may be ``gradient``.
        backend: ``"auto"``, ``"cpu"`` or ``"reference"``.

    Returns:
        ``out``.

    Raises:
        DTypeError, ShapeError: ``gradient`` or ``out`` does not fit, or is not contiguous.
        GridError: the grid is not one of rows, or ``step`` is negative.
        BackendError: a pinned backend cannot serve, or ``gradient`` requires a gradient itself.

    Source: Hubara et al. (arXiv 2006.10518), eq. 3, with Kingma and Ba's Adam.
    """
    if grid.axis != 0 or grid.group_size is not None:
        raise GridError(f"{grid} is not one scale a row; use axis=0 without groups.")
    if step < 0:
        raise GridError(f"step={step} makes no sense; count from 0.")
    for name, tensor in (("gradient", gradient), ("out", out)):
        check_like(name, tensor, "position", learned.position)
        check_contiguous(name, tensor)
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise BackendError(
                f"adaquant_step has no gradient, but {name} requires one; use torch.no_grad()."
            )
    check_apart("out", out, "gradient", gradient, True)
    for name in ("position", "first", "second"):
        check_apart("out", out, name, getattr(learned, name), False)
    kernel = choose("adaquant_step", gradient.device, backend).kernel
    first_bias, second_bias = (1.0 - beta ** (step + 1) for beta in BETAS)
    shares = [1.0 - beta for beta in BETAS]
    rates = (*shares, 1.0 / second_bias, weight_rate / first_bias, scale_rate / first_bias)
    if gradient.numel():
        kernel(learned, gradient, grid, rates, out)
    return out


def _exponential(x: Tensor) -> Tensor:
    """``exp``, by its series at ``x / 1024`` squared ten times: libraries differ in the last bit of theirs."""
    y = x.double() / 1024.0
    e = torch.ones_like(y)
    for k in range(10, 0, -1):
        e = 1.0 + e * y / k
    for _ in range(10):
        e = e * e
    return e.float()


# ----------------------------------------------------------------------------------------- backend: reference
@register("adaquant_step", "reference")
def _reference(
    learned: LearnedWeight, gradient: Tensor, grid: Grid, rates: tuple[float, ...], out: Tensor
) -> None:
    first_share, second_share, debias, weight_rate, scale_rate = rates
    start, zero, grown = learned.start[:, None], learned.zero_point[:, None], _exponential(learned.log_scale)
    flat = learned.position * start
    inside, terms, _ = reference.fake_quantize_backward(
        gradient, flat, learned.scale()[:, None], zero, grid.qmin, grid.qmax
    )

    def adam(x: Tensor, d: Tensor, first: Tensor, second: Tensor, rate: float) -> None:
        first.copy_(first + (d - first) * first_share)
        second.copy_(second + (d * d - second) * second_share)
        x.copy_(x - first * rate / (_root(second * debias) + _EPSILON))

    adam(learned.position, inside * start, learned.first, learned.second, weight_rate)
    slope = _in_lanes(terms).float() * learned.start * grown
    adam(learned.log_scale, slope, learned.scale_first, learned.scale_second, scale_rate)
    scale = learned.scale()[:, None]
    out.copy_(reference.fake_quantize(learned.position * start, scale, zero, grid.qmin, grid.qmax))


def _root(x: Tensor) -> Tensor:
    """The correctly rounded square root: torch's own in float32 may be the float beside it, and in float64 it is near enough."""
    return torch.sqrt(x.double()).float()


def _in_lanes(terms: Tensor) -> Tensor:
    """Sum rows as the kernels do: 16 lanes in ascending order (a running sum adds in order), then halves onto halves."""
    rows, n = terms.shape
    lanes = torch.nn.functional.pad(terms, (0, -n % _LANES)).reshape(rows, -1, _LANES).cumsum(1)[:, -1]
    while lanes.shape[1] > 1:
        lanes = lanes[:, : lanes.shape[1] // 2] + lanes[:, lanes.shape[1] // 2 :]
    return lanes[:, 0]


# ----------------------------------------------------------------------------------------------- backend: cpu
@register("adaquant_step", "cpu")
def _cpu(
    learned: LearnedWeight,
    gradient: Tensor,
    grid: Grid,
    rates: tuple[float, ...],
    out: Tensor,
    isa: str = "best",
    threads: int | None = None,
) -> None:
    native = extension()
    assert native is not None, "the cpu backend was chosen without the extension"
    weights = (gradient, learned.position, learned.first, learned.second)
    scales = (learned.log_scale, learned.scale_first, learned.scale_second, learned.start, learned.zero_point)
    native.adaquant_step(
        *(t.data_ptr() for t in (*weights, *scales, out)),
        *gradient.shape,
        grid.qmin,
        grid.qmax,
        *rates,
        threads if threads is not None else torch.get_num_threads(),
        isa,
    )
