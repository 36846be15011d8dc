"""The integer program: a flat list of ops over named values, which every executor runs to the same bytes.

A value is either ``codes`` (uint8, laid out ``[B, H, W, C]``) or ``float`` (float32, in torch's own layout). Shapes leave out the
batch, so a program runs at any batch size. The kinds of op, their attributes and tensors:

=============  =====================================================================================================
quantize       float -> codes. ``scale, zero_point, low, high``. ``(C, H, W) -> (H, W, C)``, ``(F,) -> (1, 1, F)``,
               ``(T, F) -> (1, T, F)``.
conv           codes [, residual codes] -> codes or float. ``stride, padding (top, left, bottom, right), dilation,
               groups, kernel, x_zero, weight_bits, weight_signed``; for codes also ``y_zero, low, high`` and with a
               residual ``residual_zero, residual_scale`` (= s_r / s_y). Tensors: ``weight`` packed
               ``[N, ceil(KH KW C/groups * bits / 32)]`` int32, rows ordered (KH, KW, C/groups); ``weight_zero`` ``[N]``
               int32, absent when all 0; ``multiplier`` and ``bias`` ``[N]`` float32, for codes already divided by s_y.
               A linear layer is a 1x1 conv over ``(1, T, F)``.
add            codes, codes -> codes. ``a_zero, a_scale, b_zero, b_scale`` (scales over s_y), ``y_zero, low, high``.
avg_pool       codes -> codes. ``window, stride, x_zero, multiplier`` (= s_x / (s_y * |window|)), ``y_zero, low, high``.
max_pool       codes -> codes. ``window, stride, padding``.
lookup         codes -> codes. Tensor ``table`` ``[256]`` uint8.
flatten        codes ``(H, W, C)`` -> ``(1, 1, H W C)``: the same bytes.
dequantize     codes -> float. ``scale, zero_point``; the layouts of quantize, backwards.
aten           floats -> float. ``op`` names a float layer, and ``attrs`` are its attributes; for ``op`` "aten" or "unary" these are
               ``target, args, kwargs``: a whitelisted ATen op with JSON arguments, run by torch. The shape of a value
               whose first dimension is not the batch is empty.
=============  =====================================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

INTEGER_KINDS = ("conv", "add", "avg_pool", "max_pool", "lookup", "flatten")
BOUNDARY_KINDS = ("quantize", "dequantize")


@dataclass(frozen=True)
class Value:
    """What flows between ops: ``kind`` is ``"codes"`` or ``"float"``; ``shape`` leaves out the batch."""

    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Op:
    """One step. ``name`` is the site or graph node it came from, for people; values are referred to by name."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    output: str
    attributes: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """Ops in the order they run. ``inputs`` and ``outputs`` are names of values; all values are listed once."""

    values: dict[str, Value]
    ops: tuple[Op, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
