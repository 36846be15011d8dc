"""8-bit depthwise convolution over NHWC codes: every channel by itself, so there is nothing for tensor cores to share.

One program computes ``[BLOCK_PIXELS, BLOCK_CHANNELS]`` of the result and keeps its sums in registers over all of
``(kh, kw)``; neighbours find the rows of ``x`` they share in L1. Bound by bytes: one read of ``x``, one write of ``y``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import epilogue
from .configuration import Box, Configuration, size_type
from .conv_s8 import Description
from .targets import of


@triton.jit
def depthwise_s8_kernel(
    x,
    weight,
    multiplier,
    bias,
    residual,
    y,
    m,
    height,
    width,
    channels,
    out_height,
    out_width,
    stride_h,
    stride_w,
    top,
    left,
    dilation_h,
    dilation_w,
    x_zero,
    y_zero,
    low,
    high,
    residual_zero,
    residual_scale,
    KH: tl.constexpr,
    KW: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """``x: [images, height, width, channels]``, ``weight: [KH, KW, channels]``; ``m = images * out_height * out_width``."""
    pixels = tl.program_id(0) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    c = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    here = c < channels
    image = pixels // (out_height * out_width)
    ih = pixels // out_width % out_height * stride_h - top
    iw = pixels % out_width * stride_w - left
    image_at = x + image.to(tl.int64)[:, None] * height * width * channels + c[None, :]
    acc = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), tl.int32)
    for tap in range(KH * KW):
        h = ih + tap // KW * dilation_h
        w = iw + tap % KW * dilation_w
        inside = (pixels < m) & (h >= 0) & (h < height) & (w >= 0) & (w < width)
        at = image_at + ((h * width + w) * channels)[:, None]
        codes = tl.load(at, inside[:, None] & here[None, :], x_zero).to(tl.int32)
        p = tl.load(weight + tap * channels + c, here, 0).to(tl.int32)
        acc += (codes - x_zero) * p[None, :]
    scaled = epilogue.affine(
        acc, tl.load(multiplier + c, here, 0.0)[None, :], tl.load(bias + c, here, 0.0)[None, :]
    )
    at = pixels.to(tl.int64)[:, None] * channels + c[None, :]
    real = (pixels < m)[:, None] & here[None, :]
    if residual is not None:
        other = tl.load(residual + at, real, 0).to(tl.float32)
        scaled += (other - residual_zero) * residual_scale
    tl.store(y + at, epilogue.to_codes(scaled, y_zero, low, high), real)


def repack(weight: Tensor) -> Tensor:
    """``[C, KH, KW, 1]`` int8 to the kernel's ``[KH, KW, C]``, so that a program's weights of a tap are one run."""
    return weight[..., 0].permute(1, 2, 0).contiguous()


def choose(description: Description, target: str) -> Configuration:
    """How a convolution compiles; the same for every target."""
    d = description
    channels = min(64, max(16, triton.next_power_of_2(d.channels)))
    box = Box((("BLOCK_PIXELS", 2048 // channels), ("BLOCK_CHANNELS", channels)))
    return Configuration("depthwise_s8", target, box, (("KH", d.kernel[0]), ("KW", d.kernel[1])))


def launch(
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
    residual: tuple[Tensor, int, float] | None = None,
) -> Tensor:
    """As ``conv_s8.launch`` with as many groups as channels, but for the weight.

    Args:
        weight: ``[KH, KW, C]`` int8 of :func:`repack`.
    """
    images, height, width, channels = x.shape
    kernel = tuple(weight.shape[:2])
    description = Description(
        images, height, width, channels, channels, kernel, stride, padding, dilation, channels
    )
    configuration = choose(description, of(x.device))
    out_height, out_width = description.out
    y = torch.empty(images, out_height, out_width, channels, dtype=torch.uint8, device=x.device)
    m, box = images * out_height * out_width, configuration.tile.constants
    grid = triton.cdiv(m, box["BLOCK_PIXELS"]), triton.cdiv(channels, box["BLOCK_CHANNELS"])
    other, other_zero, other_scale = residual or (None, 0, 0.0)
    sizes = m, height, width, channels, out_height, out_width
    steps = *stride, padding[0], padding[1], *dilation
    codes = x_zero, float(y_zero), float(low), float(high), float(other_zero), float(other_scale)
    tensors = x, weight, multiplier, bias, other, y
    depthwise_s8_kernel[grid](*tensors, *sizes, *steps, *codes, **configuration.options)
    return y


# ------------------------------------------------------------------------------------------------ ahead of time
_SAME = Description(32, 56, 56, 144, 144, (3, 3), (1, 1), (1, 1, 1, 1), groups=144)
CASES = {
    "56x56x144-3x3": _SAME,
    "28x28x192-5x5-residual": replace(
        _SAME, height=28, width=28, channels=192, outputs=192, groups=192, kernel=(5, 5), residual=True
    ),
    "112x112x24-stride-2": replace(
        _SAME, height=112, width=112, channels=24, outputs=24, groups=24, stride=(2, 2)
    ),
}


def compiled(description: Description, target: str) -> Iterator[tuple[Any, Configuration, dict[str, str]]]:
    """Each kernel that a launch runs, how, and Triton's types of its parameters."""
    d = description
    sizes = {
        "m": d.images * d.out[0] * d.out[1],
        "height": d.height,
        "width": d.width,
        "channels": d.channels,
        "out_height": d.out[0],
        "out_width": d.out[1],
    }
    steps = ("stride_h", "stride_w", "top", "left", "dilation_h", "dilation_w", "x_zero")
    signature = {
        **dict.fromkeys(("x", "y"), "*u8:16"),
        "weight": "*i8:16",
        **dict.fromkeys(("multiplier", "bias"), "*fp32:16"),
        **{name: size_type(size) for name, size in sizes.items()},
        **dict.fromkeys(steps, "i32"),
        **dict.fromkeys(("y_zero", "low", "high", "residual_zero", "residual_scale"), "fp32"),
    }
    if d.residual:
        signature["residual"] = "*u8:16"
    yield depthwise_s8_kernel, choose(d, target), signature
