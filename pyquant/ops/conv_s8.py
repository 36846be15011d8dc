"""conv_s8"""

from __future__ import annotations

import torch
from torch import Tensor

from pyquant.errors import BackendError, ShapeError

INT32_MAX = 2**31 - 1


def centred_weight(codes: Tensor, zero_point: Tensor | None, site: str) -> Tensor:
    """Weight codes less their row's zero point, as the int8 that the kernels multiply.

    Args:
        codes: ``[N, K]`` integers.
        zero_point: ``[N]`` integers; None means 0.
        site: name for the message.

    Returns:
        ``[N, K]`` int8, contiguous.

    Raises:
        BackendError: a difference is outside -128..127.
    """
    centred = codes.to(torch.int32)
    if zero_point is not None:
        centred = centred - zero_point.to(torch.int32).reshape(-1, 1)
    if centred.numel() and (int(centred.min()) < -128 or int(centred.max()) > 127):
        row = int(((centred < -128) | (centred > 127)).any(dim=1).nonzero()[0])
        raise BackendError(
            f"weights of {site!r} less their zero point reach {int(centred[row].min())}..{int(centred[row].max())} in row {row}; "
            "the int8 kernels take -128..127, so use a symmetric grid or fewer bits."
        )
    return centred.to(torch.int8).contiguous()


def check_accumulator(length: int, x_zero: int, weight: Tensor, site: str) -> None:
    """Raise ShapeError if sums of ``length`` products could leave int32.

    Args:
        length: products a sum, ``K``.
        x_zero: zero point of the uint8 activations.
        weight: int8 codes less their zero point.
        site: name for the message.
    """
    largest = max(x_zero, 255 - x_zero) * int(weight.to(torch.int32).abs().max())
    if length * largest > INT32_MAX:
        raise ShapeError(
            f"{site!r} sums K={length} products of up to {largest}; int32 holds at most K={INT32_MAX // largest}."
        )
