"""quantize_rows: the reference against a loop, every instruction set against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pyquant import reference
from pyquant.errors import DTypeError, ShapeError
from pyquant.ops import quantize_rows as page
from pyquant.ops.backend import missing
from pyquant.ops.quantize_rows import quantize_rows
from tests.ops.w4_cases import ISAS, same_bytes

needs_cpu = pytest.mark.skipif(missing("cpu") is not None, reason=str(missing("cpu")))
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def ties() -> Tensor:
    """Rows whose step is an odd whole number, so that half steps are exact: a reciprocal would miss some."""
    half = torch.arange(-126.5, 127.0)
    return torch.stack([torch.cat([half, torch.tensor([127.0])]) * step for step in range(1, 400, 2)])


def drawn(k: int) -> Tensor:
    """Rows of many magnitudes, down to denormals; a row of zeros, one with a NaN, two with an infinity."""
    generator = torch.Generator().manual_seed(k)
    x = torch.randn(16, k, generator=generator) * torch.logspace(-44, 4, 16)[:, None]
    x[3] = 0
    x[12, 0], x[13, -1], x[14, k // 2] = float("nan"), float("inf"), float("-inf")
    return x


def by_hand(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """One row at a time in numpy."""
    codes, scales = [], []
    for row in x.float().numpy():
        most = np.abs(row).max()
        scale = (
            np.maximum(most / np.float32(127), np.float32(2.0**-126))
            if np.isfinite(most)
            else np.float32(np.nan)
        )
        codes.append(np.rint(row / scale) if np.isfinite(most) else np.zeros_like(row))
        scales.append(scale)
    return np.array(codes).astype(np.int8), np.array(scales, dtype=np.float32)


@DTYPES
def test_the_reference_is_the_formula(dtype: torch.dtype) -> None:
    for x in (ties(), drawn(1), drawn(77)):
        codes, scale = reference.quantize_rows(x.to(dtype))
        want_codes, want_scale = by_hand(x.to(dtype))
        assert codes.dtype == torch.int8 and np.array_equal(codes.numpy(), want_codes)
        assert np.array_equal(scale.numpy(), want_scale, equal_nan=True)


@needs_cpu
@DTYPES
@pytest.mark.parametrize("isa", ISAS)
def test_kernels_give_the_reference_bytes(isa: str, dtype: torch.dtype) -> None:
    for wide in (ties(), *(drawn(k) for k in (1, 15, 16, 17, 31, 32, 33, 64, 100, 1000))):
        x = wide.to(dtype)
        codes, scale = reference.quantize_rows(x)
        got_codes, got_scale = page._cpu(x, isa, threads=1 + x.shape[1] % 3)
        assert torch.equal(got_codes, codes) and same_bytes(got_scale, scale)


def test_every_float16_and_bfloat16() -> None:
    """Each 16-bit pattern, beside a large number that sets the scale."""
    for dtype in (torch.float16, torch.bfloat16):
        every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(dtype)
        every = torch.where(every.isfinite(), every, 0).reshape(64, -1)
        for backend in ("auto", "reference"):
            codes, scale = quantize_rows(every, backend=backend)
            want_codes, want_scale = by_hand(every)
            assert np.array_equal(codes.numpy(), want_codes) and np.array_equal(scale.numpy(), want_scale)


def test_rows_that_are_not_contiguous_and_opcheck() -> None:
    x = drawn(40)[:3].T
    codes, scale = quantize_rows(x)
    want = quantize_rows(x.contiguous(), backend="reference")
    assert torch.equal(codes, want[0]) and same_bytes(scale, want[1])
    torch.library.opcheck(torch.ops.pyquant.quantize_rows.default, (x.contiguous(),))


def test_bad_input() -> None:
    with pytest.raises(DTypeError, match=r"x is torch\.float64"):
        quantize_rows(torch.zeros(2, 3, dtype=torch.float64))
    with pytest.raises(ShapeError, match=r"x is \[0, 3\]"):
        quantize_rows(torch.zeros(0, 3))
    with pytest.raises(ShapeError, match=r"x \[M, K\]"):
        quantize_rows(torch.zeros(2, 3, 4))
