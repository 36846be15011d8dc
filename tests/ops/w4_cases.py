"""Low-bit weights and activations drawn at random, shared by the tests of gemm_w4, gemm_w4a4 and linear_w4."""

from __future__ import annotations

import torch
from torch import Tensor

from pyquant.ops.backend import extension
from pyquant.ops.pack import pack

ISAS = extension().available_isas() if extension() is not None else []


def ends(bits: int, signed: bool) -> tuple[int, int]:
    """The smallest code and the one behind the largest."""
    low = -(1 << (bits - 1)) if signed else 0
    return low, low + (1 << bits)


def weights(
    n: int, k: int, group_size: int | None, signed: bool, bits: int, zeros: str, seed: int
) -> dict[str, Tensor]:
    """Packed codes, scales and zero points: ``zeros`` is none, one for all, or one a group."""
    generator = torch.Generator().manual_seed(seed)
    groups, (low, high) = k // (group_size or k), ends(bits, signed)
    drawn = {
        "packed": pack(torch.randint(low, high, (n, k), generator=generator), bits),
        "scale": torch.rand(n, groups, generator=generator) * 0.01,
    }
    if zeros == "one":
        drawn["zero_point"] = torch.full((n, groups), high - 2, dtype=torch.int32)
    if zeros == "each":
        drawn["zero_point"] = torch.randint(low, high, (n, groups), generator=generator, dtype=torch.int32)
    return drawn


def rows(m: int, k: int, signed: bool, bits: int, zeros: bool, seed: int) -> dict[str, Tensor]:
    """Activation codes, their scales and perhaps zero points."""
    generator = torch.Generator().manual_seed(seed + 1)
    low, high = ends(bits, signed)
    drawn = {
        "x": torch.randint(low, high, (m, k), generator=generator).to(torch.int8 if signed else torch.uint8),
        "x_scale": torch.rand(m, generator=generator) * 0.1,
    }
    if zeros:
        drawn["x_zero"] = torch.randint(low, high, (m,), generator=generator, dtype=torch.int32)
    return drawn


def same_bytes(got: Tensor, want: Tensor) -> bool:
    """Equal bit for bit, except that one NaN is as good as another."""
    words = torch.int32 if got.dtype == torch.float32 else torch.int16
    nan = want.isnan()
    return (
        got.dtype == want.dtype
        and got.shape == want.shape
        and torch.equal(got.isnan(), nan)
        and torch.equal(got[~nan].view(words), want[~nan].view(words))
    )
