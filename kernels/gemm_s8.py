"""W8A8 matrix product: codes times codes on int8 tensor cores, and to codes or float32 in the same pass.

    acc = sum_k x' w + correction[n],   x' = x ^ 0x80 read as int8 = x - 128,   correction = (128 - x_zero) sum_k w

so the cores see int8 only, and neither the zero point nor the sign of ``x`` costs anything inside the loop. The
correction is added last, where int32 may wrap; seeded into the sums it could meet the saturation of tensor cores.
One program computes one ``[BLOCK_M, BLOCK_N]`` tile. Programs walk down GROUP_M rows of tiles before they move to
the next column, so that those in flight share their operands in L2. Bound by: operations when M is large, else by
the bytes of the weight.
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
from .targets import find, of

# Largest first. Few rows: the weight's bytes bound, so a tile spans all rows, is narrow, and takes long steps.
_NARROW = (
    Tile(64, 128, 128, 4, 3),
    Tile(64, 64, 128, 4, 4),
    Tile(64, 32, 128, 4, 4),
    Tile(32, 64, 128, 4, 4),
    Tile(32, 32, 128, 4, 4),
    Tile(16, 64, 128, 4, 4),
    Tile(16, 32, 128, 4, 4),
)
_SMALL_SHARED = (Tile(128, 128, 128, 4, 2), *_NARROW)
TILES = {
    "sm_80": (Tile(128, 256, 128, 8, 3), Tile(128, 128, 128, 4, 3), *_NARROW),
    "sm_86": _SMALL_SHARED,
    "sm_89": _SMALL_SHARED,
    "sm_90": (Tile(128, 256, 128, 8, 3), Tile(128, 128, 128, 8, 4), *_NARROW),
    "sm_100": (Tile(128, 128, 128, 8, 4), *_NARROW),
    "sm_120": _SMALL_SHARED,
    "gfx942": (
        Tile(128, 128, 64, 4, 2),
        Tile(64, 64, 128, 4, 2),
        Tile(32, 64, 128, 2, 2),
        Tile(16, 64, 128, 2, 2),
    ),
    "interpreter": (Tile(64, 64, 64, 4, 1),),
}


@triton.jit
def tile_of(program, m, n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Row and column of a program's tile in the order above."""
    GROUP_M: tl.constexpr = 8
    columns = tl.cdiv(n, BLOCK_N)
    rows = tl.cdiv(m, BLOCK_M)
    group = program // (GROUP_M * columns)
    first = group * GROUP_M
    height = tl.minimum(rows - first, GROUP_M)
    inside = program % (GROUP_M * columns)
    return first + inside % height, inside // height


@triton.jit
def gemm_s8_kernel(
    x,
    weight,
    multiplier,
    bias,
    correction,
    y,
    m,
    n,
    k,
    y_zero,
    low,
    high,
    X_UNSIGNED: tl.constexpr,
    TO_CODES: tl.constexpr,
    WHOLE_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PTX: tl.constexpr,
):
    """``x: [m, k]`` times ``weight: [n, k]``; the rest as in :func:`launch`. WHOLE_K: BLOCK_K divides ``k``."""
    row, column = tile_of(tl.program_id(0), m, n, BLOCK_M, BLOCK_N)
    rows = row * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = column * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    # Where the tile starts is one number for all threads, and all that a step moves on; what each thread adds to it stays,
    # in 32 bits. A pointer a load would cost the loop four additions instead of two.
    x += row.to(tl.int64) * BLOCK_M * k
    weight += column.to(tl.int64) * BLOCK_N * k
    # Rows past the end read the tile's first again: loads need no mask for them, and the store drops them.
    x_at = tl.where(rows < m, tl.arange(0, BLOCK_M), 0)[:, None] * k + ks[None, :]
    weight_at = tl.where(columns < n, tl.arange(0, BLOCK_N), 0)[None, :] * k + ks[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for step in range(tl.cdiv(k, BLOCK_K)):
        if WHOLE_K:
            codes = tl.load(x + x_at)
            w = tl.load(weight + weight_at)
        else:
            # Past the end of a row the weight is 0; what x is there does not matter.
            codes = tl.load(x + x_at, mask=ks[None, :] < k - step * BLOCK_K, other=0)
            w = tl.load(weight + weight_at, mask=ks[:, None] < k - step * BLOCK_K, other=0)
        acc = tl.dot(packed_bytes.flip(codes, 0x80 if X_UNSIGNED else 0, PTX), w, acc, out_dtype=tl.int32)
        x += BLOCK_K
        weight += BLOCK_K
    here = columns < n
    acc += tl.load(correction + columns, here, 0)[None, :]
    scaled = epilogue.affine(
        acc,
        tl.load(multiplier + columns, here, 0.0)[None, :],
        tl.load(bias + columns, here, 0.0)[None, :],
    )
    y_at = y + rows.to(tl.int64)[:, None] * n + columns[None, :]
    inside = (rows < m)[:, None] & here[None, :]
    if TO_CODES:
        tl.store(y_at, epilogue.to_codes(scaled, y_zero, low, high), inside)
    else:
        tl.store(y_at, scaled, inside)


@dataclass(frozen=True)
class Description:
    """One product.

    Attributes:
        m, n, k: rows, outputs, products a sum.
        x_unsigned: whether ``x`` is uint8 rather than int8.
        to_codes: whether the result is uint8 codes rather than float32.
    """

    m: int
    n: int
    k: int
    x_unsigned: bool = True
    to_codes: bool = True


def choose(description: Description, target: str) -> Configuration:
    """The tile for a product on a target."""
    tile = largest_that_fills(TILES[target], description.m, description.n, find(target))
    if description.k % 16:
        # Rows begin anywhere, so that every byte is a load and a register of its own.
        tile = replace(tile, k=32)
    flags = {
        "X_UNSIGNED": description.x_unsigned,
        "TO_CODES": description.to_codes,
        "WHOLE_K": description.k % tile.k == 0,
        "PTX": find(target).backend == "cuda",
    }
    return Configuration("gemm_s8", target, tile, tuple(flags.items()))


def correction_of(weight: Tensor, x_zero: int, x_unsigned: bool = True) -> Tensor:
    """What the kernel's sums of ``x'`` lack: ``[N]`` int32, made once a layer.

    Args:
        weight: ``[N, K]`` int8.
        x_zero: zero point of ``x``.
        x_unsigned: whether ``x`` is uint8.
    """
    shift = 128 if x_unsigned else 0
    return ((shift - x_zero) * weight.sum(1, dtype=torch.int64)).to(torch.int32)


def launch(
    x: Tensor,
    weight: Tensor,
    multiplier: Tensor,
    bias: Tensor,
    correction: Tensor,
    *,
    y_zero: int = 0,
    low: int = 0,
    high: int = 255,
    to_codes: bool = True,
    configuration: Configuration | None = None,
) -> Tensor:
    """``(x - x_zero) @ weight.T``, times ``multiplier``, plus ``bias``; to codes or to float32.

    Args:
        x: ``[M, K]`` uint8 or int8 codes, contiguous.
        weight: ``[N, K]`` int8 codes, zero point 0, contiguous.
        multiplier, bias: ``[N]`` float32.
        correction: ``[N]`` int32 of :func:`correction_of`, where the zero point of ``x`` went in.
        y_zero, low, high: zero point and clamp bounds of the codes.
        to_codes: ``[M, N]`` uint8 codes; otherwise float32.
        configuration: of :func:`choose`, which is asked where None is given.

    The caller sees to it that ``K`` products of the largest codes stay within int32.
    """
    (m, k), n = x.shape, weight.shape[0]
    if configuration is None:
        description = Description(m, n, k, x.dtype == torch.uint8, to_codes)
        configuration = choose(description, of(x.device))
    y = torch.empty(m, n, dtype=torch.uint8 if to_codes else torch.float32, device=x.device)
    grid = (triton.cdiv(m, configuration.tile.m) * triton.cdiv(n, configuration.tile.n),)
    bounds = float(y_zero), float(low), float(high)
    gemm_s8_kernel[grid](
        x, weight, multiplier, bias, correction, y, m, n, k, *bounds, **configuration.options
    )
    return y


# ------------------------------------------------------------------------------------------------ ahead of time
CASES = {
    "M4096": Description(4096, 4096, 4096),
    "M2048-N1280": Description(2048, 1280, 4096),
    "M1024-N1280": Description(1024, 1280, 4096),
    "M256": Description(256, 4096, 4096),
    "M64-N28672": Description(64, 28672, 4096),
    "M64-N11008": Description(64, 11008, 4096),
    "M64-N6144": Description(64, 6144, 4096),
    "M64-N4096": Description(64, 4096, 4096),
    "M32": Description(32, 11008, 4096),
    "M32-N6144": Description(32, 6144, 4096),
    "M17-N4096": Description(17, 4096, 4096),
    "M16": Description(16, 11008, 4096),
    "M1": Description(1, 4096, 4096),
    "M4096-int8-to-float32": Description(4096, 4096, 4096, x_unsigned=False, to_codes=False),
    "M4096-K-tail": Description(4096, 4096, 4112),
    "M256-K-tail": Description(256, 1024, 2064),
    "M197-ragged": Description(197, 1001, 2047),
}


def compiled(description: Description, target: str) -> Iterator[tuple[Any, Configuration, dict[str, str]]]:
    """Each kernel that a launch runs, how, and Triton's types of its parameters."""
    signature = {
        "x": "*u8:16" if description.x_unsigned else "*i8:16",
        "weight": "*i8:16",
        "multiplier": "*fp32:16",
        "bias": "*fp32:16",
        "correction": "*i32:16",
        "y": "*u8:16" if description.to_codes else "*fp32:16",
        **{name: size_type(getattr(description, name)) for name in ("m", "n", "k")},
        **dict.fromkeys(("y_zero", "low", "high"), "fp32"),
    }
    yield gemm_s8_kernel, choose(description, target), signature
