"""conv_s8: 8-bit convolution over NHWC codes with the requantising epilogue, and a residual in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import pyquant.ops.conv_s8_gpu  # noqa: F401 (registers the kernels of GPUs)
from pyquant import reference
from pyquant.errors import ShapeError
from pyquant.ops import backend as backends
from pyquant.ops.backend import register, run
from pyquant.ops.checks import check_accumulator, check_code_range, check_dtypes, check_operands
from pyquant.ops.conv_call import ConvCall, Residual
from pyquant.ops.packed_conv import packed


def conv_s8(
    x: Tensor,
    weight: Tensor,
    multiplier: Tensor,
    bias: Tensor,
    *,
    x_zero: int,
    y_zero: int,
    low: int = 0,
    high: int = 255,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    residual: Residual | None = None,
    backend: str = "auto",
) -> Tensor:
    """Convolve codes: ``y = clamp(round(float(acc) * multiplier + bias [+ (r - r_zero) r_scale]) + y_zero, low, high)``.

    Here ``acc = sum (x - x_zero) * weight`` over a window, exact. On a GPU ``auto`` takes triton, whose kernels read ``x``
    where it lies and add the residual as they go. The cuda backend has products of matrices: it copies every window, which is
    ``KH KW`` times the bytes of ``x`` to write and read again. So it comes first only where a window is one pixel in place and
    nothing is added, and otherwise where Triton is missing.

    Args:
        x: ``[B, H, W, C]`` uint8 codes.
        weight: ``[N, KH, KW, C / groups]`` int8 codes, zero point 0.
        multiplier: ``[N]`` float32, ``s_x s_w / s_y``.
        bias: ``[N]`` float32, ``bias / s_y``.
        x_zero: zero point of ``x``, 0..255; the padding is filled with it.
        y_zero: zero point of the result, 0..255.
        low, high: clamp bounds in codes, 0..255; an activation is one of them.
        stride, dilation: ``(vertical, horizontal)``.
        padding: ``(top, left, bottom, right)``.
        groups: divides ``C`` and ``N``.
        residual: codes shaped like the result, uint8, their zero point, and ``s_r / s_y``.
        backend: ``"auto"``, ``"reference"``, ``"cpu"``, ``"triton"`` or ``"cuda"``; all give the same bytes.

    Returns:
        ``[B, OH, OW, N]`` uint8.

    Raises:
        ShapeError: shapes do not fit each other, the batch is empty, or sums could leave int32.
        DTypeError: a dtype is not the one above.
        BackendError: a code parameter is outside 0..255, or the backend cannot serve here.

    Source: :func:`pyquant.reference.accumulate_conv` and :func:`pyquant.reference.requantize`.
    """
    check_operands(x, weight, multiplier, bias)
    check_code_range(x_zero=x_zero, y_zero=y_zero, low=low, high=high)
    if x.dim() != 4 or weight.dim() != 4 or min(x.shape) == 0:
        raise ShapeError(
            "conv_s8 takes x [B, H, W, C] and weight [N, KH, KW, C / groups], "
            f"not {list(x.shape)} and {list(weight.shape)}."
        )
    if min(groups, *stride, *dilation) < 1 or min(padding) < 0:
        raise ShapeError(
            f"conv_s8: groups={groups}, stride={tuple(stride)} and dilation={tuple(dilation)} are at least 1, "
            f"and padding={tuple(padding)} at least 0."
        )
    n, kh, kw, c = weight.shape
    if c * groups != x.shape[3] or n % groups or multiplier.shape != (n,) or bias.shape != (n,):
        raise ShapeError(
            f"conv_s8: weight {list(weight.shape)}, multiplier {list(multiplier.shape)} "
            f"and bias {list(bias.shape)} do not fit {x.shape[3]} channels in {groups} groups."
        )
    check_accumulator(kh * kw * c, x_zero, weight, "conv_s8")
    call = ConvCall(
        *(x, weight, multiplier, bias, x_zero, y_zero, low, high, stride, padding, dilation, groups),
        *(residual or ()),
    )
    shape = (x.shape[0], *call.out, n)
    if min(call.out) < 1:
        raise ShapeError(
            f"conv_s8: a {kh} x {kw} kernel does not fit a {x.shape[1]} x {x.shape[2]} input; add padding."
        )
    if residual is not None:
        check_dtypes(residual=(residual[0], torch.uint8))
        check_code_range(residual_zero=residual[1])
        if residual[0].shape != shape:
            raise ShapeError(
                f"conv_s8: residual {list(residual[0].shape)} should be shaped like the result, {list(shape)}."
            )
    return backends.call("conv_s8", backend, *call)


# -------------------------------------------------------------------------------------------------- schema
torch.library.define(
    "pyquant::conv_s8",
    "(Tensor x, Tensor weight, Tensor multiplier, Tensor bias, int x_zero, int y_zero, int low, int high, "
    "int[2] stride, int[4] padding, int[2] dilation, int groups, "
    "Tensor? residual=None, int residual_zero=0, float residual_scale=1.0) -> Tensor",
)


@torch.library.impl("pyquant::conv_s8", ("cpu", "cuda"))
def _dispatch(*arguments: Any) -> Tensor:
    return run("conv_s8", "auto", *arguments)


@torch.library.register_fake("pyquant::conv_s8")
def _fake(*arguments: Any) -> Tensor:
    call = ConvCall(*arguments)
    return call.x.new_empty(call.x.shape[0], *call.out, call.weight.shape[0])


# ------------------------------------------------------------------------------------------------ backends
@register("conv_s8", "reference")
def _reference(*arguments: Any) -> Tensor:
    call = ConvCall(*arguments)
    zero = torch.zeros(call.weight.shape[0], dtype=torch.int32, device=call.weight.device)
    oihw = call.weight.permute(0, 3, 1, 2)
    where: Any = call.geometry
    acc = reference.accumulate_conv(call.x, call.x_zero, oihw, zero, **where, groups=call.groups)
    return reference.requantize(acc, call.multiplier, call.bias, *call.bounds, call.added)


@register("conv_s8", "cpu")
def _cpu(*arguments: Any) -> Tensor:
    call = ConvCall(*arguments)
    options = {name: getattr(call, name) for name in ("groups", "x_zero", "y_zero", "low", "high")}
    if call.residual is not None:
        options |= {"residual_zero": call.residual_zero, "residual_scale": call.residual_scale}
    shape = tuple(call.x.shape[1:])
    layer = packed(call.weight, call.multiplier, call.bias, shape, **options, **call.geometry)
    return layer(call.x, call.residual)
