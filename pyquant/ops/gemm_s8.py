"""gemm_s8: 8-bit matrix product, to requantised codes or to float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyquant import reference
from pyquant.errors import ShapeError
from pyquant.ops.backend import call, register, run
from pyquant.ops.checks import check_accumulator, check_code_range, check_operands
from pyquant.ops.cuda_launch import Launch, fit
from pyquant.ops.cuda_layouts import aligned_rows, zero_correction
from pyquant.ops.kept import kept
from pyquant.ops.packed_conv import packed
from pyquant.ops.triton_launch import Planned, planned


def gemm_s8(
    x: Tensor,
    weight: Tensor,
    multiplier: Tensor,
    bias: Tensor,
    *,
    x_zero: int,
    y_zero: int,
    low: int = 0,
    high: int = 255,
    backend: str = "auto",
) -> Tensor:
    """Multiply codes: ``y = clamp(round(float(acc) * multiplier + bias) + y_zero, low, high)``.

    Here ``acc = (x - x_zero) @ weight.T``, exact.

    Args:
        x: ``[M, K]`` uint8 codes.
        weight: ``[N, K]`` int8 codes, zero point 0.
        multiplier: ``[N]`` float32, ``s_x s_w / s_y``.
        bias: ``[N]`` float32, ``bias / s_y``.
        x_zero, y_zero: zero points, 0..255.
        low, high: clamp bounds in codes, 0..255; an activation is one of them.
        backend: ``"auto"``, ``"reference"``, ``"cpu"``, ``"triton"`` or ``"cuda"``; all give the same bytes.

    Returns:
        ``[M, N]`` uint8.

    Raises:
        ShapeError: shapes do not fit each other, a dimension is 0, or sums could leave int32.
        DTypeError: a dtype is not the one above.
        BackendError: a code parameter is outside 0..255, or the backend cannot serve here.

    Source: :func:`pyquant.reference.requantize`.
    """
    check_code_range(x_zero=x_zero, y_zero=y_zero, low=low, high=high)
    _check(x, weight, multiplier, bias, x_zero)
    arguments = (x, weight, multiplier, bias, x_zero, y_zero, low, high)
    return call("gemm_s8", backend, *arguments)


def gemm_s8_float(
    x: Tensor, weight: Tensor, multiplier: Tensor, bias: Tensor, *, x_zero: int, backend: str = "auto"
) -> Tensor:
    """Multiply codes to float32: ``y = float((x - x_zero) @ weight.T) * multiplier + bias``.

    Arguments and errors as in :func:`gemm_s8`, except that ``multiplier`` is ``s_x s_w`` and ``bias`` is in
    real units.

    Returns:
        ``[M, N]`` float32, each operation rounded once.

    Source: :func:`pyquant.reference.affine`.
    """
    check_code_range(x_zero=x_zero)
    _check(x, weight, multiplier, bias, x_zero)
    arguments = (x, weight, multiplier, bias, x_zero)
    return call("gemm_s8_float", backend, *arguments)


# -------------------------------------------------------------------------------------------------- schema
torch.library.define(
    "pyquant::gemm_s8",
    "(Tensor x, Tensor weight, Tensor multiplier, Tensor bias, int x_zero, int y_zero, int low, int high)"
    " -> Tensor",
)
torch.library.define(
    "pyquant::gemm_s8_float",
    "(Tensor x, Tensor weight, Tensor multiplier, Tensor bias, int x_zero) -> Tensor",
)


@torch.library.impl("pyquant::gemm_s8", ("cpu", "cuda"))
def _dispatch(*arguments: Any) -> Tensor:
    return run("gemm_s8", "auto", *arguments)


@torch.library.impl("pyquant::gemm_s8_float", ("cpu", "cuda"))
def _dispatch_float(*arguments: Any) -> Tensor:
    return run("gemm_s8_float", "auto", *arguments)


@torch.library.register_fake("pyquant::gemm_s8")
def _fake(x: Tensor, weight: Tensor, *args: Any) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.register_fake("pyquant::gemm_s8_float")
def _fake_float(x: Tensor, weight: Tensor, *args: Any) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], dtype=torch.float32)


# ------------------------------------------------------------------------------------------------ backends
@register("gemm_s8", "reference")
def _reference(
    x: Tensor, weight: Tensor, multiplier: Tensor, bias: Tensor, x_zero: int, y_zero: int, low: int, high: int
) -> Tensor:
    acc = (x.double() - x_zero) @ weight.double().T
    return reference.requantize(acc, multiplier, bias, y_zero, low, high)


@register("gemm_s8_float", "reference")
def _reference_float(x: Tensor, weight: Tensor, multiplier: Tensor, bias: Tensor, x_zero: int) -> Tensor:
    return reference.affine((x.double() - x_zero) @ weight.double().T, multiplier, bias)


# A matrix product is a 1 x 1 convolution whose rows are images of one pixel.
_POINT = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1}


@register("gemm_s8", "cpu")
def _cpu(
    x: Tensor, weight: Tensor, multiplier: Tensor, bias: Tensor, x_zero: int, y_zero: int, low: int, high: int
) -> Tensor:
    options = {**_POINT, "x_zero": x_zero, "y_zero": y_zero, "low": low, "high": high}
    return _rows(x, weight, multiplier, bias, options)


@register("gemm_s8_float", "cpu")
def _cpu_float(x: Tensor, weight: Tensor, multiplier: Tensor, bias: Tensor, x_zero: int) -> Tensor:
    options = {**_POINT, "x_zero": x_zero, "to_float": True}
    return _rows(x, weight, multiplier, bias, options)


def _rows(x: Tensor, weight: Tensor, multiplier: Tensor, bias: Tensor, options: dict[str, Any]) -> Tensor:
    layer = packed(weight, multiplier, bias, (1, 1, weight.shape[1]), **options)
    return layer(x).reshape(x.shape[0], weight.shape[0])


def _plan_cuda(device: torch.device, x: Tensor, weight: Tensor, *rest: Any) -> Launch:
    # Without clamp bounds behind the zero point the result is float32.
    return fit("gemm_s8" if len(rest) > 3 else "gemm_s8_float", device, x.shape[0], weight.shape[0])


@register("gemm_s8", "cuda", _plan_cuda)
@register("gemm_s8_float", "cuda", _plan_cuda)
def multiply_on_cuda(
    launch: Launch, x: Tensor, weight: Tensor, multiplier: Tensor, bias: Tensor, x_zero: int, *bounds: int
) -> Tensor:
    """:func:`gemm_s8`, or without ``bounds`` :func:`gemm_s8_float`, by the kernel that was chosen.

    Args:
        weight: ``[N, K]``, or ``[N, KH, KW, C]`` with ``KH KW C = K``.
        bounds: ``y_zero, low, high``, or none.
    """
    rows, laid = aligned_rows(x), kept("cuda gemm_s8", _weight_rows, weight)
    y = torch.empty(
        x.shape[0], weight.shape[0], dtype=torch.uint8 if bounds else torch.float32, device=x.device
    )
    tensors = {"x": rows, "weight": laid, "multiplier": multiplier.contiguous(), "bias": bias.contiguous()}
    sizes = {"m": x.shape[0], "n": weight.shape[0], "k": rows.shape[1]}
    codes = dict(zip(("y_zero", "low", "high"), bounds, strict=False))
    zero = kept("cuda gemm_s8 correction", _zero_correction, weight, x_zero)
    launch(x.device, {**tensors, "correction": zero, "y": y, **sizes, **codes})
    return y


def _weight_rows(weight: Tensor) -> Tensor:
    return aligned_rows(weight.flatten(1))


def _zero_correction(weight: Tensor, x_zero: int) -> Tensor:
    return zero_correction(weight.flatten(1), x_zero)


def _plan_triton(device: torch.device, x: Tensor, weight: Tensor, *rest: Any) -> Planned:
    sizes = {"m": x.shape[0], "n": weight.shape[0], "k": x.shape[1]}
    return planned("gemm_s8", device, **sizes, to_codes=len(rest) > 3)


@register("gemm_s8", "triton", _plan_triton)
@register("gemm_s8_float", "triton", _plan_triton)
def multiply_on_triton(
    plan: Planned, x: Tensor, weight: Tensor, multiplier: Tensor, bias: Tensor, x_zero: int, *bounds: int
) -> Tensor:
    """As :func:`multiply_on_cuda`."""
    from pyquant.kernels import gemm_s8 as kernel

    options = dict(zip(("y_zero", "low", "high"), bounds, strict=False))
    parameters = weight.flatten(1).contiguous(), multiplier.contiguous(), bias.contiguous()
    return kernel.launch(
        x.contiguous(),
        *parameters,
        correction(weight, x_zero),
        to_codes=bool(bounds),
        configuration=plan.configuration,
        **options,
    )


def correction(weight: Tensor, x_zero: int) -> Tensor:
    """What Triton's sums lack, ``[N]`` int32, kept with the weight: ``[N, K]`` or ``[N, KH, KW, C]`` int8."""
    return kept("triton correction", _correction, weight, x_zero)


def _correction(weight: Tensor, x_zero: int) -> Tensor:
    from pyquant.kernels import gemm_s8 as kernel

    return kernel.correction_of(weight.flatten(1), x_zero)


# -------------------------------------------------------------------------------------------------- checks
def _check(x: Tensor, weight: Tensor, multiplier: Tensor, bias: Tensor, x_zero: int) -> None:
    check_operands(x, weight, multiplier, bias)
    if (
        x.dim() != 2
        or weight.dim() != 2
        or x.shape[1] != weight.shape[1]
        or min(*x.shape, *weight.shape) == 0
    ):
        raise ShapeError(
            f"gemm_s8 takes x [M, K] and weight [N, K], not {list(x.shape)} and {list(weight.shape)}."
        )
    n = weight.shape[0]
    if multiplier.shape != (n,) or bias.shape != (n,):
        raise ShapeError(
            f"gemm_s8: multiplier {list(multiplier.shape)} and bias {list(bias.shape)} should be [{n}]."
        )
    check_accumulator(x.shape[1], x_zero, weight, "gemm_s8")
