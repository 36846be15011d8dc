"""quantize_rows: activations to 8-bit codes, each row on a grid of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyquant import reference
from pyquant.errors import DTypeError, ShapeError
from pyquant.ops.backend import call, extension, register, run
from pyquant.ops.triton_launch import FLOATS as TRITON_FLOATS
from pyquant.ops.triton_launch import target_of

# How the extension numbers the types.
FLOATS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def quantize_rows(x: Tensor, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Quantise rows to symmetric 8-bit codes: ``s = max |x| / 127``, ``q = round(x / s)``, ties to even.

    The scale of a row of zeros, or of numbers below 127 * 2^-126, is the smallest normal float32, 2^-126. A row
    that holds a NaN or an infinity has the scale NaN and codes 0: whatever is computed from it is NaN, and no
    other row is touched. Every backend gives the same bytes. No gradient.

    Args:
        x: ``[M, K]`` float32, bfloat16 or float16, computed in float32.
        backend: ``"auto"``, ``"reference"``, ``"cpu"`` or ``"triton"``.

    Returns:
        ``[M, K]`` int8 codes within -127..127 and ``[M]`` float32 scales, real units a step.

    Raises:
        DTypeError: ``x`` is of another dtype.
        ShapeError: ``x`` is not a matrix, or a dimension is 0.
        BackendError: the backend cannot serve here.

    Source: :func:`pyquant.reference.quantize_rows`.
    """
    check_rows(x, "quantize_rows")
    if x.dim() != 2:
        raise ShapeError(f"quantize_rows takes x [M, K], not {list(x.shape)}; reshape it.")
    return call("quantize_rows", backend, x)


torch.library.define("pyquant::quantize_rows", "(Tensor x) -> (Tensor, Tensor)")


@torch.library.impl("pyquant::quantize_rows", ("cpu", "cuda"))
def _dispatch(x: Tensor) -> tuple[Tensor, Tensor]:
    return run("quantize_rows", "auto", x)


@torch.library.register_fake("pyquant::quantize_rows")
def _fake(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty(x.shape[0], dtype=torch.float32)


@register("quantize_rows", "reference")
def _reference(x: Tensor) -> tuple[Tensor, Tensor]:
    return reference.quantize_rows(x)


def _plan_triton(device: torch.device, x: Tensor) -> Any:
    target = target_of(device)
    from pyquant.kernels import quantize_rows as kernel

    return kernel.choose(kernel.Description(x.shape[1], TRITON_FLOATS[x.dtype]), target)


@register("quantize_rows", "triton", _plan_triton)
def _triton(chosen: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    from pyquant.kernels import quantize_rows as kernel

    codes, scale, _ = kernel.launch(x.contiguous())
    return codes, scale


@register("quantize_rows", "cpu")
def _cpu(x: Tensor, isa: str = "auto", threads: int | None = None) -> tuple[Tensor, Tensor]:
    x = x.contiguous()
    codes, scale = torch.empty(x.shape, dtype=torch.int8), torch.empty(x.shape[0])
    extension().quantize_rows(  # type: ignore[union-attr]
        FLOATS[x.dtype],
        x.data_ptr(),
        codes.data_ptr(),
        scale.data_ptr(),
        *x.shape,
        isa,
        threads or torch.get_num_threads(),
    )
    return codes, scale


def check_rows(x: Tensor, op: str) -> None:
    """Refuse what is no float tensor of rows, or an empty one."""
    if x.dtype not in FLOATS:
        raise DTypeError(f"x is {x.dtype}; {op} takes float32, bfloat16 or float16.")
    if x.dim() == 0 or x.numel() == 0:
        raise ShapeError(f"x is {list(x.shape)}; {op} takes at least one row of at least one number.")
