"""How tensors lie for the CUDA kernels: rows of whole 16-byte chunks, and weights packed once, offline."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 16


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
