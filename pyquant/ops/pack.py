"""Codes in dense 32-bit words: how weights lie in files and in memory, for every width of 2 to 8 bits."""

from __future__ import annotations

import torch
from torch import Tensor

from pyquant.errors import DTypeError, GridError, ShapeError

WORD = 32


def pack(codes: Tensor, bits: int, zero_point: Tensor | None = None) -> Tensor:
    """Pack rows of codes, low code first: code ``k`` takes bits ``[k * bits, (k + 1) * bits)`` of its row.

    Args:
        codes: ``[N, K]`` integers within ``[-2^(bits-1), 2^bits)``; those below 0 become two's complement.
        bits: width of a code, 2 to 8.
        zero_point: ``[N]`` integer codes that fill what a row's last word has left; None means 0.

    Returns:
        ``[N, ceil(K * bits / 32)]`` int32.

    Raises:
        GridError: ``bits`` is outside 2..8, or a code does not fit.
        ShapeError: ``codes`` is not a matrix, or ``zero_point`` does not have a code for each row.
        DTypeError: ``codes`` are not integers.

    Source: ARCHITECTURE, "Stored codes".
    """
    _check_bits(bits)
    if codes.dim() != 2:
        raise ShapeError(
            f"codes to pack are [N, K], not {list(codes.shape)}; reshape each row to one dimension."
        )
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise DTypeError(f"codes to pack are integers, not {codes.dtype}; quantize first.")
    if codes.numel() and (int(codes.min()) < -(1 << (bits - 1)) or int(codes.max()) >= 1 << bits):
        raise GridError(
            f"codes {int(codes.min())}..{int(codes.max())} do not fit {bits} bits; clamp them to the grid."
        )
    rows, length = codes.shape
    fill = codes.new_zeros(rows, dtype=torch.int64) if zero_point is None else zero_point.to(torch.int64)
    if fill.shape != (rows,):
        raise ShapeError(f"zero_point has shape {list(fill.shape)} for {rows} rows; give one code a row.")
    # 32 codes of `bits` bits fill exactly `bits` words.
    blocks = -(-length // WORD)
    padded = fill[:, None].expand(rows, blocks * WORD).clone()
    padded[:, :length] = codes
    padded = (padded & ((1 << bits) - 1)).reshape(rows, blocks, WORD)
    words = codes.new_zeros(rows, blocks, bits, dtype=torch.int64)
    for code in range(WORD):
        word, shift = divmod(code * bits, WORD)
        words[:, :, word] |= padded[:, :, code] << shift
        if shift + bits > WORD:
            words[:, :, word + 1] |= padded[:, :, code] >> (WORD - shift)
    words = words.reshape(rows, -1)[:, : words_of(length, bits)] & 0xFFFFFFFF
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def unpack(packed: Tensor, bits: int, signed: bool, length: int) -> Tensor:
    """Return the codes that :func:`pack` packed.

    Args:
        packed: ``[N, ceil(K * bits / 32)]`` int32.
        bits: width of a code, 2 to 8.
        signed: whether codes are two's complement.
        length: ``K``.

    Returns:
        ``[N, K]`` int32.

    Raises:
        GridError: ``bits`` is outside 2..8.
        ShapeError: ``packed`` does not have the words of ``K`` codes.
        DTypeError: ``packed`` is not int32.
    """
    _check_bits(bits)
    if packed.dtype != torch.int32:
        raise DTypeError(f"packed codes are int32 words, not {packed.dtype}.")
    if packed.dim() != 2 or packed.shape[1] != words_of(length, bits):
        raise ShapeError(
            f"{length} codes of {bits} bits take [N, {words_of(length, bits)}] words, "
            f"not {list(packed.shape)}."
        )
    rows = packed.shape[0]
    blocks = -(-length // WORD)
    words = packed.new_zeros(rows, blocks * bits, dtype=torch.int64)
    words[:, : packed.shape[1]] = packed.to(torch.int64) & 0xFFFFFFFF
    words = words.reshape(rows, blocks, bits)
    codes = packed.new_empty(rows, blocks, WORD, dtype=torch.int32)
    for code in range(WORD):
        word, shift = divmod(code * bits, WORD)
        value = words[:, :, word] >> shift
        if shift + bits > WORD:
            value = value | (words[:, :, word + 1] << (WORD - shift))
        codes[:, :, code] = (value & ((1 << bits) - 1)).to(torch.int32)
    if signed:
        half = 1 << (bits - 1)
        codes = torch.where(codes >= half, codes - (1 << bits), codes)
    return codes.reshape(rows, -1)[:, :length].contiguous()


def words_of(length: int, bits: int) -> int:
    """32-bit words that a row of ``length`` codes takes."""
    return -(-length * bits // WORD)


def _check_bits(bits: int) -> None:
    if bits not in range(2, 9):
        raise GridError(f"bits={bits!r} is no width of a code; use 2 to 8.")
