"""The numerics in plain PyTorch: the oracle of every kernel.

Grid arithmetic is in float32. Integer arithmetic multiplies codes in float64, which is exact below 2^53, and then applies the
requantising epilogue in float32 with one rounding an operation, so every executor can give the same bytes.
Activations of the integer program are ``[B, H, W, C]``; images and weights of the float network keep torch's layouts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pyquant.errors import ShapeError


# ---------------------------------------------------------------------------------------------------------------- the grid
def spread(
    param: Tensor, shape: torch.Size | tuple[int, ...], axis: int | None, group_size: int | None
) -> Tensor:
    """Shape a scale or zero point so that it broadcasts over a tensor of ``shape``.

    Args:
        param: ``()``, ``[C]`` or ``[C, G]``.
        shape: the tensor's shape.
        axis: the dimension that ``C`` belongs to; None for ``()``.
        group_size: elements of a flattened row that share a scale; None for a whole row.

    Returns:
        A view, or for groups an expanded copy of ``shape``.
    """
    if axis is None:
        return param.reshape(())
    if group_size is None:
        view = [1] * len(shape)
        view[axis] = -1
        return param.reshape(view)
    return param.repeat_interleave(group_size, dim=1).reshape(shape)


def grid_position(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """``u = round_half_even(x / s) + z``, float32, before the clamp; scale and zero point broadcast over ``x``."""
    return torch.round(x.float() / scale) + zero_point


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """Codes of ``x`` as int32; a NaN becomes the zero point. Scale and zero point broadcast over ``x``."""
    u = grid_position(x, scale, zero_point)
    return torch.where(u.isnan(), zero_point.expand_as(u), u.clamp(qmin, qmax)).to(torch.int32)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """``(q - z) * s`` in float32."""
    return (codes.float() - zero_point) * scale


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """``dequantize(quantize(x))`` in the dtype of ``x``, computed in float32 and rounded once at the end."""
    u = grid_position(x, scale, zero_point).clamp(qmin, qmax)
    return dequantize(u, scale, zero_point).to(x.dtype)


def fake_quantize_backward(
    dy: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of :func:`fake_quantize`, element by element.

    Returns:
        ``dx`` in the dtype of ``x``; float64 terms of ``d scale`` and ``d zero_point``, shaped like ``x``, to be summed over
        whatever shares a scale.
    """
    u = grid_position(x, scale, zero_point)
    inside = (u >= qmin) & (u <= qmax)
    dx = torch.where(inside, dy, torch.zeros((), dtype=dy.dtype))
    slope = torch.where(inside, (u - zero_point) - x.float() / scale, u.clamp(qmin, qmax) - zero_point)
    dy = dy.double()
    dscale = dy * slope.double()
    dzero = torch.where(inside, torch.zeros((), dtype=torch.float64), -dy * scale.double())
    return dx, dscale, dzero


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of activations on a grid of their own for each row: symmetric, 8 bits, -127..127.

    ``s = max(max |x| / 127, 2^-126)`` and ``q = round_half_even(x / s)``, each operation rounded in float32. A row that holds
    a NaN or an infinity has no grid: its scale is NaN and its codes are 0, so all that is computed from it is NaN.

    Args:
        x: ``[M, K]``, any float dtype, widened to float32.

    Returns:
        ``[M, K]`` int8 codes and ``[M]`` float32 scales.
    """
    wide = x.float()
    most = wide.abs().amax(1)
    smallest = torch.finfo(torch.float32).tiny
    scale = torch.where(most.isfinite(), (most / torch.tensor(127.0)).clamp_min(smallest), torch.nan)
    codes = torch.round(wide / scale[:, None])
    return torch.where(scale.isnan()[:, None], 0.0, codes).to(torch.int8), scale


# ---------------------------------------------------------------------------------------------------- integers: accumulate
def accumulate_conv(
    x: Tensor,
    x_zero: int,
    weight: Tensor,
    weight_zero: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """``acc = sum (qx - zx)(qw - zw)``, exact.

    Args:
        x: ``[B, H, W, C]`` uint8 codes.
        x_zero: zero point of ``x``; padding pads with it, so that it adds nothing.
        weight: ``[N, C / groups, KH, KW]`` integer codes.
        weight_zero: ``[N]`` zero points.
        stride, dilation: ``(vertical, horizontal)``.
        padding: ``(top, left, bottom, right)``.

    Returns:
        ``[B, OH, OW, N]`` float64 holding whole numbers.
    """
    top, left, bottom, right = padding
    centred = F.pad((x.double() - x_zero).permute(0, 3, 1, 2), (left, right, top, bottom))
    w = weight.double() - weight_zero.double().reshape(-1, 1, 1, 1)
    if x.device.type != "cpu":
        return sum_taps(centred, w, stride, dilation, groups)
    return F.conv2d(centred, w, None, stride, 0, dilation, groups).permute(0, 2, 3, 1).contiguous()


def sum_taps(
    x: Tensor, weight: Tensor, stride: tuple[int, int], dilation: tuple[int, int], groups: int
) -> Tensor:
    """A convolution without padding as one product a tap: cuDNN's may transform what it multiplies, and be whole only nearly.

    Args:
        x: ``[B, C, H, W]`` float64 holding whole numbers.
        weight: ``[N, C / groups, KH, KW]``, likewise.
        stride, dilation: ``(vertical, horizontal)``.

    Returns:
        ``[B, OH, OW, N]`` float64.
    """
    outputs, inner, kh, kw = weight.shape
    oh = (x.shape[2] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    ow = (x.shape[3] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    grouped = weight.reshape(groups, outputs // groups, inner, kh, kw)
    total = x.new_zeros(x.shape[0], oh, ow, groups, outputs // groups)
    for i in range(kh):
        for j in range(kw):
            top, left = i * dilation[0], j * dilation[1]
            seen = x[:, :, top : top + oh * stride[0] : stride[0], left : left + ow * stride[1] : stride[1]]
            seen = seen[:, :, :oh, :ow].reshape(x.shape[0], groups, inner, oh, ow)
            total = total + torch.einsum("bgchw,gnc->bhwgn", seen, grouped[..., i, j])
    return total.flatten(3)


# ------------------------------------------------------------------------------------------------------ integers: epilogue
def requantize(
    acc: Tensor,
    multiplier: Tensor,
    bias: Tensor,
    y_zero: int,
    low: int,
    high: int,
    residual: tuple[Tensor, int, float] | None = None,
) -> Tensor:
    """``y = clamp(round(float(acc) * m + b [+ (r - zr) * mr]) + zy, low, high)``: each operation rounded by itself in float32.

    Args:
        acc: ``[..., N]`` whole numbers.
        multiplier: ``[N]`` float32, ``s_x s_w / s_y``.
        bias: ``[N]`` float32, ``bias / s_y``.
        y_zero: zero point of the result.
        low, high: clamp bounds in codes; the activation is one of them.
        residual: codes shaped like the result, their zero point, and ``s_r / s_y``.

    Returns:
        uint8 codes shaped like ``acc``.
    """
    return to_codes(affine(acc, multiplier, bias), y_zero, low, high, residual)


def to_codes(
    y: Tensor, y_zero: int, low: int, high: int, residual: tuple[Tensor, int, float] | None = None
) -> Tensor:
    """The second half of :func:`requantize`: of float32 in steps of the result, uint8 codes."""
    if residual is not None:
        codes, zero, scale = residual
        y = y + (codes.float() - zero) * torch.tensor(scale, dtype=torch.float32)
    return (torch.round(y) + y_zero).clamp(low, high).to(torch.uint8)


def affine(acc: Tensor, multiplier: Tensor, bias: Tensor) -> Tensor:
    """``float(acc) * m + b`` in float32: the float output of a last layer, and the first half of :func:`requantize`."""
    return acc.to(torch.int32).float() * multiplier + bias


def add(
    a: Tensor,
    a_zero: int,
    a_scale: float,
    b: Tensor,
    b_zero: int,
    b_scale: float,
    y_zero: int,
    low: int,
    high: int,
) -> Tensor:
    """Add two tensors of uint8 codes: ``round((qa - za) ma + (qb - zb) mb) + zy``, with ``m = s / s_y`` in float32."""
    left = (a.float() - a_zero) * torch.tensor(a_scale, dtype=torch.float32)
    right = (b.float() - b_zero) * torch.tensor(b_scale, dtype=torch.float32)
    return (torch.round(left + right) + y_zero).clamp(low, high).to(torch.uint8)


def avg_pool(
    x: Tensor,
    x_zero: int,
    multiplier: float,
    y_zero: int,
    low: int,
    high: int,
    window: tuple[int, int],
    stride: tuple[int, int],
) -> Tensor:
    """Average pooling without padding over ``[B, H, W, C]`` codes: int32 sum, then the epilogue with ``m = s_x / (s_y |window|)``."""
    nchw = x.double().permute(0, 3, 1, 2) - x_zero
    total = F.avg_pool2d(nchw, window, stride, divisor_override=1).permute(0, 2, 3, 1)
    y = torch.round(total.to(torch.int32).float() * torch.tensor(multiplier, dtype=torch.float32)) + y_zero
    return y.clamp(low, high).to(torch.uint8).contiguous()


def max_pool(
    x: Tensor, window: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int, int, int]
) -> Tensor:
    """Max pooling over ``[B, H, W, C]`` codes; padding ``(top, left, bottom, right)`` never wins. The grid stays the same."""
    top, left, bottom, right = padding
    nchw = F.pad(x.double().permute(0, 3, 1, 2), (left, right, top, bottom), value=-1.0)
    pooled = F.max_pool2d(nchw, window, stride)
    starts = (pooled.shape[2] - 1) * stride[0] - top, (pooled.shape[3] - 1) * stride[1] - left
    if top >= window[0] or left >= window[1] or starts[0] >= x.shape[1] or starts[1] >= x.shape[2]:
        raise ShapeError(
            f"max_pool window {window} with padding {padding} has outputs that see padding only; use less padding."
        )
    return pooled.permute(0, 2, 3, 1).to(torch.uint8).contiguous()


def lookup(x: Tensor, table: Tensor) -> Tensor:
    """Map every code through a table of 256 codes: any one-input function of codes, exactly."""
    return table[x.long()]
