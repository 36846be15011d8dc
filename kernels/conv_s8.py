"""8-bit convolution over NHWC codes: an implicit matrix product with the requantising epilogue and a residual.

Row ``r`` of the product is an output pixel ``(image, oh, ow)``, column ``n`` an output channel of one group, and the sum
runs over ``(kh, kw, channel)`` in that order, which is how a weight ``[N, KH, KW, C]`` lies. No patch is ever copied: the
address of ``x`` is computed for each. Codes and weights meet as in ``gemm_s8.py``:

    acc = sum x' w + correction[n],   x' = x - 128,   correction = (128 - x_zero) sum w

Outside the image x is x_zero, so that a padded product and its share of the correction cancel. With 32 channels or more
a step stays within one ``(kh, kw)``; with fewer (the first layer, narrow groups) it runs over all of the weight's row.
Bound by operations for 3 x 3, by bytes for 1 x 1 on small channel counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import epilogue, packed_bytes
from .configuration import Configuration, Tile, largest_that_fills, size_type
from .gemm_s8 import tile_of
from .targets import find, of


@triton.jit
def conv_s8_kernel(
    x,
    weight,
    multiplier,
    bias,
    correction,
    residual,
    y,
    m,
    height,
    width,
    channels,
    out_height,
    out_width,
    group_channels,
    group_outputs,
    outputs,
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
    BY_TAP: tl.constexpr,
    WHOLE_K: tl.constexpr,
    PTX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``x: [images, height, width, channels]``, ``weight: [outputs, KH, KW, group_channels]``; the rest as in :func:`launch`.

    ``m = images * out_height * out_width``. Axis 1 of the launch is the group. BY_TAP: a step stays within one ``(kh, kw)``;
    WHOLE_K: steps of BLOCK_K end where their run of channels ends.
    """
    row, column = tile_of(tl.program_id(0), m, group_outputs, BLOCK_M, BLOCK_N)
    group = tl.program_id(1)
    rows = row * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = column * BLOCK_N + tl.arange(0, BLOCK_N)
    here = columns < group_outputs
    out = group * group_outputs + columns
    # Past the ends pixel 0 and channel 0 are read again: the store drops what comes of it.
    pixel = tl.where(rows < m, rows, 0)
    image = pixel // (out_height * out_width)
    ih = pixel // out_width % out_height * stride_h - top
    iw = pixel % out_width * stride_w - left
    image_at = x + image.to(tl.int64) * height * width * channels + group * group_channels
    # What is loaded outside the image is 0, as hardware fills it; this flip makes it x_zero - 128.
    outside = x_zero ^ 0x80
    length = KH * KW * group_channels
    ks = tl.arange(0, BLOCK_K)
    weight_at = weight + tl.where(here, out, 0).to(tl.int64)[None, :] * length + ks[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    if BY_TAP:
        chunks = tl.cdiv(group_channels, BLOCK_K)
        for step in range(KH * KW * chunks):
            tap = step // chunks
            first = step % chunks * BLOCK_K
            h = ih + tap // KW * dilation_h
            w = iw + tap % KW * dilation_w
            inside = (h >= 0) & (h < height) & (w >= 0) & (w < width)
            x_at = image_at[:, None] + ((h * width + w) * channels)[:, None] + (first + ks)[None, :]
            p_at = weight_at + tap * group_channels + first
            if WHOLE_K:
                codes = tl.load(x_at, inside[:, None], 0)
                p = tl.load(p_at)
            else:
                codes = tl.load(x_at, inside[:, None] & (ks < group_channels - first)[None, :], 0)
                p = tl.load(p_at, (ks < group_channels - first)[:, None], 0)
            masks = tl.where(inside, 0x80, outside).to(tl.uint8)[:, None]
            acc = tl.dot(packed_bytes.flip_each(codes, masks, PTX), p, acc, out_dtype=tl.int32)
    else:
        for first in range(0, length, BLOCK_K):
            k = first + ks
            tap = k // group_channels
            h = ih[:, None] + (tap // KW * dilation_h)[None, :]
            w = iw[:, None] + (tap % KW * dilation_w)[None, :]
            inside = (h >= 0) & (h < height) & (w >= 0) & (w < width) & (k < length)[None, :]
            x_at = image_at[:, None] + (h * width + w) * channels + (k % group_channels)[None, :]
            codes = tl.load(x_at, inside, x_zero)
            p = tl.load(weight_at + first, (k < length)[:, None], 0)
            acc = tl.dot(packed_bytes.flip(codes, 0x80, PTX), p, acc, out_dtype=tl.int32)
    acc += tl.load(correction + out, here, 0)[None, :]
    scaled = epilogue.affine(
        acc, tl.load(multiplier + out, here, 0.0)[None, :], tl.load(bias + out, here, 0.0)[None, :]
    )
    at = rows.to(tl.int64)[:, None] * outputs + out[None, :]
    real = (rows < m)[:, None] & here[None, :]
    if residual is not None:
        other = tl.load(residual + at, real, 0).to(tl.float32)
        scaled += (other - residual_zero) * residual_scale
    tl.store(y + at, epilogue.to_codes(scaled, y_zero, low, high), real)


# Largest first.
_NVIDIA = (
    Tile(128, 128, 64, 8, 3),
    Tile(128, 64, 64, 4, 3),
    Tile(64, 64, 64, 4, 3),
    Tile(64, 32, 64, 4, 3),
)
TILES = {
    **dict.fromkeys(("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"), _NVIDIA),
    "gfx942": (Tile(128, 64, 64, 4, 2), Tile(64, 64, 64, 4, 2), Tile(64, 32, 64, 2, 2)),
    "interpreter": (Tile(64, 64, 64, 4, 1),),
}


@dataclass(frozen=True)
class Description:
    """One convolution.

    Attributes:
        images, height, width, channels: of ``x``.
        outputs: channels of ``y``.
        kernel, stride, dilation: ``(vertical, horizontal)``.
        padding: ``(top, left, bottom, right)``.
        groups: divides both channel counts.
        residual: whether codes are added.
    """

    images: int
    height: int
    width: int
    channels: int
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    residual: bool = False

    @property
    def out(self) -> tuple[int, int]:
        """Height and width of ``y``."""
        top, left, bottom, right = self.padding
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True)]
        return (
            (self.height + top + bottom - reach[0]) // self.stride[0] + 1,
            (self.width + left + right - reach[1]) // self.stride[1] + 1,
        )


def choose(description: Description, target: str) -> Configuration:
    """The tile for a convolution on a target."""
    d = description
    m, channels = d.images * d.out[0] * d.out[1], d.channels // d.groups
    # The groups run side by side.
    tiles = [tile for tile in TILES[target] if tile.n < 2 * (d.outputs // d.groups)]
    if channels < 32:
        # An address for every byte: with more rows they would spill.
        tiles = [tile for tile in tiles if tile.m == 64]
    tile = largest_that_fills(tiles or TILES[target][-1:], m, d.outputs, find(target))
    by_tap = channels >= 32
    tile = replace(tile, k=64 if channels >= 64 else 32)
    flags = {
        "KH": d.kernel[0],
        "KW": d.kernel[1],
        "BY_TAP": by_tap,
        "WHOLE_K": by_tap and channels % tile.k == 0,
        "PTX": find(target).backend == "cuda",
    }
    return Configuration("conv_s8", target, tile, tuple(flags.items()))


def launch(
    x: Tensor,
    weight: Tensor,
    multiplier: Tensor,
    bias: Tensor,
    correction: Tensor,
    *,
    x_zero: int,
    y_zero: int,
    low: int = 0,
    high: int = 255,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    residual: tuple[Tensor, int, float] | None = None,
    configuration: Configuration | None = None,
) -> Tensor:
    """``clamp(round(float(acc) * multiplier + bias [+ (r - z_r) m_r]) + y_zero, low, high)``.

    Args:
        x: ``[B, H, W, C]`` uint8 codes, contiguous.
        weight: ``[N, KH, KW, C / groups]`` int8 codes, zero point 0, contiguous.
        multiplier, bias: ``[N]`` float32.
        correction: ``[N]`` int32: ``gemm_s8.correction_of`` the weight as ``[N, KH * KW * C / groups]``.
        x_zero: zero point of ``x``, with which the padding is filled.
        y_zero, low, high: zero point and clamp bounds of the result.
        stride, dilation: ``(vertical, horizontal)``.
        padding: ``(top, left, bottom, right)``.
        groups: divides ``C`` and ``N``.
        residual: codes shaped like the result, contiguous, their zero point, and ``s_r / s_y``.
        configuration: of :func:`choose`, which is asked where None is given.

    Returns:
        ``[B, OH, OW, N]`` uint8.
    """
    images, height, width, channels = x.shape
    n, *kernel, group_channels = weight.shape
    description = Description(
        images,
        height,
        width,
        channels,
        n,
        tuple(kernel),
        stride,
        padding,
        dilation,
        groups,
        residual is not None,
    )
    if configuration is None:
        configuration = choose(description, of(x.device))
    out_height, out_width = description.out
    y = torch.empty(images, out_height, out_width, n, dtype=torch.uint8, device=x.device)
    m, tile = images * out_height * out_width, configuration.tile.constants
    grid = (triton.cdiv(m, tile["BLOCK_M"]) * triton.cdiv(n // groups, tile["BLOCK_N"]), groups)
    other, other_zero, other_scale = residual or (None, 0, 0.0)
    sizes = m, height, width, channels, out_height, out_width, group_channels, n // groups, n
    steps = *stride, padding[0], padding[1], *dilation
    codes = x_zero, float(y_zero), float(low), float(high), float(other_zero), float(other_scale)
    tensors = x, weight, multiplier, bias, correction, other, y
    conv_s8_kernel[grid](*tensors, *sizes, *steps, *codes, **configuration.options)
    return y


# ------------------------------------------------------------------------------------------------ ahead of time
_SAME = {"kernel": (3, 3), "padding": (1, 1, 1, 1)}
CASES = {
    "first-7x7": Description(32, 224, 224, 3, 64, (7, 7), (2, 2), (3, 3, 3, 3)),
    "56x56x64-3x3": Description(32, 56, 56, 64, 64, **_SAME),
    "28x28x128-3x3": Description(64, 28, 28, 128, 128, **_SAME),
    "14x14x256-3x3-residual": Description(64, 14, 14, 256, 256, residual=True, **_SAME),
    "14x14x1024-1x1": Description(14, 14, 14, 1024, 256),
    "14x14x1024-1x1-8-images": Description(8, 14, 14, 1024, 256),
    "14x14x1024-1x1-4-images": Description(4, 14, 14, 1024, 256),
    "7x7x512-3x3": Description(64, 7, 7, 512, 512, **_SAME),
    "7x7x512-3x3-one-image": Description(1, 7, 7, 512, 512, **_SAME),
    "28x28x96-1x1": Description(32, 28, 28, 96, 24),
    "28x28x40-3x3": Description(32, 28, 28, 40, 80, **_SAME),
    "14x14-groups-32": Description(32, 14, 14, 128, 128, groups=32, **_SAME),
}


def compiled(description: Description, target: str) -> Iterator[tuple[Any, Configuration, dict[str, str]]]:
    """Each kernel that a launch runs, how, and Triton's types of its parameters."""
    d = description
    floats = ("y_zero", "low", "high", "residual_zero", "residual_scale")
    sizes = {
        "m": d.images * d.out[0] * d.out[1],
        "height": d.height,
        "width": d.width,
        "channels": d.channels,
        "out_height": d.out[0],
        "out_width": d.out[1],
        "group_channels": d.channels // d.groups,
        "group_outputs": d.outputs // d.groups,
        "outputs": d.outputs,
    }
    steps = ("stride_h", "stride_w", "top", "left", "dilation_h", "dilation_w", "x_zero")
    signature = {
        **dict.fromkeys(("x", "y"), "*u8:16"),
        "weight": "*i8:16",
        **dict.fromkeys(("multiplier", "bias"), "*fp32:16"),
        "correction": "*i32:16",
        **{name: size_type(size) for name, size in sizes.items()},
        **dict.fromkeys(steps, "i32"),
        **dict.fromkeys(floats, "fp32"),
    }
    if d.residual:
        signature["residual"] = "*u8:16"
    yield conv_s8_kernel, choose(d, target), signature
