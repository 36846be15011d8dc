"""gemm_w4a4: 4-bit activations, stored two to a byte, times weights of 2, 3 or 4 bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyquant.errors import ShapeError
from pyquant.ops.backend import Unserved, call, register, run
from pyquant.ops.checks import check_dtypes
from pyquant.ops.cuda_launch import Launch, fit
from pyquant.ops.cuda_layouts import aligned_rows, weights_w4a4
from pyquant.ops.gemm_w4 import (
    check_row_grids,
    multiply,
    multiply_on_cuda,
    multiply_on_triton,
    plan_cuda,
    plan_triton,
)
from pyquant.ops.kept import kept
from pyquant.ops.pack import unpack, words_of
from pyquant.ops.packed_w4 import check_weights, packed_layer
from pyquant.ops.triton_launch import Planned


def gemm_w4a4(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    *,
    length: int,
    x_zero: Tensor | None = None,
    x_signed: bool = True,
    zero_point: Tensor | None = None,
    group_size: int | None = None,
    signed: bool = True,
    bits: int = 4,
    backend: str = "auto",
) -> Tensor:
    """Multiply 4-bit activations by low-bit weights; both are stored packed.

    On a CPU this saves memory, not arithmetic: no instruction multiplies nibbles, so the codes are unpacked to
    bytes on the way, and the products cost what those of :func:`pyquant.ops.gemm_w4.gemm_w4` cost.

    Args:
        x: ``[M, ceil(K / 8)]`` int32, eight codes a word, low nibble first.
        length: ``K``.
        x_zero: ``[M]`` int32 zero points of the rows, within their codes; None means 0.
        x_signed: whether activation codes are two's complement (-8..7) or 0..15.
        packed, scale, x_scale, zero_point, group_size, signed, bits, backend: as in ``gemm_w4``.

    Returns:
        ``[M, N]`` float32.

    Raises:
        ShapeError, DTypeError, GridError, BackendError: as ``gemm_w4``.
    """
    check_dtypes(x=(x, torch.int32))
    if x.dim() != 2 or length < 1 or x.shape[0] == 0 or x.shape[1] != words_of(length, 4):
        raise ShapeError(
            f"x is {list(x.shape)}; gemm_w4a4 takes [M, {words_of(length, 4)}] words for length={length}."
        )
    check_row_grids(x.shape[0], x_scale, x_zero)
    check_weights("gemm_w4a4", length, packed, scale, zero_point, group_size, bits)
    rows, weights = (length, x_zero, x_signed), (zero_point, group_size, signed, bits)
    arguments = (x, packed, scale, x_scale, *rows, *weights)
    return call("gemm_w4a4", backend, *arguments)


torch.library.define(
    "pyquant::gemm_w4a4",
    "(Tensor x, Tensor packed, Tensor scale, Tensor x_scale, int length, Tensor? x_zero, bool x_signed, "
    "Tensor? zero_point, int? group_size, bool signed, int bits) -> Tensor",
)


@torch.library.impl("pyquant::gemm_w4a4", ("cpu", "cuda"))
def _dispatch(*arguments: Any) -> Tensor:
    return run("gemm_w4a4", "auto", *arguments)


@torch.library.register_fake("pyquant::gemm_w4a4")
def _fake(x: Tensor, packed: Tensor, *args: Any) -> Tensor:
    return x.new_empty(x.shape[0], packed.shape[0], dtype=torch.float32)


@register("gemm_w4a4", "reference")
def _reference(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    length: int,
    x_zero: Tensor | None,
    x_signed: bool,
    *weights: Any,
) -> Tensor:
    return multiply(unpack(x, 4, x_signed, length), packed, scale, x_scale, x_zero, *weights)


@register("gemm_w4a4", "cpu")
def _cpu(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    length: int,
    x_zero: Tensor | None,
    x_signed: bool,
    zero_point: Tensor | None,
    *options: Any,
) -> Tensor:
    layer = packed_layer(packed, scale, zero_point, length, *options)
    return layer.words(x, x_scale, x_zero, x_signed)


def _plan_cuda(
    device: torch.device,
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    length: int,
    x_zero: Tensor | None,
    x_signed: bool,
    zero_point: Tensor | None,
    group_size: int | None,
    *rest: Any,
) -> Launch:
    try:
        return fit("gemm_w4a4", device, x.shape[0], packed.shape[0], x_signed, group_size)
    except Unserved:
        # From sm_90 on, int4 products are emulated: the int8 kernels are faster, on activations unpacked to bytes.
        codes = _as_bytes(x, x_signed, length)
        return plan_cuda(device, codes, packed, scale, x_scale, x_zero, zero_point, group_size, *rest)


@register("gemm_w4a4", "cuda", _plan_cuda)
def _cuda(
    launch: Launch,
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    length: int,
    x_zero: Tensor | None,
    x_signed: bool,
    zero_point: Tensor | None,
    *options: Any,
) -> Tensor:
    if launch.kernel.op == "gemm_w4a8":
        codes = _bytes(x, x_signed, length)
        return multiply_on_cuda(launch, codes, packed, scale, x_scale, x_zero, zero_point, *options)
    weights = kept("cuda gemm_w4a4", weights_w4a4, packed, scale, zero_point, length, *options)
    rows = aligned_rows(x)
    y = torch.empty(x.shape[0], packed.shape[0], device=x.device)
    launch(
        x.device,
        {
            "x": rows,
            "weight": weights.codes,
            "scale": weights.scale,
            "zero_point": weights.zero,
            "sums": weights.sums,
            "x_scale": x_scale.contiguous(),
            "x_zero": None if x_zero is None else x_zero.contiguous(),
            "y": y,
            "m": x.shape[0],
            "n": packed.shape[0],
            "row_bytes": 4 * rows.shape[1],
            "groups": weights.scale.shape[0],
        },
    )
    return y


def _as_bytes(x: Tensor, x_signed: bool, length: int) -> Tensor:
    """What :func:`_bytes` will give, without values."""
    return torch.empty(x.shape[0], length, dtype=torch.int8 if x_signed else torch.uint8, device="meta")


def _bytes(x: Tensor, x_signed: bool, length: int) -> Tensor:
    """Packed activations as 8-bit codes."""
    return unpack(x, 4, x_signed, length).to(torch.int8 if x_signed else torch.uint8)


def _plan_triton(
    device: torch.device,
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    length: int,
    x_zero: Tensor | None,
    x_signed: bool,
    *weights: Any,
) -> Planned:
    codes = _as_bytes(x, x_signed, length)
    return plan_triton(device, codes, packed, scale, x_scale, x_zero, *weights)


@register("gemm_w4a4", "triton", _plan_triton)
def _triton(
    plan: Planned,
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    length: int,
    x_zero: Tensor | None,
    x_signed: bool,
    *weights: Any,
) -> Tensor:
    # Triton has no int4 product: the int8 one, on activations unpacked to bytes.
    return multiply_on_triton(plan, _bytes(x, x_signed, length), packed, scale, x_scale, x_zero, *weights)
