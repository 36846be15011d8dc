"""What the ops ask of tensors, scales and zero points at the door."""

from __future__ import annotations

import torch
from torch import Tensor

from pyquant.errors import BackendError, DTypeError, GridError, ShapeError
from pyquant.grid import Grid

FLOATS = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_FLOAT32 = torch.finfo(torch.float32)
INT32_MAX = 2**31 - 1


def check_grid(x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> None:
    """Check a float tensor and the grid's parameters."""
    if x.dtype not in FLOATS:
        raise DTypeError(f"x is {x.dtype}; use float32, bfloat16 or float16.")
    check_params(x, scale, zero_point, grid)


def check_params(x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid) -> None:
    """Check what needs no values, so that it works on fake tensors too."""
    right = grid.scale_shape(tuple(x.shape))
    for name, param in (("scale", scale), ("zero_point", zero_point)):
        if param.dtype != torch.float32:
            raise DTypeError(f"{name} is {param.dtype}; use float32.")
        if param.device != x.device:
            raise DTypeError(f"{name} is on {param.device} and the tensor on {x.device}; move one of them.")
        if tuple(param.shape) != right:
            raise ShapeError(
                f"{name} has shape {tuple(param.shape)}, but {grid} on a tensor of shape {tuple(x.shape)} "
                f"needs {right}."
            )


def check_like(name: str, tensor: Tensor, model: str, like: Tensor) -> None:
    """Check that a tensor has the shape, dtype and device of another."""
    if tensor.shape != like.shape:
        raise ShapeError(
            f"{name} has shape {tuple(tensor.shape)} and {model} {tuple(like.shape)}; make them equal."
        )
    if tensor.dtype != like.dtype or tensor.device != like.device:
        raise DTypeError(
            f"{name} is {tensor.dtype} on {tensor.device} and {model} {like.dtype} on {like.device}; make them equal."
        )


def check_contiguous(name: str, tensor: Tensor) -> None:
    """Check that a result can be written in one run."""
    if not tensor.is_contiguous():
        raise DTypeError(f"{name} has strides {tensor.stride()}; use a contiguous tensor.")


def check_apart(name: str, result: Tensor, argument: str, tensor: Tensor, same_is_fine: bool) -> None:
    """A result may take the very place of an argument that is read beside it, but never a part of it."""
    start, end = result.data_ptr(), result.data_ptr() + result.nbytes
    other, other_end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    if same_is_fine and start == other:
        return
    if start < other_end and other < end:
        use = f"{argument} itself, or memory of its own" if same_is_fine else "memory of its own"
        raise DTypeError(f"{name} overlaps {argument}{' in part' if same_is_fine else ''}; use {use}.")


def _ends(values: Tensor) -> tuple[float, float]:
    """The smallest and the largest; two NaNs if there is one."""
    if values.numel() == 1:
        return values.item(), values.item()
    low, high = torch.aminmax(values)
    return low.item(), high.item()


def check_values(scale: Tensor, zero_point: Tensor, bounds: tuple[int, int] | None = None) -> None:
    """One pass over scale and zero point; inside the ops, because a traced call has no values.

    Of tensors on the CPU only: to read a GPU's, it would have to finish all that came before, and no graph could be captured.
    """
    if scale.numel() == 0 or scale.device.type != "cpu":
        return
    low, high = _ends(scale)
    tiny, huge = _FLOAT32.tiny, _FLOAT32.max
    if not (low >= tiny and high <= huge):
        raise GridError(
            f"scale runs from {low} to {high}; use positive normal finite numbers, {tiny:.4g} or more."
        )
    first, last = _ends(zero_point)
    if not (first >= -huge and last <= huge):
        raise GridError(f"zero_point runs from {first} to {last}; use finite numbers.")
    if bounds is not None and not bounds[0] <= first <= last <= bounds[1]:
        raise GridError(
            f"zero_point runs from {first} to {last}, outside the grid; "
            f"codes need it in {bounds[0]}..{bounds[1]}."
        )


def check_dtypes(**tensors: tuple[Tensor, torch.dtype]) -> None:
    """Raise DTypeError unless each ``name=(tensor, dtype)`` fits."""
    for name, (tensor, dtype) in tensors.items():
        if tensor.dtype != dtype:
            raise DTypeError(f"{name} is {tensor.dtype}; give {dtype}.")


def check_operands(x: Tensor, weight: Tensor, multiplier: Tensor, bias: Tensor) -> None:
    """Raise DTypeError unless these are uint8 and int8 codes with float32 scaling."""
    codes = {"x": (x, torch.uint8), "weight": (weight, torch.int8)}
    check_dtypes(**codes, multiplier=(multiplier, torch.float32), bias=(bias, torch.float32))


def check_code_range(**codes: int) -> None:
    """Raise BackendError unless each code is within 0..255."""
    for name, code in codes.items():
        if code not in range(256):
            raise BackendError(f"{name}={code} is no uint8 code; use 0..255.")


def check_accumulator(length: int, x_zero: int, weight: Tensor, site: str) -> None:
    """Raise ShapeError if sums of ``length`` products could leave int32.

    Args:
        length: products a sum, ``K``.
        x_zero: zero point of the uint8 activations.
        weight: int8 codes less their zero point.
        site: name for the message.
    """
    if length * max(x_zero, 255 - x_zero) * 128 <= INT32_MAX:
        return
    largest = max(x_zero, 255 - x_zero) * int(weight.to(torch.int32).abs().max())
    if length * largest > INT32_MAX:
        raise ShapeError(
            f"{site!r} sums K={length} products of up to {largest}; "
            f"int32 holds at most K={INT32_MAX // largest}."
        )


def check_matrix(op: str, x: Tensor) -> None:
    """Raise ShapeError unless ``x`` is a matrix that holds something."""
    if x.dim() != 2 or min(x.shape) == 0:
        raise ShapeError(f"{op} takes x [M, K], not {list(x.shape)}.")
