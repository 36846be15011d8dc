"""conv_s8 on the triton and cuda backends; the contract is on the page of conv_s8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyquant import reference
from pyquant.ops.backend import Unserved, prefer, register
from pyquant.ops.checks import INT32_MAX
from pyquant.ops.conv_call import DENSE, ConvCall, dense, windows
from pyquant.ops.cuda_launch import Launch, fit
from pyquant.ops.gemm_s8 import correction, multiply_on_cuda, multiply_on_triton
from pyquant.ops.kept import kept
from pyquant.ops.triton_launch import Planned, planned

# What int32 counts, less the rows of a tile that are past the end.
_MOST = INT32_MAX - (1 << 12)


@prefer("conv_s8")
def _order(*arguments: Any) -> tuple[str, ...]:
    # Triton's kernels read x where it lies and add the residual as they go. The cuda backend has products of matrices: it
    # copies each window, KH KW times the bytes of x to write and to read again, adds to float32 results in torch, and
    # multiplies every channel by every group.
    call = ConvCall(*arguments)
    if call.product:
        return "cuda", "triton", "reference"
    return "triton", "cuda", "reference"


# --------------------------------------------------------------------------------------------------- backend: triton
def _plan_triton(device: torch.device, *arguments: Any) -> Planned:
    call = ConvCall(*arguments)
    images, height, width, channels = call.x.shape
    n, kh, kw, _ = call.weight.shape
    pixels = images * call.out[0] * call.out[1]
    if max(pixels, height * width * channels) > _MOST:
        raise Unserved("the batch has more pixels, or an image more codes, than int32 counts; split it")
    if call.product:
        # The same product, with a table of tiles for few rows too.
        return planned("gemm_s8", device, m=pixels, n=n, k=channels)
    return planned(
        "depthwise_s8" if call.groups == channels == n else "conv_s8",
        device,
        images=images,
        height=height,
        width=width,
        channels=channels,
        outputs=n,
        kernel=(kh, kw),
        groups=call.groups,
        residual=call.added is not None,
        **call.geometry,
    )


@register("conv_s8", "triton", _plan_triton)
def _triton(plan: Planned, *arguments: Any) -> Tensor:
    call = ConvCall(*arguments)
    x, scaling = call.x.contiguous(), (call.multiplier.contiguous(), call.bias.contiguous())
    if plan.name == "gemm_s8":
        y = multiply_on_triton(plan, x.flatten(0, 2), call.weight, *scaling, call.x_zero, *call.bounds)
        return y.reshape(*x.shape[:3], -1)
    added = None if call.added is None else (call.added[0].contiguous(), *call.added[1:])
    y_zero, low, high = call.bounds
    options = {"x_zero": call.x_zero, "y_zero": y_zero, "low": low, "high": high, "residual": added}
    if plan.name == "depthwise_s8":
        from pyquant.kernels import depthwise_s8

        by_tap = kept("triton depthwise_s8", depthwise_s8.repack, call.weight)
        return depthwise_s8.launch(x, by_tap, *scaling, **options, **call.geometry)
    from pyquant.kernels import conv_s8 as kernel

    parameters = call.weight.contiguous(), *scaling, correction(call.weight, call.x_zero)
    how = {"groups": call.groups, "configuration": plan.configuration}
    return kernel.launch(x, *parameters, **options, **call.geometry, **how)


# ----------------------------------------------------------------------------------------------------- backend: cuda
@dataclass(frozen=True)
class _Windows:
    """A product of matrices that serves as a convolution; ``str`` is one line."""

    launch: Launch
    copied: bool

    def __str__(self) -> str:
        return f"{self.launch}{', on copied windows' if self.copied else ''}"


def _plan_cuda(device: torch.device, *arguments: Any) -> _Windows:
    call = ConvCall(*arguments)
    size = call.weight.numel() * call.groups
    if call.groups != 1 and size > DENSE:
        raise Unserved(f"its weight, in {call.groups} groups, would be {size} bytes as one of all channels")
    op = "gemm_s8" if call.added is None else "gemm_s8_float"
    launch = fit(op, device, call.x.shape[0] * call.out[0] * call.out[1], call.weight.shape[0])
    return _Windows(launch, not call.in_place)


@register("conv_s8", "cuda", _plan_cuda)
def _cuda(plan: _Windows, *arguments: Any) -> Tensor:
    call = ConvCall(*arguments)
    kernel = (call.weight.shape[1], call.weight.shape[2])
    rows = windows(call.x, kernel, call.stride, call.padding, call.dilation, call.x_zero)
    # Groups that do not reach a channel multiply it by 0.
    weight = call.weight if call.groups == 1 else kept("cuda dense", dense, call.weight, call.groups)
    given = rows.flatten(0, 2), weight, call.multiplier, call.bias, call.x_zero
    y = multiply_on_cuda(plan.launch, *given, *(call.bounds if call.added is None else ()))
    y = y.reshape(*rows.shape[:3], -1)
    return y if call.added is None else reference.to_codes(y, *call.bounds, call.added)
