"""Round to a grid and back, codes, and the gradients of learned scales and zero points.

Every layout is ``(outer, channels, inner)``: element ``i`` of the contiguous tensor has
``scale[(i // inner) % channels]``. Per tensor that is ``(1, 1, n)``; groups are ``(1, n / group, group)``.

Bound by bytes. Forward reads ``x`` and writes ``y``, 8 bytes an element in float32; backward reads ``x`` and ``dy``
and writes ``dx``, 12 bytes: whether an element was inside the grid is computed anew, not stored. Scales stay on the
device.

The sums of a channel are taken in an order that only the shape fixes, without atomics. First every program adds its
share of ``(outer, inner)`` element by element, then its own elements, into one row of ``parts``; then one program a
block of channels adds the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import grid
from .configuration import FLOATS, Box, Configuration, size_type
from .targets import of

ELEMENTS = 2048  # of a program at a time: sixteen a thread
PROGRAMS = 1024  # that share the sums, where there are elements enough


@triton.jit
def fake_quantize_kernel(
    x,
    scale,
    zero_point,
    y,
    rows,
    channels,
    inner,
    qmin,
    qmax,
    TO_CODES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
):
    """``x`` as ``[rows, inner]``, ``rows = outer * channels``, to values of its dtype or to 8-bit codes."""
    chunks = tl.cdiv(inner, BLOCK_INNER)
    program = tl.program_id(0)
    row = (program // chunks).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    i = (program % chunks) * BLOCK_INNER + tl.arange(0, BLOCK_INNER)
    here = (row < rows)[:, None] & (i < inner)[None, :]
    s = tl.load(scale + row % channels)[:, None]
    z = tl.load(zero_point + row % channels)[:, None]
    at = row[:, None] * inner + i[None, :]
    v = tl.load(x + at, here, 0.0).to(tl.float32)
    if TO_CODES:
        tl.store(y + at, grid.quantize(v, s, z, qmin, qmax), here)
    else:
        tl.store(y + at, grid.fake_quantize(v, s, z, qmin, qmax), here)


@triton.jit
def backward_kernel(
    dy,
    x,
    scale,
    zero_point,
    dx,
    parts,
    outer,
    channels,
    inner,
    steps,
    qmin,
    qmax,
    SUMS: tl.constexpr,
    BLOCK_OUTER: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
):
    """One block of channels over ``steps`` of the blocks of ``(outer, inner)``; ``parts: [2, programs, channels]``.

    The slope of ``y`` by the scale is ``(u - z) - x / s`` inside the grid and the clamped ``u - z`` outside; by the
    zero point it is 0 inside and ``-s`` outside.
    """
    block = tl.program_id(0)
    c = block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    s = tl.load(scale + c, c < channels, 1.0)[None, :, None]
    z = tl.load(zero_point + c, c < channels, 0.0)[None, :, None]
    chunks = tl.cdiv(inner, BLOCK_INNER)
    blocks = tl.cdiv(outer, BLOCK_OUTER) * chunks
    first = tl.program_id(1) * steps
    into_scale = tl.zeros((BLOCK_OUTER, BLOCK_CHANNELS, BLOCK_INNER), tl.float32)
    into_zero = tl.zeros((BLOCK_OUTER, BLOCK_CHANNELS, BLOCK_INNER), tl.float32)
    for step in range(first, tl.minimum(first + steps, blocks)):
        o = (step // chunks).to(tl.int64) * BLOCK_OUTER + tl.arange(0, BLOCK_OUTER)
        i = (step % chunks) * BLOCK_INNER + tl.arange(0, BLOCK_INNER)
        here = (o < outer)[:, None, None] & (c < channels)[None, :, None] & (i < inner)[None, None, :]
        at = (o[:, None, None] * channels + c[None, :, None]) * inner + i[None, None, :]
        v = tl.load(x + at, here, 0.0).to(tl.float32)
        slope_y = tl.load(dy + at, here, 0.0)
        u = grid.grid_position(v, s, z)
        inside = grid.in_range(u, qmin, qmax)
        tl.store(dx + at, tl.where(inside, slope_y, 0.0), here)
        if SUMS:
            slope_y = slope_y.to(tl.float32)
            by_scale = tl.where(inside, (u - z) - tl.div_rn(v, s), grid.clamp_code(u, qmin, qmax) - z)
            # Where nothing was loaded dy is 0.
            into_scale += slope_y * by_scale
            into_zero += tl.where(inside, 0.0, slope_y)
    if SUMS:
        row = tl.program_id(1).to(tl.int64) * channels + c
        second = tl.num_programs(1).to(tl.int64) * channels
        tl.store(parts + row, tl.sum(tl.sum(into_scale, 2), 0), c < channels)
        tl.store(parts + second + row, tl.sum(tl.sum(into_zero, 2), 0), c < channels)


@triton.jit
def sums_kernel(
    parts,
    scale,
    dscale,
    dzero,
    programs,
    channels,
    BLOCK_PROGRAMS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """The rows of ``parts`` added: ``dscale`` and ``dzero``, ``[channels]``."""
    c = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    into_scale = tl.zeros((BLOCK_PROGRAMS, BLOCK_CHANNELS), tl.float32)
    into_zero = tl.zeros((BLOCK_PROGRAMS, BLOCK_CHANNELS), tl.float32)
    # An argument of 1 is a constant here, which has no methods.
    second = tl.cast(programs, tl.int64) * channels
    for first in range(0, programs, BLOCK_PROGRAMS):
        p = first + tl.arange(0, BLOCK_PROGRAMS)
        here = (p < programs)[:, None] & (c < channels)[None, :]
        at = p.to(tl.int64)[:, None] * channels + c[None, :]
        into_scale += tl.load(parts + at, here, 0.0)
        into_zero += tl.load(parts + second + at, here, 0.0)
    s = tl.load(scale + c, c < channels, 0.0)
    tl.store(dscale + c, tl.sum(into_scale, 0), c < channels)
    tl.store(dzero + c, -s * tl.sum(into_zero, 0), c < channels)


@dataclass(frozen=True)
class Description:
    """One tensor on one grid.

    Attributes:
        outer, channels, inner: its layout.
        dtype: ``"fp32"``, ``"fp16"`` or ``"bf16"``.
    """

    outer: int
    channels: int
    inner: int
    dtype: str = "fp32"


def _box(**sizes: int) -> Box:
    """Powers of two that hold the sizes, the last first, as far as ELEMENTS go."""
    left, taken = ELEMENTS, {}
    for name, size in reversed(sizes.items()):
        taken[f"BLOCK_{name.upper()}"] = min(left, triton.next_power_of_2(size))
        left //= taken[f"BLOCK_{name.upper()}"]
    return Box(tuple(reversed(taken.items())))


def choose(description: Description, target: str, to_codes: bool = False) -> Configuration:
    """How :func:`launch` and :func:`launch_quantize` compile; the same for every target."""
    d = description
    box = _box(rows=d.outer * d.channels, inner=d.inner)
    return Configuration("fake_quantize", target, box, (("TO_CODES", to_codes),))


def choose_backward(
    description: Description, target: str, sums: bool = True
) -> tuple[Configuration, Configuration, int, int]:
    """How :func:`launch_backward` compiles its two kernels; programs that share a channel; blocks of each."""
    d = description
    first = _box(outer=d.outer, channels=d.channels, inner=d.inner)
    size = first.constants
    blocks = triton.cdiv(d.outer, size["BLOCK_OUTER"]) * triton.cdiv(d.inner, size["BLOCK_INNER"])
    wanted = max(1, PROGRAMS // triton.cdiv(d.channels, size["BLOCK_CHANNELS"]))
    steps = triton.cdiv(blocks, wanted)
    programs = triton.cdiv(blocks, steps)
    second = _box(programs=programs, channels=min(d.channels, 32))
    return (
        Configuration("fake_quantize", target, first, (("SUMS", sums),)),
        Configuration("fake_quantize", target, second, ()),
        programs,
        steps,
    )


def launch(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    y: Tensor,
    *,
    layout: tuple[int, int, int],
    qmin: int,
    qmax: int,
) -> None:
    """``(clamp(round(x / s) + z, qmin, qmax) - z) * s`` into ``y``, or the codes.

    Args:
        x: contiguous, float32, float16 or bfloat16, not empty.
        scale, zero_point: ``[channels]`` float32 in any shape, contiguous; zero points are whole numbers.
        y: contiguous, shape of ``x``. Of its dtype: values, and it may be ``x``. int8 or uint8: codes.
        layout: ``(outer, channels, inner)``.
        qmin, qmax: the grid's codes.
    """
    outer, channels, inner = layout
    to_codes = not y.dtype.is_floating_point
    configuration = choose(Description(*layout, FLOATS[x.dtype]), of(x.device), to_codes)
    size = configuration.constants
    rows = outer * channels
    grid_ = (triton.cdiv(rows, size["BLOCK_ROWS"]) * triton.cdiv(inner, size["BLOCK_INNER"]),)
    fake_quantize_kernel[grid_](
        x, scale, zero_point, y, rows, channels, inner, float(qmin), float(qmax), **configuration.options
    )


def launch_backward(
    dy: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    dx: Tensor,
    dscale: Tensor | None,
    dzero: Tensor | None,
    *,
    layout: tuple[int, int, int],
    qmin: int,
    qmax: int,
) -> None:
    """Gradients of :func:`launch` into ``dx``, ``dscale`` and ``dzero``.

    Args:
        dy, x, dx: contiguous, one shape and dtype; ``dx`` may be ``dy`` or ``x``.
        scale, zero_point, layout, qmin, qmax: as for :func:`launch`.
        dscale, dzero: ``[channels]`` float32 in any shape, contiguous; both None where they are not wanted.
    """
    outer, channels, inner = layout
    description = Description(*layout, FLOATS[x.dtype])
    sums = dscale is not None
    first, second, programs, steps = choose_backward(description, of(x.device), sums)
    parts = torch.empty(2, programs, channels if sums else 0, dtype=torch.float32, device=x.device)
    grid_ = (triton.cdiv(channels, first.constants["BLOCK_CHANNELS"]), programs)
    sizes = outer, channels, inner, steps, float(qmin), float(qmax)
    backward_kernel[grid_](dy, x, scale, zero_point, dx, parts, *sizes, **first.options)
    if sums:
        grid_ = (triton.cdiv(channels, second.constants["BLOCK_CHANNELS"]),)
        sums_kernel[grid_](parts, scale, dscale, dzero, programs, channels, **second.options)


# ------------------------------------------------------------------------------------------------ ahead of time
CASES = {
    "tensor": Description(1, 1, 1 << 24),
    "tensor-fp16": Description(1, 1, 1 << 24, "fp16"),
    "tensor-bf16": Description(1, 1, 1 << 24, "bf16"),
    "rows-of-weights": Description(1, 4096, 4096),
    "rows-of-weights-bf16": Description(1, 4096, 4096, "bf16"),
    "kernels-3x3": Description(1, 512, 9),
    "images-nchw": Description(64, 256, 3136),
    "images-nchw-ragged": Description(64, 512, 49),
    "images-nhwc": Description(64 * 3136, 256, 1),
    "groups-32": Description(1, 1 << 19, 32, "fp16"),
    "groups-128": Description(1, 1 << 17, 128, "bf16"),
}


def compiled(description: Description, target: str) -> Iterator[tuple[Any, Configuration, dict[str, str]]]:
    """Each kernel that a launch runs, how, and Triton's types of its parameters."""
    d, floats = description, f"*{description.dtype}:16"
    grid_ = {"scale": "*fp32:16", "zero_point": "*fp32:16", "qmin": "fp32", "qmax": "fp32"}
    sizes = {name: size_type(getattr(d, name)) for name in ("channels", "inner")}
    for to_codes in (False, True):
        signature = {"x": floats, "y": "*i8:16" if to_codes else floats, **grid_, **sizes}
        signature["rows"] = size_type(d.outer * d.channels)
        yield fake_quantize_kernel, choose(d, target, to_codes), signature
    first, second, programs, steps = choose_backward(d, target)
    signature = {"dy": floats, "x": floats, "dx": floats, "parts": "*fp32:16", **grid_, **sizes}
    yield backward_kernel, first, {**signature, "outer": size_type(d.outer), "steps": size_type(steps)}
    signature = dict.fromkeys(("parts", "scale", "dscale", "dzero"), "*fp32:16")
    sizes = {"programs": size_type(programs), "channels": size_type(d.channels)}
    yield sums_kernel, second, {**signature, **sizes}
