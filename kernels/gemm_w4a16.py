"""W4A16 matrix product for few rows: 4-bit weights, float16 or bfloat16 activations, sums in float32.

    y = sum_g scale_g * (x_g @ (w_g - zero_g).T)

A weight less its zero point is a whole number that float16 and bfloat16 hold exactly, so what tensor cores multiply is
exact and a scale meets only sums: no weight is ever rounded. Unpacking needs no conversion: a nibble or-ed into the last
bits of 1024.0 (float16) or 128.0 (bfloat16) is that number plus the code, and one subtraction takes the rest away.

    repacked[b, n, j]   as in gemm_w4a8.py, codes as w + 8 in 0..15

Few rows leave processors idle, so the groups are shared by SPLITS programs a tile. Each writes float32 sums of its own
and a second kernel adds them in ascending order: the same bytes in every run. Bound by the weight's bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configuration import FLOATS, Box, Configuration, Tile, size_type
from .targets import find, of

# Four bytes to four floats: the bytes of a code and of the upper half of 1024.0 or 128.0 by turns.
_UNPACK = "and.b32 t, t, 0x0F0F0F0F; prmt.b32 $0, t, FLOAT, 0x4140; prmt.b32 $1, t, FLOAT, 0x4342; }"
_LOW, _HIGH = "{ .reg .b32 t; mov.b32 t, $2; ", "{ .reg .b32 t; shr.b32 t, $2, 4; "
_ASSEMBLY = {
    (high, half): (_HIGH if high else _LOW) + _UNPACK.replace("FLOAT", "0x64" if half else "0x43")
    for high in (False, True)
    for half in (False, True)
}
LOW_FP16 = tl.constexpr(_ASSEMBLY[False, True])
LOW_BF16 = tl.constexpr(_ASSEMBLY[False, False])
HIGH_FP16 = tl.constexpr(_ASSEMBLY[True, True])
HIGH_BF16 = tl.constexpr(_ASSEMBLY[True, False])


@triton.jit
def near(codes, HIGH: tl.constexpr, HALF_FLOAT: tl.constexpr, PTX: tl.constexpr):
    """The low or high nibbles of uint8 as 1024 + code in float16, or as 128 + code in bfloat16."""
    if PTX and HALF_FLOAT:
        how: tl.constexpr = HIGH_FP16 if HIGH else LOW_FP16
        result = tl.inline_asm_elementwise(how, "=r,=r,r", [codes], dtype=tl.float16, is_pure=True, pack=4)
    elif PTX:
        how: tl.constexpr = HIGH_BF16 if HIGH else LOW_BF16
        result = tl.inline_asm_elementwise(how, "=r,=r,r", [codes], dtype=tl.bfloat16, is_pure=True, pack=4)
    else:
        nibbles = (codes >> 4 if HIGH else codes & 15).to(tl.int16)
        bits = nibbles | (0x6400 if HALF_FLOAT else 0x4300)
        result = bits.to(tl.float16 if HALF_FLOAT else tl.bfloat16, bitcast=True)
    return result


@triton.jit
def gemm_w4a16_kernel(
    x,
    codes,
    scale,
    offset,
    y,
    m,
    n,
    k,
    blocks_each,
    GROUP: tl.constexpr,
    HALF_FLOAT: tl.constexpr,
    WHOLE_K: tl.constexpr,
    PTX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``x: [m, k]`` times ``codes: [blocks, n, BLOCK_K / 2]`` into ``y: [m, n]``, or ``[splits, m, n]`` float32.

    ``offset: [groups, n]``, dtype of ``x``: 1032 (bfloat16: 136) plus the zero point. Axis 2 of the launch is the split, of
    ``blocks_each`` blocks. GROUP: 32, 64, 128, or 0 for a whole row.
    """
    HALF: tl.constexpr = BLOCK_K // 2
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(2)
    here = columns < n
    # Past the ends row 0 and column 0 are read again: loads need no mask for them, and the store drops them.
    real = tl.where(here, columns, 0)
    j = tl.arange(0, HALF)
    start = split * blocks_each
    # As in gemm_s8.py, a step moves two numbers on that are the same for all threads.
    x += tl.program_id(0).to(tl.int64) * BLOCK_M * k + start * BLOCK_K
    codes += (start.to(tl.int64) * n + tl.program_id(1) * BLOCK_N) * HALF
    x_at = tl.where(rows < m, tl.arange(0, BLOCK_M), 0)[:, None] * k + j[None, :]
    codes_at = tl.where(here, tl.arange(0, BLOCK_N), 0)[None, :] * HALF + j[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for b in range(start, tl.minimum(start + blocks_each, tl.cdiv(k, BLOCK_K))):
        p = tl.load(codes + codes_at)
        low_g = 0 if GROUP == 0 else (2 * b if GROUP < BLOCK_K else b)
        high_g = low_g + (1 if GROUP == HALF else 0)
        if WHOLE_K:
            low_x = tl.load(x + x_at)
            high_x = tl.load(x + x_at + HALF)
        else:
            # Past the end of a row x is 0, and so is what a weight of the padding adds.
            left = k - b * BLOCK_K
            low_x = tl.load(x + x_at, j[None, :] < left, 0.0)
            high_x = tl.load(x + x_at + HALF, j[None, :] < left - HALF, 0.0)
            # A second group of which there is nothing: any real scale will do.
            high_g = tl.where(left > HALF, high_g, low_g)
        low = near(p, False, HALF_FLOAT, PTX) - tl.load(offset + low_g * n + real)[None, :]
        high = near(p, True, HALF_FLOAT, PTX) - tl.load(offset + high_g * n + real)[None, :]
        if GROUP == 0:
            total = tl.dot(low_x, low, total)
            total = tl.dot(high_x, high, total)
        elif GROUP == HALF:
            total += tl.dot(low_x, low) * tl.load(scale + low_g * n + real)[None, :]
            total += tl.dot(high_x, high) * tl.load(scale + high_g * n + real)[None, :]
        else:
            acc = tl.dot(low_x, low)
            total += tl.dot(high_x, high, acc) * tl.load(scale + low_g * n + real)[None, :]
        x += BLOCK_K
        codes += n.to(tl.int64) * HALF
    if GROUP == 0:
        total *= tl.load(scale + real)[None, :]
    at = (split.to(tl.int64) * m + rows)[:, None] * n + columns[None, :]
    tl.store(y + at, total.to(y.dtype.element_ty), (rows < m)[:, None] & here[None, :])


@triton.jit
def add_splits_kernel(parts, y, size, splits, BLOCK: tl.constexpr):
    """``parts: [splits, size]`` float32, added in ascending order, rounded once to the dtype of ``y: [size]``."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        total += tl.load(parts + split * size.to(tl.int64) + i, i < size, 0.0)
    tl.store(y + i, total.to(y.dtype.element_ty), i < size)


# ----------------------------------------------------------------------------------------------------- weights
@dataclass(frozen=True)
class Weight:
    """4-bit weights in the kernel's order; made once a layer by :func:`repack`.

    Attributes:
        codes: ``[ceil(K / 2H), N, H]`` uint8, two codes of 0..15 a byte; H is 32 for groups of 32 and 64, else 64.
        scale: ``[G, N]`` float32.
        offset: ``[G, N]`` float16 or bfloat16, what is taken from an unpacked number.
        group: 32, 64 or 128; 0 for a whole row.
    """

    codes: Tensor
    scale: Tensor
    offset: Tensor
    group: int


def repack(
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    group_size: int | None,
    signed: bool,
    dtype: torch.dtype,
) -> Weight:
    """Lay weights out for the kernel.

    Args:
        codes: ``[N, K]`` integers, -8..7 if ``signed``, else 0..15; of 2 or 3 bits too.
        scale: ``[N, G]`` float32.
        zero_point: ``[N, G]`` int32, within 4-bit codes; None means 0.
        group_size: 32, 64 or 128; None for a whole row.
        dtype: of the activations, float16 or bfloat16.
    """
    n, k = codes.shape
    half, shift = 32 if group_size in (32, 64) else 64, 8 if signed else 0
    padded = torch.nn.functional.pad(codes.to(torch.int32) + shift, (0, -k % (2 * half)))
    padded = padded.reshape(n, -1, 2, half)
    bytes_ = (padded[:, :, 0] | (padded[:, :, 1] << 4)).to(torch.uint8)
    zero = torch.zeros_like(scale) if zero_point is None else zero_point
    offset = (1024 if dtype == torch.float16 else 128) + shift + zero
    return Weight(
        bytes_.transpose(0, 1).contiguous(),
        scale.T.contiguous(),
        offset.to(dtype).T.contiguous(),
        group_size or 0,
    )


# Largest first.
_NVIDIA = (Tile(64, 128, 128, 8, 3), Tile(32, 128, 128, 4, 3), Tile(16, 128, 128, 4, 4))
TILES = {
    **dict.fromkeys(("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"), _NVIDIA),
    "gfx942": (Tile(64, 64, 128, 4, 2), Tile(32, 64, 128, 2, 2), Tile(16, 64, 128, 2, 2)),
    "interpreter": (Tile(64, 64, 128, 4, 1),),
}


@dataclass(frozen=True)
class Description:
    """One product.

    Attributes:
        m, n, k: rows, outputs, products a sum.
        group: 32, 64 or 128; 0 for a whole row.
        dtype: ``"fp16"`` or ``"bf16"``.
    """

    m: int
    n: int
    k: int
    group: int = 128
    dtype: str = "fp16"


def choose(description: Description, target: str) -> Configuration:
    """The tile for a product on a target."""
    d = description
    tiles = TILES[target]
    fitting = [tile for tile in tiles if tile.m < 2 * d.m] or [tiles[-1]]
    tile = fitting[0]
    if d.group in (32, 64):
        # Half as long a step: no more warps than have 16 bytes of each operand for every thread, but two.
        most = min(2 * tile.m, tile.n) * 32 // (16 * find(target).warp)
        warps = min(tile.warps, max(most, 2))
        tile = replace(tile, n=max(64, tile.n * warps // tile.warps), k=64, warps=warps)
    flags = {
        "GROUP": d.group,
        "HALF_FLOAT": d.dtype == "fp16",
        "WHOLE_K": d.k % tile.k == 0,
        "PTX": find(target).backend == "cuda",
    }
    return Configuration("gemm_w4a16", target, tile, tuple(flags.items()))


def choose_splits(description: Description, configuration: Configuration) -> tuple[int, int]:
    """Programs that share a tile's sum, enough to fill the processors twice, and blocks of each.

    Every program has four blocks at least: fewer would not fill its pipeline.
    """
    d, tile = description, configuration.tile.constants
    blocks = triton.cdiv(d.k, tile["BLOCK_K"])
    tiles = triton.cdiv(d.m, tile["BLOCK_M"]) * triton.cdiv(d.n, tile["BLOCK_N"])
    wanted = max(1, min(2 * find(configuration.target).processors // tiles, blocks // 4))
    each = triton.cdiv(blocks, wanted)
    return triton.cdiv(blocks, each), each


_ADD = Box((("BLOCK", 1024),))


def launch(x: Tensor, weight: Weight, *, splits: int | None = None) -> Tensor:
    """``x @ dequantize(weight).T``, summed in float32 and rounded once.

    Args:
        x: ``[M, K]`` float16 or bfloat16, contiguous; the dtype that ``weight`` was repacked for.
        weight: of :func:`repack`.
        splits: programs that share a tile's sum at most; :func:`choose_splits` where None is given.

    Returns:
        ``[M, N]``, dtype of ``x``.
    """
    (m, k), n = x.shape, weight.codes.shape[1]
    description = Description(m, n, k, weight.group, FLOATS[x.dtype])
    configuration = choose(description, of(x.device))
    tile = configuration.tile.constants
    if splits is None:
        splits, each = choose_splits(description, configuration)
    else:
        each = triton.cdiv(weight.codes.shape[0], splits)
        splits = triton.cdiv(weight.codes.shape[0], each)
    y = torch.empty(m, n, dtype=x.dtype, device=x.device)
    parts = y if splits == 1 else torch.empty(splits, m, n, dtype=torch.float32, device=x.device)
    grid = triton.cdiv(m, tile["BLOCK_M"]), triton.cdiv(n, tile["BLOCK_N"]), splits
    tensors = x, weight.codes, weight.scale, weight.offset, parts
    gemm_w4a16_kernel[grid](*tensors, m, n, k, each, **configuration.options)
    if splits > 1:
        second = Configuration("gemm_w4a16", configuration.target, _ADD, ())
        grid = (triton.cdiv(m * n, second.constants["BLOCK"]),)
        add_splits_kernel[grid](parts, y, m * n, splits, **second.options)
    return y


# ------------------------------------------------------------------------------------------------ ahead of time
CASES = {
    "M1-g128": Description(1, 4096, 4096),
    "M16-g128-bf16": Description(16, 4096, 4096, dtype="bf16"),
    "M1-g32": Description(1, 11008, 4096, 32),
    "M16-row": Description(16, 4096, 11008, 0),
    "M32-g64": Description(32, 4096, 4096, 64),
    "M32-g128": Description(32, 4096, 4096),
    "M64-g128": Description(64, 4096, 4096),
    "M256-g128": Description(256, 28672, 4096),
    "M3-ragged": Description(3, 1001, 2049, 0),
}


def compiled(description: Description, target: str) -> Iterator[tuple[Any, Configuration, dict[str, str]]]:
    """Each kernel that a launch runs, how, and Triton's types of its parameters."""
    d, floats = description, f"*{description.dtype}:16"
    configuration = choose(d, target)
    splits, each = choose_splits(d, configuration)
    signature = {
        "x": floats,
        "codes": "*u8:16",
        "scale": "*fp32:16",
        "offset": floats,
        "y": floats if splits == 1 else "*fp32:16",
        **{name: size_type(getattr(d, name)) for name in ("m", "n", "k")},
        "blocks_each": size_type(each),
    }
    yield gemm_w4a16_kernel, configuration, signature
    if splits > 1:
        signature = {
            "parts": "*fp32:16",
            "y": floats,
            "size": size_type(d.m * d.n),
            "splits": size_type(splits),
        }
        yield add_splits_kernel, Configuration("gemm_w4a16", target, _ADD, ()), signature
