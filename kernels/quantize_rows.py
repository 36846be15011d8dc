"""Activations to codes, each row on a symmetric grid of its own; the codes' sums come with them.

    s = max(max |x| / qmax, 2^-126),   q = round_half_even(x / s),   qmax = 127, or 7 where codes are packed to 4 bits

as in ``pyquant.reference.quantize_rows``: a row with a NaN or an infinity gets the scale NaN and codes 0. One program
a row. A row of up to 16,384 numbers is read once and stays in registers; a longer one is read twice. Bound by bytes.

Weights with zero points need ``sum_k q`` of each of their groups: ``sum (q - z_x)(w - z) = sum q w - z sum q - ...``,
so the sums are taken here, where the codes are at hand. :func:`launch_sums` takes them of codes that came otherwise.
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

LONGEST = 16_384  # numbers that stay in registers: 32 a thread of 16 warps


@triton.jit
def quantize_rows_kernel(
    x,
    codes,
    scales,
    sums,
    k,
    words,
    groups,
    BITS: tl.constexpr,
    SUMS: tl.constexpr,
    ONCE: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
):
    """One row of ``x: [m, k]`` by blocks of ``[groups, group]``; 4-bit codes go to ``[m, words]`` int32.

    SUMS: "groups" of BLOCK_INNER codes, the "row", or "none". ONCE: one block holds the row.
    """
    row = tl.program_id(0).to(tl.int64)
    qmax: tl.constexpr = (1 << BITS - 1) - 1
    g = tl.arange(0, BLOCK_GROUPS)
    i = g[:, None] * BLOCK_INNER + tl.arange(0, BLOCK_INNER)[None, :]
    block: tl.constexpr = BLOCK_GROUPS * BLOCK_INNER
    most = 0.0
    finite = 1
    total = 0
    if ONCE:
        v = tl.load(x + row * k + i, i < k, 0.0).to(tl.float32)
        most, finite = largest(v)
    else:
        for first in range(0, k, block):
            v = tl.load(x + row * k + first + i, first + i < k, 0.0).to(tl.float32)
            here, fine = largest(v)
            most = tl.maximum(most, here)
            finite = tl.minimum(finite, fine)
    # 2^-126, the smallest normal number.
    s = tl.maximum(tl.div_rn(most, qmax * 1.0), 1.1754943508222875e-38)
    tl.store(scales + row, tl.where(finite != 0, s, float("nan")))
    for first in range(0, k, block):
        if not ONCE:
            v = tl.load(x + row * k + first + i, first + i < k, 0.0).to(tl.float32)
        q = tl.where(finite != 0, grid.round_half_even(tl.div_rn(v, s)), 0.0).to(tl.int32)
        if BITS == 8:
            tl.store(codes + row * k + first + i, q.to(tl.int8), first + i < k)
        else:
            # Eight nibbles of a word share no bit: their sum is their union.
            nibbles = tl.reshape(q & 15, (block // 8, 8)) << (tl.arange(0, 8) * 4)[None, :]
            w = first // 8 + tl.arange(0, block // 8)
            tl.store(codes + row * words + w, tl.sum(nibbles, 1), w < words)
        if SUMS == "groups":
            group = first // BLOCK_INNER + g
            tl.store(sums + row * groups + group, tl.sum(q, 1), group < groups)
        if SUMS == "row":
            total += tl.sum(tl.sum(q, 1), 0)
    if SUMS == "row":
        tl.store(sums + row, total)


@triton.jit
def largest(v):
    """The largest magnitude of a block, and 1 if all of it is finite, else 0; then the magnitude means nothing."""
    magnitude = tl.abs(v)
    fine = magnitude < float("inf")
    return tl.max(tl.max(tl.where(fine, magnitude, 0.0), 1), 0), tl.min(tl.min(fine.to(tl.int32), 1), 0)


@triton.jit
def row_sums_kernel(
    codes, sums, k, groups, OFFSET: tl.constexpr, BLOCK_GROUPS: tl.constexpr, BLOCK_INNER: tl.constexpr
):
    """Sums of ``codes - OFFSET`` over groups of BLOCK_INNER of one row of ``[m, k]``, or of the row if it is one group."""
    row = tl.program_id(0).to(tl.int64)
    g = tl.arange(0, BLOCK_GROUPS)
    i = g[:, None] * BLOCK_INNER + tl.arange(0, BLOCK_INNER)[None, :]
    total = 0
    for first in range(0, k, BLOCK_GROUPS * BLOCK_INNER):
        q = tl.load(codes + row * k + first + i, first + i < k, OFFSET).to(tl.int32) - OFFSET
        of_group = tl.sum(q, 1)
        if groups > 1:
            group = first // BLOCK_INNER + g
            tl.store(sums + row * groups + group, of_group, group < groups)
        total += tl.sum(of_group, 0)
    if groups == 1:
        tl.store(sums + row, total)


@dataclass(frozen=True)
class Description:
    """Rows to quantise.

    Attributes:
        k: numbers a row.
        dtype: ``"fp32"``, ``"fp16"`` or ``"bf16"``.
        bits: 8, or 4 for packed codes.
        group: 32, 64 or 128 codes a sum, ``k`` for the sum of a row, 0 for none.
    """

    k: int
    dtype: str = "fp16"
    bits: int = 8
    group: int = 0


def _box(k: int, group: int) -> Box:
    inner = group if 0 < group < k else 128
    groups = triton.next_power_of_2(triton.cdiv(min(k, LONGEST), inner))
    # 16 numbers a thread, where there are so many: of 32, some spill.
    warps = min(16, max(1, groups * inner // 512))
    return Box((("BLOCK_GROUPS", groups), ("BLOCK_INNER", inner)), warps)


def choose(description: Description, target: str) -> Configuration:
    """How :func:`launch` compiles; the same for every target."""
    d = description
    flags = {
        "BITS": d.bits,
        "SUMS": "none" if d.group == 0 else "row" if d.group == d.k else "groups",
        "ONCE": d.k <= LONGEST,
    }
    return Configuration("quantize_rows", target, _box(d.k, d.group), tuple(flags.items()))


def choose_sums(k: int, group: int, unsigned: bool, target: str) -> Configuration:
    """How :func:`launch_sums` compiles; the same for every target."""
    return Configuration("quantize_rows", target, _box(k, group), (("OFFSET", 128 if unsigned else 0),))


def launch(x: Tensor, *, bits: int = 8, group: int = 0) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes, scales and sums of the rows of ``x``.

    Args:
        x: ``[M, K]`` float32, float16 or bfloat16, contiguous, not empty.
        bits: 8 or 4.
        group: 32, 64 or 128, a divisor of ``K``: codes a sum; ``K``: sums of rows; 0: no sums.

    Returns:
        Codes: ``[M, K]`` int8 within -127..127, or ``[M, ceil(K / 8)]`` int32 of eight two's-complement codes
        within -7..7, low nibble first, 0 past the end. ``[M]`` float32 scales. ``[M, K / group]`` int32 sums, or None.
    """
    m, k = x.shape
    configuration = choose(Description(k, FLOATS[x.dtype], bits, group), of(x.device))
    words, groups = triton.cdiv(k, 8), k // group if group else 0
    if bits == 8:
        codes = torch.empty(m, k, dtype=torch.int8, device=x.device)
    else:
        codes = torch.empty(m, words, dtype=torch.int32, device=x.device)
    scales = torch.empty(m, dtype=torch.float32, device=x.device)
    sums = torch.empty(m, groups, dtype=torch.int32, device=x.device)
    quantize_rows_kernel[(m,)](x, codes, scales, sums, k, words, groups, **configuration.options)
    return codes, scales, sums if group else None


def launch_sums(codes: Tensor, group: int) -> Tensor:
    """``[M, K / group]`` int32 sums of ``[M, K]`` int8 codes, or of uint8 codes less 128; ``group`` as above, not 0."""
    m, k = codes.shape
    sums = torch.empty(m, k // group, dtype=torch.int32, device=codes.device)
    configuration = choose_sums(k, group, codes.dtype == torch.uint8, of(codes.device))
    row_sums_kernel[(m,)](codes, sums, k, k // group, **configuration.options)
    return sums


# ------------------------------------------------------------------------------------------------ ahead of time
CASES = {
    "K4096": Description(4096),
    "K4096-bf16": Description(4096, "bf16"),
    "K4096-sums": Description(4096, group=4096),
    "K4096-g128": Description(4096, group=128),
    "K4096-g32-fp32": Description(4096, "fp32", group=32),
    "K11008-sums": Description(11008, group=11008),
    "K28672-g64": Description(28672, group=64),
    "K4096-4-bits": Description(4096, bits=4),
    "K11008-4-bits-sums": Description(11008, bits=4, group=11008),
    "K577-ragged": Description(577, "fp32"),
}


def compiled(description: Description, target: str) -> Iterator[tuple[Any, Configuration, dict[str, str]]]:
    """Each kernel that a launch runs, how, and Triton's types of its parameters."""
    d = description
    signature = {
        "x": f"*{d.dtype}:16",
        "codes": "*i8:16" if d.bits == 8 else "*i32:16",
        "scales": "*fp32:16",
        "sums": "*i32:16",
        "k": size_type(d.k),
        "words": size_type(triton.cdiv(d.k, 8)),
        "groups": size_type(d.k // d.group if d.group else 0),
    }
    yield quantize_rows_kernel, choose(d, target), signature
    if d.group:
        signature = {name: signature[name] for name in ("codes", "sums", "k", "groups")}
        signature["codes"] = "*u8:16"
        yield row_sums_kernel, choose_sums(d.k, d.group, True, target), signature
