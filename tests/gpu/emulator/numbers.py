"""Floating point as PTX rounds it: the numbers of one instruction, for all lanes at once.

numpy rounds single operations of float32 and float64 correctly, and float16's by way of float32, whose 24 bits are enough
(2 * 11 + 2) for sums, products and quotients. What it lacks is here: a product and a sum rounded once, bfloat16, and signs of zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
NAN32 = np.uint32(0x7FFFFFFF)  # the one NaN that float32 instructions return
NAN16 = np.uint16(0x7FFF)


def from_bf16(codes: Array) -> Array:
    """``uint16`` bfloat16 codes as float32, exactly."""
    return (codes.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(x: Array) -> Array:
    """float32 to ``uint16`` bfloat16 codes, ties to even; NaN becomes 0x7fff."""
    code = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (code + (np.uint32(0x7FFF) + ((code >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    return np.where(np.isnan(x), NAN16, rounded.astype(np.uint16))


def truncated_bf16(x: Array) -> Array:
    """float32 to ``uint16`` bfloat16 codes, toward zero."""
    code = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return np.where(np.isnan(x), NAN16, (code >> np.uint32(16)).astype(np.uint16))


def _to_odd(total: Array, error: Array) -> Array:
    """A float64 sum rounded to nearest and its exact error, as the sum rounded to odd.

    The odd one of the two neighbours remembers that something was lost, so that a second rounding, to 2 bits less at the least, is
    the rounding of the exact sum.
    """
    code = total.view(np.int64)
    even = (code & 1) == 0
    away = (error > 0) == (total > 0)
    return np.where(even & (error != 0) & np.isfinite(total), code + np.where(away, 1, -1), code).view(
        np.float64
    )


def fma_to_odd(a: Array, b: Array, c: Array) -> Array:
    """``a * b + c`` of float32 or narrower numbers as float64 rounded to odd: round it once more, to float32 or narrower."""
    product = a.astype(np.float64) * b.astype(np.float64)
    addend = c.astype(np.float64)
    total = product + addend
    part = total - product
    error = (product - (total - part)) + (addend - part)
    return _to_odd(total, error)


def fma32(a: Array, b: Array, c: Array) -> Array:
    """float32 ``a * b + c``, rounded once."""
    return fma_to_odd(a, b, c).astype(np.float32)


def fma16(a: Array, b: Array, c: Array) -> Array:
    """float16 ``a * b + c``, rounded once (numpy narrows float64 to float16 in one rounding)."""
    return fma_to_odd(a, b, c).astype(np.float16)


def fma_bf16(a: Array, b: Array, c: Array) -> Array:
    """``a * b + c`` of ``uint16`` bfloat16 codes, rounded once, as codes."""
    exact = fma_to_odd(from_bf16(a), from_bf16(b), from_bf16(c))
    near = exact.astype(np.float32)
    return to_bf16(_float32_to_odd(exact, near))


def _float32_to_odd(exact: Array, near: Array) -> Array:
    code = near.view(np.int32)
    lost = near.astype(np.float64) != exact
    away = np.abs(exact) > np.abs(near)
    even = (code & 1) == 0
    return np.where(
        even & lost & np.isfinite(near), code + np.where(away, 1, -1).astype(np.int32), code
    ).view(np.float32)


def toward_zero(exact: Array) -> Array:
    """float64 to float32, truncated."""
    near = exact.astype(np.float32)
    beyond = np.abs(near.astype(np.float64)) > np.abs(exact)
    return np.where(beyond, np.nextafter(near, np.float32(0)), near)


def least(a: Array, b: Array) -> Array:
    """``min``: the number where one is NaN, and -0 below +0."""
    return _extreme(a, b, np.fmin(a, b), np.bitwise_or)


def greatest(a: Array, b: Array) -> Array:
    """``max``: the number where one is NaN, and +0 above -0."""
    return _extreme(a, b, np.fmax(a, b), np.bitwise_and)


def _extreme(a: Array, b: Array, chosen: Array, signs: np.ufunc) -> Array:
    # Equal numbers differ in the sign of zero at most, where both codes joined are the answer.
    codes = np.dtype(f"u{a.dtype.itemsize}")
    return np.where(a == b, signs(a.view(codes), b.view(codes)).view(a.dtype), chosen)


def to_integer(x: Array, kind: np.dtype) -> Array:
    """Whole float numbers to an integer type: what is out of range saturates, NaN gives 0."""
    limits = np.iinfo(kind)
    wide = np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=np.inf, neginf=-np.inf)
    top = float(limits.max)
    inside = np.where((wide >= top) | (wide <= float(limits.min)), 0.0, wide).astype(kind)
    return np.where(wide >= top, limits.max, np.where(wide <= float(limits.min), limits.min, inside)).astype(
        kind
    )


def within_ulps(exact: Array, ulps: int, rng: np.random.Generator) -> Array:
    """An approximate float32 instruction: any of the floats within ``ulps`` of the exact result, at random.

    A program whose bytes depend on one choice of a chip's approximation fails sooner or later.
    """
    near = exact.astype(np.float32)
    step = rng.integers(-ulps, ulps + 1, near.shape).astype(np.int32)
    code = near.view(np.int32)
    moved = (code + step).view(np.float32)
    usable = (
        np.isfinite(near)
        & np.isfinite(moved)
        & (np.abs(near) > np.float32(1e-30))
        & (np.sign(moved) == np.sign(near))
    )
    return np.where(usable, moved, near)
