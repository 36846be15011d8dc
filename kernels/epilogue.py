"""From int32 sums to codes: the end of every integer kernel, as in ``pyquant.reference.requantize``."""

import triton
import triton.language as tl

from . import grid


@triton.jit
def affine(acc, multiplier, bias):
    """``float(acc) * m + b``, each operation rounded; launched with ``enable_fp_fusion=False``, so never fused."""
    return acc.to(tl.float32) * multiplier + bias


@triton.jit
def to_codes(y, zero_point, low, high):
    """uint8 codes of ``y`` in units of a step; bounds and zero point are whole float32 numbers."""
    return grid.clamp_code(grid.round_half_even(y) + zero_point, low, high).to(tl.int32).to(tl.uint8)
