"""The grid arithmetic for Triton kernels: one of its three homes, with csrc/grid.h and pyquant/reference.py.

Bit-equal to both in fp32, provided that every kernel is launched with ``enable_fp_fusion=False``: multiply,
then add. Codes and zero points are whole float32 numbers.
"""

import triton
import triton.language as tl


@triton.jit
def round_half_even(v):
    """Round float32 to the nearest whole number, ties to even, with two additions; NaN and infinity stay.

    Below 2^23 the sum with 2^23 keeps whole numbers only, so the addition does the rounding; above, every
    float32 is whole.
    """
    magnitude = tl.abs(v)
    whole = (magnitude + 8388608.0) - 8388608.0
    whole = tl.where(magnitude < 8388608.0, whole, magnitude)
    return tl.where(v < 0.0, -whole, whole)


@triton.jit
def grid_position(x, scale, zero_point):
    """``u = round_half_even(x / s) + z`` before the clamp; a reciprocal of ``s`` would round twice."""
    return round_half_even(tl.div_rn(x, scale)) + zero_point


@triton.jit
def in_range(u, qmin, qmax):
    """Whether ``qmin <= u <= qmax``; a NaN is not."""
    return (u >= qmin) & (u <= qmax)


@triton.jit
def clamp_code(u, qmin, qmax):
    """Clamp by comparisons, so that a NaN passes through."""
    return tl.where(u < qmin, qmin, tl.where(u > qmax, qmax, u))


@triton.jit
def quantize(x, scale, zero_point, qmin, qmax):
    """Codes of float32 ``x`` as int32; a NaN becomes the zero point."""
    u = clamp_code(grid_position(x, scale, zero_point), qmin, qmax)
    return tl.where(u == u, u, zero_point).to(tl.int32)  # noqa: PLR0124 (only a NaN differs from itself)


@triton.jit
def dequantize(code, scale, zero_point):
    """``(q - z) * s`` of float32 codes."""
    return (code - zero_point) * scale


@triton.jit
def fake_quantize(x, scale, zero_point, qmin, qmax):
    """``dequantize(quantize(x))`` in float32."""
    return dequantize(clamp_code(grid_position(x, scale, zero_point), qmin, qmax), scale, zero_point)
