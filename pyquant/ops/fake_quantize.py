"""Quantize, dequantize, and fake-quantize with its gradients: contract, fakes, backends, autograd.

The arithmetic is that of ``reference.py``. Every layout is ``(outer, channels, inner)``: element ``i`` of the
contiguous tensor uses ``scale[(i // inner) % channels]``. Zero points come as float32 and are rounded half to
even here, before any kernel sees them; the gradient passes straight through that rounding. Results are
contiguous whatever the strides of ``x``; an empty ``x`` gives an empty result and gradients of 0. The triton
kernels register under the same three names in :mod:`pyquant.ops.fake_quantize_gpu`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import pyquant.ops.fake_quantize_gpu  # noqa: F401 (registers Triton's kernels)
from pyquant import reference
from pyquant.errors import BackendError, DTypeError, ShapeError
from pyquant.grid import Grid
from pyquant.ops import fake_quantize_masked
from pyquant.ops.backend import choose, native, register
from pyquant.ops.checks import (
    FLOATS,
    check_apart,
    check_contiguous,
    check_grid,
    check_like,
    check_params,
    check_values,
)
from pyquant.ops.grid_layout import cpu_grid, layout_of, prepare
from pyquant.ops.results import result_like


# --------------------------------------------------------------------------------------------------- contract
def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid, backend: str = "auto", out: Tensor | None = None
) -> Tensor:
    """Round ``x`` to the grid and back: ``(clamp(round(x / s) + z, qmin, qmax) - z) * s``.

    Differentiable in ``x`` (straight-through), ``scale`` and ``zero_point`` (learned step and offset).

    Args:
        x: any shape; float32, bfloat16 or float16, computed in float32 and rounded once at the end. A NaN
            stays a NaN.
        scale: ``grid.scale_shape(x.shape)`` float32, real units a step; positive normal finite numbers.
        zero_point: shaped like ``scale``, float32, the code of real 0. Rounded half to even inside; its
            gradient passes straight through that rounding. A learned one may leave ``[qmin, qmax]``.
        grid: width, sign and what shares a scale.
        backend: ``"auto"`` or one of ``backend.BACKENDS``; the gradient uses the same one.
        out: where to write, contiguous, shape and dtype of ``x``; it may be ``x`` itself. It takes no part in
            autograd.

    Returns:
        Contiguous, shape and dtype of ``x``; ``out`` if it was given.

    Raises:
        DTypeError: a dtype, device or memory layout the op does not take.
        ShapeError: ``scale``, ``zero_point`` or ``out`` does not fit ``x``.
        GridError: axis or groups do not fit ``x``, or a scale is not a positive normal finite number.
        BackendError: a pinned backend cannot serve, or ``out`` was given where a gradient is wanted.

    Source: METHOD section 1; :func:`pyquant.reference.fake_quantize`.
    """
    check_grid(x, scale, zero_point, grid)
    where = (grid.qmin, grid.qmax, grid.axis, grid.group_size, backend)
    if out is None:
        if fake_quantize_masked.serves(x, scale, zero_point, grid, backend):
            return torch.ops.pyquant.fake_quantize_masked(x, scale, zero_point, *where[:-1])[0]
        return torch.ops.pyquant.fake_quantize(x, scale, zero_point, *where)
    check_like("out", out, "x", x)
    check_contiguous("out", out)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, scale, zero_point, out)):
        raise BackendError(
            "out= has no gradient, but an argument requires one; drop out=, or use torch.no_grad()."
        )
    torch.ops.pyquant.fake_quantize_out(x, scale, zero_point, *where, out)
    return out


def fake_quantize_backward(
    dy: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    grid: Grid,
    backend: str = "auto",
    out: tuple[Tensor, Tensor | None, Tensor | None] | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of :func:`fake_quantize`, for training loops that keep their own buffers.

    Args:
        dy: gradient of the result; shape and dtype of ``x``.
        x, scale, zero_point, grid, backend: as for :func:`fake_quantize`.
        out: where to write ``(dx, dscale, dzero)``, contiguous: ``dx`` has shape and dtype of ``x`` and may be ``dy`` or ``x``;
            ``dscale`` and ``dzero`` those of ``scale``, or both None where their sums are not wanted.

    Returns:
        ``(dx, dscale, dzero)``; ``out`` if it was given.

    Raises:
        DTypeError, ShapeError, GridError: as for :func:`fake_quantize`, of any tensor of ``out`` too.
        BackendError: a pinned backend cannot serve, or a gradient of the gradient is wanted.

    Source: METHOD section 1; :func:`pyquant.reference.fake_quantize_backward`.
    """
    check_grid(x, scale, zero_point, grid)
    check_like("dy", dy, "x", x)
    given: tuple[Tensor, Tensor | None, Tensor | None] = (
        _gradients_like(x, scale, True) if out is None else out
    )
    if (given[1] is None) != (given[2] is None):
        raise ShapeError("out has one of dscale and dzero; give both, or None for both.")
    right = (("dx", "x", x), ("dscale", "scale", scale), ("dzero", "zero_point", zero_point))
    for tensor, (name, model, like) in zip(given, right, strict=True):
        if tensor is not None:
            check_like(name, tensor, model, like)
            check_contiguous(name, tensor)
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (dy, x, scale, zero_point, *given)
    ):
        raise BackendError("the gradient has no gradient, but an argument requires one; use torch.no_grad().")
    where = (grid.qmin, grid.qmax, grid.axis, grid.group_size, backend)
    torch.ops.pyquant.fake_quantize_backward_out(dy, x, scale, zero_point, *where, *given)
    return given


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid, backend: str = "auto") -> Tensor:
    """Codes of ``x``: ``clamp(round(x / s) + z, qmin, qmax)``; a NaN becomes the zero point.

    Args:
        x, scale, zero_point, grid, backend: as for :func:`fake_quantize`, but zero points lie on the grid.

    Returns:
        Contiguous codes, shape of ``x``, ``grid.code_dtype``. No gradient.

    Raises:
        DTypeError, ShapeError, GridError, BackendError: as for :func:`fake_quantize`.
    """
    check_grid(x, scale, zero_point, grid)
    return torch.ops.pyquant.quantize(
        x, scale, zero_point, grid.qmin, grid.qmax, grid.axis, grid.group_size, grid.signed, backend
    )


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> Tensor:
    """Real values of codes: ``(q - z) * s``, contiguous float32; plain torch on every device.

    Args:
        codes: any shape, ``grid.code_dtype``.
        scale, zero_point, grid: as for :func:`quantize`.

    Raises:
        DTypeError, ShapeError, GridError: as for :func:`quantize`.
    """
    if codes.dtype != grid.code_dtype:
        raise DTypeError(f"codes are {codes.dtype}, but {grid} stores {grid.code_dtype}; use that.")
    check_params(codes, scale, zero_point, grid)
    spread = _spread(scale, torch.round(zero_point), codes, grid.axis, grid.group_size)
    return reference.dequantize(codes.contiguous(), *spread)


# ------------------------------------------------------------------------------------------ torch.library ops
_library = torch.library.Library("pyquant", "FRAGMENT")
_GRID = "Tensor scale, Tensor zero_point, int qmin, int qmax, int? axis, int? group_size"
_library.define(f"fake_quantize(Tensor x, {_GRID}, str backend) -> Tensor")
_library.define(f"fake_quantize_out(Tensor x, {_GRID}, str backend, Tensor(a!) out) -> ()")
_library.define(
    f"fake_quantize_backward_out(Tensor dy, Tensor x, {_GRID}, str backend,"
    " Tensor(a!) dx, Tensor(b!)? dscale, Tensor(c!)? dzero) -> ()"
)
_library.define(
    f"fake_quantize_backward(Tensor dy, Tensor x, {_GRID}, bool sums, str backend)"
    " -> (Tensor dx, Tensor dscale, Tensor dzero)"
)
_library.define(f"quantize(Tensor x, {_GRID}, bool signed, str backend) -> Tensor")


def _fake_quantize_out(x, scale, zero_point, qmin, qmax, axis, group_size, backend, out) -> None:
    where = (qmin, qmax, axis, group_size)
    kernel = choose("fake_quantize", x.device, backend, (x, scale, zero_point, *where)).kernel
    x, scale, zero_point = prepare(x, scale, zero_point)
    check_values(scale, zero_point)
    check_apart("out", out, "x", x, True)
    if x.numel():
        kernel(x, scale, zero_point, *where, out)


def _fake_quantize(x, scale, zero_point, qmin, qmax, axis, group_size, backend) -> Tensor:
    out = result_like(x)
    _fake_quantize_out(x, scale, zero_point, qmin, qmax, axis, group_size, backend, out)
    return out


def _fake_quantize_backward_out(
    dy, x, scale, zero_point, qmin, qmax, axis, group_size, backend, dx, dscale, dzero
) -> None:
    where = (qmin, qmax, axis, group_size)
    kernel = choose("fake_quantize_backward", x.device, backend, (dy, x, scale, zero_point, *where)).kernel
    dy, (x, scale, zero_point) = dy.contiguous(), prepare(x, scale, zero_point)
    check_values(scale, zero_point)
    check_apart("dx", dx, "dy", dy, True)
    check_apart("dx", dx, "x", x, True)
    sums = [(name, total) for name, total in (("dscale", dscale), ("dzero", dzero)) if total is not None]
    for name, total in sums:
        for other, tensor in (("dy", dy), ("x", x), ("dx", dx), ("scale", scale)):
            check_apart(name, total, other, tensor, False)
    if dscale is None:
        dscale = dzero = scale.new_empty(0)
    else:
        check_apart("dscale", dscale, "dzero", dzero, False)
    if x.numel():
        kernel(dy, x, scale, zero_point, *where, dx, dscale, dzero)
    else:
        dscale.zero_()
        dzero.zero_()


def _fake_quantize_backward(
    dy, x, scale, zero_point, qmin, qmax, axis, group_size, sums, backend
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients; ``dscale`` and ``dzero`` are empty unless ``sums``."""
    where = (qmin, qmax, axis, group_size)
    kernel = choose("fake_quantize_backward", x.device, backend, (dy, x, scale, zero_point, *where)).kernel
    x, scale, zero_point = prepare(x, scale, zero_point)
    dx, dscale, dzero = _gradients_like(x, scale, sums)
    if x.numel():
        kernel(dy.contiguous(), x, scale, zero_point, *where, dx, dscale, dzero)
    return dx, dscale, dzero


def _gradients_like(x: Tensor, scale: Tensor, sums: bool) -> tuple[Tensor, Tensor, Tensor]:
    shape = scale.shape if sums else (0,)
    return result_like(x), scale.new_zeros(shape), scale.new_zeros(shape)


def _quantize(x, scale, zero_point, qmin, qmax, axis, group_size, signed, backend) -> Tensor:
    where = (qmin, qmax, axis, group_size)
    kernel = choose("quantize", x.device, backend, (x, scale, zero_point, *where)).kernel
    x, scale, zero_point = prepare(x, scale, zero_point)
    check_values(scale, zero_point, (qmin, qmax))
    codes = torch.empty(x.shape, dtype=torch.int8 if signed else torch.uint8, device=x.device)
    if x.numel():
        kernel(x, scale, zero_point, *where, codes)
    return codes


# Library.impl costs a call a third of what custom_op does, and training calls these once a step.
for _name, _implementation in (
    ("fake_quantize", _fake_quantize),
    ("fake_quantize_out", _fake_quantize_out),
    ("fake_quantize_backward_out", _fake_quantize_backward_out),
    ("fake_quantize_backward", _fake_quantize_backward),
    ("quantize", _quantize),
):
    _library.impl(_name, _implementation, "CPU")
    _library.impl(_name, _implementation, "CUDA")


@torch.library.register_fake("pyquant::fake_quantize", lib=_library)
def _(x, scale, zero_point, qmin, qmax, axis, group_size, backend):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.register_fake("pyquant::fake_quantize_out", lib=_library)
def _(x, scale, zero_point, qmin, qmax, axis, group_size, backend, out):
    return None


@torch.library.register_fake("pyquant::fake_quantize_backward_out", lib=_library)
def _(dy, x, scale, zero_point, qmin, qmax, axis, group_size, backend, dx, dscale, dzero):
    return None


@torch.library.register_fake("pyquant::fake_quantize_backward", lib=_library)
def _(dy, x, scale, zero_point, qmin, qmax, axis, group_size, sums, backend):
    return _gradients_like(x, scale, sums)


@torch.library.register_fake("pyquant::quantize", lib=_library)
def _(x, scale, zero_point, qmin, qmax, axis, group_size, signed, backend):
    return torch.empty_like(
        x, dtype=torch.int8 if signed else torch.uint8, memory_format=torch.contiguous_format
    )


# --------------------------------------------------------------------------------------------------- gradient
def _remember(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, scale, zero_point, *ctx.where, ctx.backend = inputs
    ctx.save_for_backward(x, scale, zero_point)


def _backward(ctx: Any, dy: Tensor) -> tuple:
    x, scale, zero_point = ctx.saved_tensors
    _, need_scale, need_zero, *rest = ctx.needs_input_grad
    sums = need_scale or need_zero
    dx, dscale, dzero = torch.ops.pyquant.fake_quantize_backward(
        dy, x, scale, zero_point, *ctx.where, sums, ctx.backend
    )
    return dx, dscale if need_scale else None, dzero if need_zero else None, *(None for _ in rest)


torch.library.register_autograd("pyquant::fake_quantize", _backward, setup_context=_remember, lib=_library)


# ----------------------------------------------------------------------------------------- backend: reference
def _spread(
    scale: Tensor, zero_point: Tensor, x: Tensor, axis: int | None, group_size: int | None
) -> tuple[Tensor, Tensor]:
    return reference.spread(scale, x.shape, axis, group_size), reference.spread(
        zero_point, x.shape, axis, group_size
    )


@register("fake_quantize", "reference")
def _fake_quantize_reference(x, scale, zero_point, qmin, qmax, axis, group_size, out):
    out.copy_(reference.fake_quantize(x, *_spread(scale, zero_point, x, axis, group_size), qmin, qmax))


@register("fake_quantize_backward", "reference")
def _fake_quantize_backward_reference(
    dy, x, scale, zero_point, qmin, qmax, axis, group_size, dx, dscale, dzero
):
    spread = _spread(scale, zero_point, x, axis, group_size)
    into_dx, scale_terms, zero_terms = reference.fake_quantize_backward(dy, x, *spread, qmin, qmax)
    dx.copy_(into_dx)
    for total, terms in ((dscale, scale_terms), (dzero, zero_terms)):
        if total.numel():
            total.copy_(terms.reshape(layout_of(x.shape, axis, group_size)).sum((0, 2)).reshape(total.shape))


@register("quantize", "reference")
def _quantize_reference(x, scale, zero_point, qmin, qmax, axis, group_size, codes):
    codes.copy_(reference.quantize(x, *_spread(scale, zero_point, x, axis, group_size), qmin, qmax))


# ----------------------------------------------------------------------------------------------- backend: cpu
@register("fake_quantize", "cpu")
def _fake_quantize_cpu(x, *grid_and_out):
    *grid, out = grid_and_out
    native().fake_quantize(FLOATS[x.dtype], x.data_ptr(), out.data_ptr(), *cpu_grid(x, *grid))


@register("fake_quantize_backward", "cpu")
def _fake_quantize_backward_cpu(dy, x, *grid_and_gradients):
    *grid, dx, dscale, dzero = grid_and_gradients
    # An empty tensor's address is 0: the sums are not wanted.
    addresses = (t.data_ptr() for t in (dy, x, dx, dscale, dzero))
    native().fake_quantize_backward(FLOATS[x.dtype], *addresses, *cpu_grid(x, *grid))


@register("quantize", "cpu")
def _quantize_cpu(x, *grid_and_codes):
    *grid, codes = grid_and_codes
    native().quantize(FLOATS[x.dtype], x.data_ptr(), codes.data_ptr(), *cpu_grid(x, *grid))
