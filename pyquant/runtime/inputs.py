"""What a program is given has to be what it says it takes: executors trust it from here on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyquant.errors import DTypeError, ShapeError
from pyquant.runtime.program import Program


def checked_inputs(program: Program, inputs: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The inputs, contiguous.

    Args:
        program: says what it takes.
        inputs: one batch, a tensor an input.
        device: where the executor computes; one without a number takes tensors of any such device.

    Raises:
        ShapeError: a shape or the number of inputs is wrong, or the batch is empty.
        DTypeError: a dtype or device is wrong.
    """
    names = program.inputs
    if len(inputs) != len(names):
        raise ShapeError(f"the program takes {len(names)} inputs ({', '.join(names)}), not {len(inputs)}.")
    for name, x in zip(names, inputs, strict=True):
        value = program.values[name]
        dtype = torch.uint8 if value.kind == "codes" else torch.float32
        if not isinstance(x, Tensor) or x.dtype != dtype:
            given = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise DTypeError(f"input {name!r} is {given}; the program takes {dtype} tensors.")
        if x.device.type != device.type or device.index not in (None, x.device.index):
            raise DTypeError(
                f"input {name!r} is on {x.device}; the executor takes tensors on {device}: call .to({str(device)!r})."
            )
        if x.dim() != len(value.shape) + 1 or tuple(x.shape[1:]) != value.shape:
            raise ShapeError(
                f"input {name!r} has shape {list(x.shape)}; the program takes [B, {dims(value.shape)}]."
            )
        if x.shape[0] != inputs[0].shape[0]:
            raise ShapeError(
                f"inputs have batches of {inputs[0].shape[0]} and {x.shape[0]}; give all the same batch."
            )
        if x.shape[0] == 0:
            raise ShapeError(f"input {name!r} holds an empty batch; give at least one sample.")
    return [x.resolve_neg().contiguous() for x in inputs]


def dims(shape: tuple[int, ...]) -> str:
    """Sizes for a message."""
    return ", ".join(str(size) for size in shape)
