"""linear_w4: a linear layer of floats on weights of 2, 3 or 4 bits, its input quantised on the way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyquant import reference
from pyquant.errors import ShapeError
from pyquant.ops.backend import call, choose, register, run
from pyquant.ops.cuda_launch import Launch
from pyquant.ops.gemm_w4 import multiply, multiply_on_cuda, multiply_on_triton, plan_cuda, plan_triton
from pyquant.ops.packed_w4 import PackedW4, check_weights, packed_layer
from pyquant.ops.quantize_rows import check_rows
from pyquant.ops.triton_launch import Planned


def linear_w4(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    *,
    zero_point: Tensor | None = None,
    group_size: int | None = None,
    signed: bool = True,
    bits: int = 4,
    backend: str = "auto",
) -> Tensor:
    """``x @ dequantize(packed).T`` with ``x`` quantised to 8 bits, each row by itself, on the way.

    Rows are quantised as by :func:`pyquant.ops.quantize_rows.quantize_rows`, multiplied as by
    :func:`pyquant.ops.gemm_w4.gemm_w4`, and the result is rounded once to the dtype of ``x``. A row that holds
    a NaN or an infinity comes out as NaN; no other row is touched. Every backend gives the same bytes. No
    gradient. :class:`LinearW4` is the same without the look-up and the checks of each call.

    Args:
        x: ``[..., K]`` float32, bfloat16 or float16.
        packed: ``[N, ceil(K * bits / 32)]`` int32, low code first. A repack for the kernels is kept for as long
            as this tensor lives.
        scale: ``[N, G]`` float32, real units a step; ``G = K / group_size``, or 1.
        zero_point: ``[N, G]`` int32 zero points of the weights, within their codes; None means 0.
        group_size: 32, 64 or 128 inputs that share a scale; None for a whole row.
        signed: whether weight codes are two's complement or unsigned.
        bits: 4, 3 or 2 bits a weight.
        backend: ``"auto"``, ``"reference"``, ``"cpu"``, ``"triton"`` or ``"cuda"``.

    Returns:
        ``[..., N]``, dtype of ``x``.

    Raises:
        ShapeError: shapes do not fit each other, a dimension is 0, ``group_size`` is none of those above or
            does not divide ``K``, or a group is longer than int32 sums allow.
        DTypeError: a dtype is not one of those above.
        GridError: ``bits`` is not 2, 3 or 4.
        BackendError: the backend cannot serve here.
    """
    check_rows(x, "linear_w4")
    check_weights("linear_w4", x.shape[-1], packed, scale, zero_point, group_size, bits)
    arguments = (x, packed, scale, zero_point, group_size, signed, bits)
    return call("linear_w4", backend, *arguments)


class LinearW4:
    """A linear layer on weights of 2, 3 or 4 bits: :func:`linear_w4` packed at once, with little left to do a call.

    The CPU backend only; the tensors need not be kept.

    Args:
        length: ``K``.
        packed, scale, zero_point, group_size, signed, bits: as in :func:`linear_w4`.
        isa: ``"auto"`` or one of the extension's ``available_isas()``.

    Raises:
        ShapeError, DTypeError, GridError: as :func:`linear_w4`.
        BackendError: the extension is not built.
    """

    def __init__(
        self,
        packed: Tensor,
        scale: Tensor,
        length: int,
        *,
        zero_point: Tensor | None = None,
        group_size: int | None = None,
        signed: bool = True,
        bits: int = 4,
        isa: str = "auto",
    ) -> None:
        check_weights("LinearW4", length, packed, scale, zero_point, group_size, bits)
        choose("linear_w4", packed.device, "cpu")
        self.length = length
        self._packed = PackedW4(packed, scale, zero_point, length, group_size, signed, bits, isa)

    def __call__(self, x: Tensor, threads: int | None = None) -> Tensor:
        """``[..., K]`` float32, bfloat16 or float16 to ``[..., N]`` of the same dtype."""
        check_rows(x, "LinearW4")
        if x.shape[-1] != self.length:
            raise ShapeError(f"x is {list(x.shape)}; this layer takes rows of K={self.length}.")
        if x.dim() == 2:
            return self._packed.floats(x, threads)
        return self._packed.floats(x.reshape(-1, self.length), threads).reshape(*x.shape[:-1], -1)


torch.library.define(
    "pyquant::linear_w4",
    "(Tensor x, Tensor packed, Tensor scale, Tensor? zero_point, int? group_size, bool signed, int bits) -> Tensor",
)


@torch.library.impl("pyquant::linear_w4", ("cpu", "cuda"))
def _dispatch(*arguments: Any) -> Tensor:
    return run("linear_w4", "auto", *arguments)


@torch.library.register_fake("pyquant::linear_w4")
def _fake(x: Tensor, packed: Tensor, *args: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], packed.shape[0])


@register("linear_w4", "reference")
def _reference(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    group_size: int | None,
    signed: bool,
    bits: int,
) -> Tensor:
    codes, x_scale = reference.quantize_rows(x.reshape(-1, x.shape[-1]))
    y = multiply(codes, packed, scale, x_scale, None, zero_point, group_size, signed, bits)
    return y.to(x.dtype).reshape(*x.shape[:-1], -1)


def _rows(x: Tensor) -> Tensor:
    """What the rows of ``x`` will be quantised to, without values."""
    return torch.empty(x.numel() // x.shape[-1], x.shape[-1], dtype=torch.int8, device="meta")


def _plan_cuda(device: torch.device, x: Tensor, packed: Tensor, scale: Tensor, *rest: Any) -> Launch:
    return plan_cuda(device, _rows(x), packed, scale, scale, None, *rest)


@register("linear_w4", "cuda", _plan_cuda)
def _cuda(launch: Launch, x: Tensor, packed: Tensor, scale: Tensor, *rest: Any) -> Tensor:
    # No CUDA kernel quantises rows: the best of the others does.
    codes, x_scale = run("quantize_rows", "auto", x.reshape(-1, x.shape[-1]).contiguous())
    y = multiply_on_cuda(launch, codes, packed, scale, x_scale, None, *rest)
    return y.to(x.dtype).reshape(*x.shape[:-1], -1)


def _plan_triton(device: torch.device, x: Tensor, packed: Tensor, scale: Tensor, *rest: Any) -> Planned:
    return plan_triton(device, _rows(x), packed, scale, scale, None, *rest)


@register("linear_w4", "triton", _plan_triton)
def _triton(plan: Planned, x: Tensor, packed: Tensor, scale: Tensor, *rest: Any) -> Tensor:
    codes, x_scale = run("quantize_rows", "triton", x.reshape(-1, x.shape[-1]))
    y = multiply_on_triton(plan, codes, packed, scale, x_scale, None, *rest)
    return y.to(x.dtype).reshape(*x.shape[:-1], -1)


@register("linear_w4", "cpu")
def _cpu(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    group_size: int | None,
    signed: bool,
    bits: int,
) -> Tensor:
    layer = packed_layer(packed, scale, zero_point, x.shape[-1], group_size, signed, bits)
    if x.dim() == 2:
        return layer.floats(x)
    return layer.floats(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)
