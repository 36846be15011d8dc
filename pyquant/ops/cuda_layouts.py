"""How tensors lie for the CUDA kernels: rows of whole 16-byte chunks, and weights packed once, offline."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyquant.errors import GridError, ShapeError
from pyquant.ops.checks import INT32_MAX
from pyquant.ops.pack import unpack

CHUNK = 16
# Of a block of the gemm_w4a16 kernels: columns, and input channels a pipeline stage.
W4A16_COLUMNS, W4A16_DEPTH = 128, 64
# Columns of a block, for which a group's scales and zero points are loaded whether they are there or not.
COLUMNS = 128
# Sums of groups of nibbles become floats in a way that is exact up to this.
SMALL_SUM = 1 << 22


def aligned_rows(codes: Tensor) -> Tensor:
    """Rows that each begin at a multiple of 16 bytes, as every kernel wants them.

    Args:
        codes: ``[M, K]``, any dtype.

    Returns:
        ``[M, ceil16(K)]`` contiguous, filled up with zeros, which add nothing; ``codes`` itself if it is that already.
    """
    per_chunk = CHUNK // codes.element_size()
    missing = -codes.shape[1] % per_chunk
    if missing == 0 and codes.is_contiguous() and codes.data_ptr() % CHUNK == 0:
        return codes
    rows = codes.new_zeros(codes.shape[0], codes.shape[1] + missing)
    rows[:, : codes.shape[1]] = codes
    return rows


def zero_correction(weight: Tensor, x_zero: int) -> Tensor:
    """What the zero point of unsigned activations adds to each column's sum, with the sign turned.

    Args:
        weight: ``[N, K]`` int8 codes.
        x_zero: zero point of the activations.

    Returns:
        ``[N]`` int32: ``-x_zero * sum_k weight[n, k]``, modulo 2^32 as the kernel's sums are.
    """
    return wrapped(-x_zero * weight.sum(1, dtype=torch.int64))


def wrapped(sums: Tensor) -> Tensor:
    """int64 sums modulo 2^32, as int32."""
    low = sums & 0xFFFFFFFF
    return torch.where(low >= 1 << 31, low - (1 << 32), low).to(torch.int32)


@dataclass(frozen=True)
class CudaWeights:
    """4-bit weights as a CUDA kernel reads them, and what their codes mean.

    Attributes:
        codes: ``[N, bytes]`` uint8, whole 16-byte chunks; each kernel's layout is its packing function's.
        scale: ``[G, ceil128(N)]`` float32.
        zero: ``[G, ceil128(N)]`` int32, or None if all are 0.
        sums: ``[G, ceil128(N)]`` int32, ``sum_k (w - zero)`` of each group, for activations with a zero point;
            None where activations are floats.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    sums: Tensor | None


def weights_w4a4(
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    length: int,
    group_size: int | None,
    signed: bool,
    bits: int = 4,
) -> CudaWeights:
    """Weights for the gemm_w4a4 kernels: signed nibbles in order, two to a byte, low nibble first.

    Args:
        packed, scale, zero_point, group_size, signed, bits: as in :func:`pyquant.ops.gemm_w4.gemm_w4`.
        length: ``K``.

    Raises:
        ShapeError: a row's sums could leave int32, or a group's 2^22.
    """
    codes, zero = _centred(packed, zero_point, length, group_size, signed, bits)
    filled = _filled(codes, zero, 2 * CHUNK)
    nibbles = (filled & 15).to(torch.uint8)
    return _weights(
        nibbles[:, 0::2] | nibbles[:, 1::2] << 4,
        codes,
        scale,
        zero,
        group_size,
        15,
        1,
        SMALL_SUM if group_size else INT32_MAX,
    )


def weights_w4a8(
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    length: int,
    group_size: int | None,
    signed: bool,
    bits: int = 4,
) -> CudaWeights:
    """Weights for the gemm_w4a8 kernels: of each 32 codes, byte ``i`` holds code ``i`` low and code ``i + 16`` high.

    The kernels multiply by 16 times the code, so scales come out divided by 16, zero points and sums times 16.

    Args:
        packed, scale, zero_point, group_size, signed, bits: as in :func:`pyquant.ops.gemm_w4.gemm_w4`.
        length: ``K``.

    Raises:
        ShapeError: 16 times a group's sums could leave int32.
        GridError: a scale is under 2^-122, so that a sixteenth of it is not exact.
    """
    if bool((scale < 2.0**-122).any()):
        raise GridError(
            "a scale is under 2^-122; the cuda backend divides scales by 16, which must be exact."
        )
    codes, zero = _centred(packed, zero_point, length, group_size, signed, bits)
    nibbles = (_filled(codes, zero, 32) & 15).to(torch.uint8).reshape(codes.shape[0], -1, 2, 16)
    halves = (nibbles[:, :, 0] | nibbles[:, :, 1] << 4).reshape(codes.shape[0], -1)
    return _weights(halves, codes, scale, zero, group_size, 255, 16, INT32_MAX)


def weights_w4a16(
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    length: int,
    group_size: int | None,
    signed: bool,
    bits: int = 4,
) -> CudaWeights:
    """Weights for the gemm_w4a16 kernels: unsigned nibbles in the order of the tensor cores' fragments.

    The order is ``[ceil64(K) / 64, ceil128(N) / 16, 32 lanes, 4 steps]`` words; lane ``4 g + t``'s word of a step holds, in
    nibble ``i + 4 e``, the code at ``k = 2 t + e + 8 (i % 2)`` of the step's 16 and ``n = g + 8 (i / 2)`` of the 16 columns.
    The arrays of the grid have ``ceil128(N)`` columns; zero points are uint8 codes 0..15, None if all are 8.

    Args:
        packed, scale, zero_point, group_size, signed, bits: as in :func:`pyquant.ops.gemm_w4.gemm_w4`.
        length: ``K``.
    """
    codes, zero = _centred(packed, zero_point, length, group_size, signed, bits)
    more = -codes.shape[0] % W4A16_COLUMNS
    filled = torch.nn.functional.pad(_filled(codes, zero, W4A16_DEPTH) + 8, (0, 0, 0, more))
    # n is [block, tile, g] and k is [slab, step, half, t, e]; nibble 4 e + 2 tile + half of a word.
    split = filled.reshape(-1, 2, 8, filled.shape[1] // W4A16_DEPTH, 4, 2, 4, 2)
    nibbles = split.permute(3, 0, 2, 6, 4, 7, 1, 5).reshape(-1, 2).to(torch.uint8)
    laid = (nibbles[:, 0] | nibbles[:, 1] << 4).reshape(filled.shape[1] // W4A16_DEPTH, -1)
    zero = torch.nn.functional.pad((zero + 8).T, (0, more), value=8).to(torch.uint8)
    return CudaWeights(
        laid,
        torch.nn.functional.pad(scale.T, (0, more)).contiguous(),
        zero.contiguous() if bool((zero != 8).any()) else None,
        None,
    )


def _centred(
    packed: Tensor, zero_point: Tensor | None, length: int, group_size: int | None, signed: bool, bits: int
) -> tuple[Tensor, Tensor]:
    """Codes as signed nibbles ``[N, K]``, and zero points ``[N, G]`` that go with them."""
    codes = unpack(packed, bits, signed, length)
    groups = length // (group_size or length)
    zero = codes.new_zeros(codes.shape[0], groups) if zero_point is None else zero_point
    return (codes, zero) if signed else (codes - 8, zero - 8)


def _filled(codes: Tensor, zero: Tensor, multiple: int) -> Tensor:
    """Rows of a multiple of codes; zero points fill them up, so that they add nothing whatever x has there."""
    missing = -codes.shape[1] % multiple
    if missing == 0:
        return codes
    return torch.cat([codes, zero[:, -1:].expand(-1, missing)], 1)


def _weights(
    laid: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor,
    group_size: int | None,
    most_x: int,
    times: int,
    limit: int,
) -> CudaWeights:
    centred = codes.reshape(codes.shape[0], zero.shape[1], -1).to(torch.int64) - zero[:, :, None]
    most = int(centred.abs().sum(2).max()) * most_x * times
    if most > limit:
        raise ShapeError(
            f"sums over {group_size or codes.shape[1]} codes can reach {most}, and the kernel holds {limit}; "
            "use groups, or another backend."
        )
    return CudaWeights(
        laid.contiguous(),
        _by_group(scale / times),
        _by_group(zero * times) if bool(zero.any()) else None,
        _by_group((centred.sum(2) * times).to(torch.int32)),
    )


def _by_group(grid: Tensor) -> Tensor:
    """``[N, G]`` to ``[G, ceil128(N)]``."""
    return torch.nn.functional.pad(grid.T, (0, -grid.shape[0] % COLUMNS)).contiguous()
