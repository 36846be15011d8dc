"""W4A8 matrix product: 4-bit weights, 8-bit activations, int8 tensor cores, groups added in float32.

    y = x_scale * sum_g scale_g * float(acc_g),   acc_g = sum_{k in g} (x - x_zero) (w - zero_g)
      = sum x' w  -  zero_g sum x'  -  x_zero' (sum w - n zero_g)

x' is x as int8 (uint8 codes less 128) and x_zero' its zero point; the sums over x' come from
``quantize_rows.launch_sums``, those over w from :func:`repack`. Groups are added in ascending order, each operation
rounded, so the bytes are those of the reference.

Unpacking must cost next to nothing, so the high nibble of a byte is used where it lies: ``p & 0xF0`` is 16 times the
upper code as int8, ``p << 4`` 16 times the lower one, and the sum is shifted back by 4 bits, exactly. For K shorter
than 2^31 / (16 * 8 * 128) = 131,072 a group that is still an int32. The two halves of a block multiply two stretches
of x, so no byte ever changes places:

    repacked[b, n, j]   low nibble: w[n, 2 H b + j],   high nibble: w[n, 2 H b + H + j],   j < H

H is 32 for groups of 32 and 64, else 64. With groups of 32 the halves of a block are two groups. A tile's weights are
one run of memory. Bound by: the weight's bytes when M is small, else by operations, of which every group costs four
a result beside its products.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import packed_bytes, quantize_rows
from .configuration import FLOATS, Configuration, Tile, largest_that_fills, size_type
from .gemm_s8 import tile_of
from .targets import find, of


@triton.jit
def add_group(total, acc, g, n, columns, scale, zero, weight_sum, x_sum, x_zero):
    """``total + scale_g * float(acc_g)``, corrected as in the formula above; ``acc`` holds 16 times the sum.

    ``scale, zero, weight_sum``: ``[groups, n]``; ``x_sum``: ``[groups]`` of each of the tile's rows.
    """
    here = columns < n
    at = g * n + columns
    true = acc >> 4
    if zero is not None:
        true -= tl.load(zero + at, here, 0)[None, :] * tl.load(x_sum + g)[:, None]
    if x_zero is not None:
        true -= x_zero[:, None] * tl.load(weight_sum + at, here, 0)[None, :]
    return total + true.to(tl.float32) * tl.load(scale + at, here, 0.0)[None, :]


@triton.jit
def gemm_w4a8_kernel(
    x,
    codes,
    scale,
    zero,
    weight_sum,
    x_scale,
    x_zero,
    x_sum,
    y,
    m,
    n,
    k,
    groups,
    GROUP: tl.constexpr,
    X_UNSIGNED: tl.constexpr,
    WHOLE_K: tl.constexpr,
    PTX: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``x: [m, k]`` times ``codes: [blocks, n, BLOCK_K / 2]``; the rest as in :func:`launch`.

    GROUP: 32, 64, 128, or 0 for a whole row. WHOLE_K: BLOCK_K divides ``k``.
    """
    HALF: tl.constexpr = BLOCK_K // 2
    row, column = tile_of(tl.program_id(0), m, n, BLOCK_M, BLOCK_N)
    rows = row * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = column * BLOCK_N + tl.arange(0, BLOCK_N)
    # Past the ends a tile's first row and column are read again: loads need no mask for them, and the store drops them.
    x_row = tl.where(rows < m, rows, 0).to(tl.int64)
    j = tl.arange(0, HALF)
    # As in gemm_s8.py, a step moves two numbers on that are the same for all threads.
    x += row.to(tl.int64) * BLOCK_M * k
    codes += column.to(tl.int64) * BLOCK_N * HALF
    x_at = tl.where(rows < m, tl.arange(0, BLOCK_M), 0)[:, None] * k + j[None, :]
    codes_at = tl.where(columns < n, tl.arange(0, BLOCK_N), 0)[None, :] * HALF + j[:, None]
    x_sum_at = x_sum
    if zero is not None:
        x_sum_at = x_sum + x_row * groups
    x_off = x_zero
    if x_zero is not None:
        x_off = tl.load(x_zero + x_row) - (128 if X_UNSIGNED else 0)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for b in range(tl.cdiv(k, BLOCK_K)):
        p = tl.load(codes + codes_at)
        if WHOLE_K:
            low_x = tl.load(x + x_at)
            high_x = tl.load(x + x_at + HALF)
        else:
            # Past the end of a row the weight is 0; what x is there does not matter.
            low_x = tl.load(x + x_at, j[None, :] < k - b * BLOCK_K, 0)
            high_x = tl.load(x + x_at + HALF, j[None, :] < k - b * BLOCK_K - HALF, 0)
        low_x = packed_bytes.flip(low_x, 0x80 if X_UNSIGNED else 0, PTX)
        high_x = packed_bytes.flip(high_x, 0x80 if X_UNSIGNED else 0, PTX)
        low = packed_bytes.low_nibbles(p, PTX)
        high = packed_bytes.high_nibbles(p, PTX)
        if GROUP == 0:
            acc = tl.dot(low_x, low, acc, out_dtype=tl.int32)
            acc = tl.dot(high_x, high, acc, out_dtype=tl.int32)
        elif GROUP == BLOCK_K:
            acc = tl.dot(low_x, low, out_dtype=tl.int32)
            acc = tl.dot(high_x, high, acc, out_dtype=tl.int32)
            total = add_group(total, acc, b, n, columns, scale, zero, weight_sum, x_sum_at, x_off)
        else:
            g = 2 * b
            acc = tl.dot(low_x, low, out_dtype=tl.int32)
            total = add_group(total, acc, g, n, columns, scale, zero, weight_sum, x_sum_at, x_off)
            acc = tl.dot(high_x, high, out_dtype=tl.int32)
            if WHOLE_K or g + 1 < groups:
                total = add_group(total, acc, g + 1, n, columns, scale, zero, weight_sum, x_sum_at, x_off)
        x += BLOCK_K
        codes += n.to(tl.int64) * HALF
    if GROUP == 0:
        total = add_group(total, acc, 0, n, columns, scale, zero, weight_sum, x_sum_at, x_off)
    result = total * tl.load(x_scale + x_row)[:, None]
    y_at = y + rows.to(tl.int64)[:, None] * n + columns[None, :]
    tl.store(y_at, result.to(y.dtype.element_ty), (rows < m)[:, None] & (columns < n)[None, :])


# ----------------------------------------------------------------------------------------------------- weights
@dataclass(frozen=True)
class Weight:
    """4-bit weights in the kernel's order; made once a layer by :func:`repack`.

    Attributes:
        codes: ``[ceil(K / 2H), N, H]`` uint8, two signed codes a byte as in the picture above, 0 past the end.
        scale: ``[G, N]`` float32.
        zero: ``[G, N]`` int32 zero points, or None where all are 0.
        sums: ``[G, N]`` int32, ``sum (w - zero)`` of each group.
        group: 32, 64 or 128; 0 for a whole row.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    sums: Tensor
    group: int


def repack(
    codes: Tensor, scale: Tensor, zero_point: Tensor | None, group_size: int | None, signed: bool
) -> Weight:
    """Lay weights out for the kernel.

    Args:
        codes: ``[N, K]`` integers, -8..7 if ``signed``, else 0..15; of 2 or 3 bits too.
        scale: ``[N, G]`` float32.
        zero_point: ``[N, G]`` int32; None means 0.
        group_size: 32, 64 or 128; None for a whole row, of at most 131,071.
    """
    n, k = codes.shape
    half = 32 if group_size in (32, 64) else 64
    codes = codes.to(torch.int32)
    if not signed:
        # Codes and zero points move together.
        codes = codes - 8
        zero_point = torch.zeros_like(scale, dtype=torch.int32) if zero_point is None else zero_point
        zero_point = zero_point - 8
    sums = codes.reshape(n, -1, group_size or k).sum(2, dtype=torch.int32)
    if zero_point is not None:
        sums = sums - (group_size or k) * zero_point
    padded = torch.nn.functional.pad(codes, (0, -k % (2 * half))).reshape(n, -1, 2, half)
    bytes_ = (padded[:, :, 0] & 15) | ((padded[:, :, 1] & 15) << 4)
    return Weight(
        bytes_.to(torch.uint8).transpose(0, 1).contiguous(),
        scale.T.contiguous(),
        None if zero_point is None else zero_point.T.contiguous(),
        sums.T.contiguous(),
        group_size or 0,
    )


# Largest first. With groups a result needs two registers, one for its group and one for all so far; with zero points
# or groups of 32 more values are alive, and wide tiles would spill.
_WHOLE_ROWS = Tile(128, 128, 128, 4, 3)
_GROUPS = Tile(128, 128, 128, 8, 3)
_MANY_VALUES = Tile(64, 128, 128, 8, 3)
_NARROW = (
    _MANY_VALUES,
    Tile(64, 64, 128, 4, 3),
    Tile(32, 64, 128, 4, 4),
    Tile(16, 64, 128, 2, 4),
    Tile(16, 32, 128, 2, 4),
)
_NVIDIA = (_WHOLE_ROWS, _GROUPS, *_NARROW)
TILES = {
    **dict.fromkeys(("sm_80", "sm_86", "sm_89", "sm_90", "sm_120"), _NVIDIA),
    "sm_100": (_GROUPS, *_NARROW),
    "gfx942": (
        Tile(128, 64, 128, 4, 2),
        Tile(64, 64, 128, 4, 2),
        Tile(32, 64, 128, 2, 2),
        Tile(16, 32, 128, 1, 2),
    ),
    "interpreter": (Tile(64, 64, 128, 4, 1),),
}


@dataclass(frozen=True)
class Description:
    """One product.

    Attributes:
        m, n, k: rows, outputs, products a sum.
        group: 32, 64 or 128; 0 for a whole row.
        zero: whether weights have zero points.
        x_zero: whether rows of ``x`` have zero points; unsigned ones always do.
        x_unsigned: whether ``x`` is uint8 rather than int8.
        dtype: of the result: ``"fp32"``, ``"fp16"`` or ``"bf16"``.
    """

    m: int
    n: int
    k: int
    group: int = 128
    zero: bool = False
    x_zero: bool = False
    x_unsigned: bool = False
    dtype: str = "fp32"


def choose(description: Description, target: str) -> Configuration:
    """The tile for a product on a target."""
    d = description
    unfit = (_GROUPS,) if d.group == 0 and _WHOLE_ROWS in TILES[target] else (_WHOLE_ROWS,)
    if d.group == 32 or d.zero:
        unfit = (_WHOLE_ROWS, _GROUPS)
    if d.group == 32 and (d.zero or (d.x_zero and target == "sm_100")):
        unfit = (_WHOLE_ROWS, _GROUPS, _MANY_VALUES)
    tiles = [tile for tile in TILES[target] if tile not in unfit]
    tile = largest_that_fills(tiles, d.m, d.n, find(target))
    if d.group in (32, 64):
        # Half as long a step: no more warps than have 16 bytes of each operand for every thread, but two.
        most = min(tile.m, tile.n) * 32 // (16 * find(target).warp)
        tile = replace(tile, k=64, warps=min(tile.warps, max(most, 2)))
    flags = {
        "GROUP": d.group,
        "X_UNSIGNED": d.x_unsigned,
        "WHOLE_K": d.k % tile.k == 0,
        "PTX": find(target).backend == "cuda",
    }
    return Configuration("gemm_w4a8", target, tile, tuple(flags.items()))


def launch(
    x: Tensor,
    weight: Weight,
    x_scale: Tensor,
    *,
    x_zero: Tensor | None = None,
    x_sum: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    configuration: Configuration | None = None,
) -> Tensor:
    """``x_scale * sum_g scale_g * (x_g - x_zero) @ (w_g - zero_g).T``.

    Args:
        x: ``[M, K]`` uint8 or int8 codes, contiguous.
        weight: of :func:`repack`.
        x_scale: ``[M]`` float32.
        x_zero: ``[M]`` int32; None means 0.
        x_sum: ``[M, G]`` int32 sums of ``x``, of uint8 codes less 128; taken here where weights have zero points and
            None is given.
        dtype: of the result, to which the float32 sum is rounded once.
        configuration: of :func:`choose`, which is asked where None is given.

    Returns:
        ``[M, N]``.
    """
    (m, k), n, unsigned = x.shape, weight.codes.shape[1], x.dtype == torch.uint8
    if weight.zero is None:
        x_sum = None
    elif x_sum is None:
        x_sum = quantize_rows.launch_sums(x, weight.group or k)
    if unsigned and x_zero is None:
        x_zero = torch.zeros(m, dtype=torch.int32, device=x.device)
    if configuration is None:
        flags = weight.zero is not None, x_zero is not None, unsigned, FLOATS[dtype]
        configuration = choose(Description(m, n, k, weight.group, *flags), of(x.device))
    y = torch.empty(m, n, dtype=dtype, device=x.device)
    tile = configuration.tile.constants
    grid = (triton.cdiv(m, tile["BLOCK_M"]) * triton.cdiv(n, tile["BLOCK_N"]),)
    sums = None if x_zero is None else weight.sums
    tensors = x, weight.codes, weight.scale, weight.zero, sums, x_scale, x_zero, x_sum, y
    gemm_w4a8_kernel[grid](*tensors, m, n, k, weight.scale.shape[0], **configuration.options)
    return y


# ------------------------------------------------------------------------------------------------ ahead of time
CASES = {
    "M4096-row": Description(4096, 4096, 4096, 0),
    "M4096-g128": Description(4096, 4096, 4096, dtype="fp16"),
    "M4096-g64": Description(4096, 4096, 4096, 64),
    "M4096-g32-zero": Description(4096, 4096, 4096, 32, zero=True),
    "M4096-g128-zero-uint8": Description(4096, 4096, 4096, 128, True, True, True),
    "M64-N28672-g128": Description(64, 28672, 4096),
    "M64-N11008-g128": Description(64, 11008, 4096),
    "M64-N6144-g128": Description(64, 6144, 4096),
    "M32-g128": Description(32, 11008, 4096, dtype="bf16"),
    "M16-g128": Description(16, 28672, 4096),
    "M1-row": Description(1, 4096, 4096, 0),
    "M1-g128": Description(1, 4096, 4096),
    "M1-g32-zero": Description(1, 4096, 4096, 32, zero=True),
    "M17-ragged": Description(17, 1001, 2049, 0, True, True, True),
}


def compiled(description: Description, target: str) -> Iterator[tuple[Any, Configuration, dict[str, str]]]:
    """Each kernel that a launch runs, how, and Triton's types of its parameters."""
    d = description
    signature = {
        "x": "*u8:16" if d.x_unsigned else "*i8:16",
        "codes": "*u8:16",
        "scale": "*fp32:16",
        "x_scale": "*fp32:16",
        "y": f"*{d.dtype}:16",
        **{name: size_type(getattr(d, name)) for name in ("m", "n", "k")},
        "groups": size_type(d.k // d.group if d.group else 1),
    }
    if d.zero:
        signature |= {"zero": "*i32:16", "x_sum": "*i32:16"}
    if d.x_zero:
        signature |= {"weight_sum": "*i32:16", "x_zero": "*i32:16"}
    yield gemm_w4a8_kernel, choose(d, target), signature
