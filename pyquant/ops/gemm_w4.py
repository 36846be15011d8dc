"""gemm_w4: 8-bit activations times weights of 2, 3 or 4 bits, per channel or in groups, to float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyquant.errors import DTypeError, GridError, ShapeError
from pyquant.ops.backend import Unserved, call, register, run
from pyquant.ops.checks import check_dtypes, check_matrix
from pyquant.ops.cuda_launch import Launch, fit
from pyquant.ops.cuda_layouts import CudaWeights, aligned_rows, weights_w4a8
from pyquant.ops.kept import kept
from pyquant.ops.pack import unpack
from pyquant.ops.packed_w4 import check_weights, packed_layer
from pyquant.ops.triton_launch import Planned, planned


def gemm_w4(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    *,
    x_zero: Tensor | None = None,
    zero_point: Tensor | None = None,
    group_size: int | None = None,
    signed: bool = True,
    bits: int = 4,
    backend: str = "auto",
) -> Tensor:
    """Multiply 8-bit activations by 4-bit weights, or by weights of 2 or 3 bits.

    ``y = x_scale * sum_g scale_g * (x_g - x_zero) @ (w_g - zero_point_g).T``: a group's integer sum is exact;
    groups are added in ascending order in float32, one rounding each; the row's scale comes last. Every
    backend gives the same bytes.

    Args:
        x: ``[M, K]`` uint8 or int8 codes.
        packed: ``[N, ceil(K * bits / 32)]`` int32, low code first, as :func:`pyquant.ops.pack.pack` makes it. A
            repack for the kernels is kept for as long as this tensor lives.
        scale: ``[N, G]`` float32, real units a step; ``G = K / group_size``, or 1.
        x_scale: ``[M]`` float32, real units a step of each row.
        x_zero: ``[M]`` int32 zero points of the rows, within the codes of ``x``; None means 0.
        zero_point: ``[N, G]`` int32 zero points of the weights, within their codes; None means 0.
        group_size: 32, 64 or 128 inputs that share a scale; None for a whole row.
        signed: whether weight codes are two's complement (-8..7 with 4 bits) or unsigned (0..15).
        bits: 4, 3 or 2 bits a weight.
        backend: ``"auto"``, ``"reference"``, ``"cpu"``, ``"triton"`` or ``"cuda"``.

    Returns:
        ``[M, N]`` float32.

    Raises:
        ShapeError: shapes do not fit each other, a dimension is 0, ``group_size`` is none of those above or
            does not divide ``K``, or a group is longer than int32 sums allow: (2^31 - 1) / (255 * 15) = 561,433
            with 4 bits.
        DTypeError: a dtype is not the one above.
        GridError: ``bits`` is not 2, 3 or 4.
        BackendError: the backend cannot serve here.

    Source: ARCHITECTURE, the numerics contract; the reference is on this page.
    """
    if x.dtype not in (torch.uint8, torch.int8):
        raise DTypeError(f"x is {x.dtype}; give uint8 or int8 codes.")
    check_matrix("gemm_w4", x)
    check_row_grids(x.shape[0], x_scale, x_zero)
    check_weights("gemm_w4", x.shape[1], packed, scale, zero_point, group_size, bits)
    arguments = (x, packed, scale, x_scale, x_zero, zero_point, group_size, signed, bits)
    return call("gemm_w4", backend, *arguments)


# -------------------------------------------------------------------------------------------------- schema
torch.library.define(
    "pyquant::gemm_w4",
    "(Tensor x, Tensor packed, Tensor scale, Tensor x_scale, Tensor? x_zero, Tensor? zero_point, "
    "int? group_size, bool signed, int bits) -> Tensor",
)


@torch.library.impl("pyquant::gemm_w4", ("cpu", "cuda"))
def _dispatch(*arguments: Any) -> Tensor:
    return run("gemm_w4", "auto", *arguments)


@torch.library.register_fake("pyquant::gemm_w4")
def _fake(x: Tensor, packed: Tensor, *args: Any) -> Tensor:
    return x.new_empty(x.shape[0], packed.shape[0], dtype=torch.float32)


# ------------------------------------------------------------------------------------------------ backends
@register("gemm_w4", "reference")
def multiply(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    zero_point: Tensor | None,
    group_size: int | None,
    signed: bool,
    bits: int,
) -> Tensor:
    """The formula of :func:`gemm_w4` in plain torch: sums in float64, which holds them exactly."""
    (m, k), n = x.shape, packed.shape[0]
    size = group_size or k
    codes = unpack(packed, bits, signed, k).double().reshape(n, -1, size)
    if zero_point is not None:
        codes = codes - zero_point.double()[:, :, None]
    centred = x.double() if x_zero is None else x.double() - x_zero.double()[:, None]
    centred = centred.reshape(m, -1, size)
    total = torch.zeros(m, n, dtype=torch.float32, device=x.device)
    for g in range(k // size):
        acc = centred[:, g] @ codes[:, g].T
        total = total + acc.to(torch.int32).float() * scale[:, g]
    return total * x_scale[:, None]


@register("gemm_w4", "cpu")
def _cpu(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    zero_point: Tensor | None,
    group_size: int | None,
    signed: bool,
    bits: int,
) -> Tensor:
    layer = packed_layer(packed, scale, zero_point, x.shape[1], group_size, signed, bits)
    return layer.codes(x, x_scale, x_zero)


def plan_cuda(
    device: torch.device,
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    zero_point: Tensor | None,
    group_size: int | None,
    *rest: Any,
) -> Launch:
    """The CUDA kernel for a call of :func:`gemm_w4`, for weights that it can hold."""
    launch = fit("gemm_w4a8", device, x.shape[0], packed.shape[0], x.dtype == torch.int8, group_size)
    try:
        _for_cuda(packed, scale, zero_point, x.shape[1], group_size, *rest)
    except (ShapeError, GridError) as error:
        raise Unserved(str(error).partition(";")[0]) from None
    return launch


def _for_cuda(packed: Tensor, *rest: Any) -> CudaWeights:
    return kept("cuda gemm_w4a8", weights_w4a8, packed, *rest)


@register("gemm_w4", "cuda", plan_cuda)
def multiply_on_cuda(
    launch: Launch,
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    zero_point: Tensor | None,
    *options: Any,
) -> Tensor:
    """:func:`gemm_w4` by the kernel that was chosen."""
    weights = _for_cuda(packed, scale, zero_point, x.shape[1], *options)
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
            "row_bytes": rows.shape[1],
            "weight_row_bytes": weights.codes.shape[1],
            "groups": weights.scale.shape[0],
            "group_size": options[0] or x.shape[1],
        },
    )
    return y


# Sums of 8-bit codes times weights that count as 16 times their code stay within int32 up to here.
_TRITON_ROW = 131_071


def plan_triton(
    device: torch.device,
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    zero_point: Tensor | None,
    group_size: int | None,
    signed: bool,
    *_: Any,
) -> Planned:
    """Triton's kernel for a call of :func:`gemm_w4`."""
    m, k = x.shape
    if group_size is None and k > _TRITON_ROW:
        raise Unserved(f"its sums hold at most K={_TRITON_ROW} codes without groups, and there are {k}")
    return planned(
        "gemm_w4a8",
        device,
        m=m,
        n=packed.shape[0],
        k=k,
        group=group_size or 0,
        zero=zero_point is not None or not signed,
        x_zero=x_zero is not None or x.dtype != torch.int8,
        x_unsigned=x.dtype != torch.int8,
    )


@register("gemm_w4", "triton", plan_triton)
def multiply_on_triton(
    plan: Planned,
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    zero_point: Tensor | None,
    *options: Any,
) -> Tensor:
    """:func:`gemm_w4` by the configuration that was chosen."""
    from pyquant.kernels import gemm_w4a8 as kernel

    weight = kept("triton gemm_w4a8", _repacked, packed, scale, zero_point, x.shape[1], *options)
    zero = None if x_zero is None else x_zero.contiguous()
    how = {"x_zero": zero, "configuration": plan.configuration}
    return kernel.launch(x.contiguous(), weight, x_scale.contiguous(), **how)


def _repacked(
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    length: int,
    group_size: int | None,
    signed: bool,
    bits: int,
) -> Any:
    from pyquant.kernels import gemm_w4a8 as kernel

    return kernel.repack(unpack(packed, bits, signed, length), scale, zero_point, group_size, signed)


# -------------------------------------------------------------------------------------------------- checks
def check_row_grids(rows: int, x_scale: Tensor, x_zero: Tensor | None) -> None:
    """Refuse scales and zero points that are not one a row."""
    check_dtypes(x_scale=(x_scale, torch.float32))
    if x_scale.shape != (rows,):
        raise ShapeError(f"x_scale is {list(x_scale.shape)}; it should be [{rows}], one a row.")
    if x_zero is not None:
        check_dtypes(x_zero=(x_zero, torch.int32))
        if x_zero.shape != (rows,):
            raise ShapeError(f"x_zero is {list(x_zero.shape)}; it should be [{rows}], one a row.")
