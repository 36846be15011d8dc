"""Checks, once at load, that the ops of a program fit its values: the kernels trust what they are given."""

from __future__ import annotations

import torch

from pyquant.errors import BackendError, ShapeError
from pyquant.ops.pack import words_of
from pyquant.runtime.program import Op, Value

CODES = range(256)
ZEROS = ("x_zero", "y_zero", "a_zero", "b_zero", "residual_zero", "zero_point", "low", "high")


def rows_shape(value: Value) -> tuple[int, int, int]:
    """``(H, W, C)`` of a value: codes are so already; floats are ``(C, H, W)``, ``(T, F)`` or ``(F,)``."""
    if value.kind == "codes" or len(value.shape) != 3:
        return (*(1,) * (3 - len(value.shape)), *value.shape)  # type: ignore[return-value]
    return value.shape[1], value.shape[2], value.shape[0]


def check_op(op: Op, values: dict[str, Value]) -> None:
    """Raise unless ``op``'s attributes and tensors fit the shapes and kinds of its values.

    Raises:
        ShapeError: a shape does not follow from the op's inputs.
        BackendError: the kind is unknown, a code is outside 0..255, or a multiplier is not finite.
    """
    if op.kind == "aten":
        return
    if op.kind not in _EXPECTED:
        raise BackendError(
            f"op {op.name!r} is of kind {op.kind!r}; the cpu executor knows {', '.join(sorted(_EXPECTED))}."
        )
    for name in ZEROS:
        if name in op.attributes and int(op.attributes[name]) not in CODES:
            raise BackendError(f"op {op.name!r} has {name}={op.attributes[name]}; codes are 0..255.")
    for name, tensor in op.tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise BackendError(f"op {op.name!r} has a {name} that is not finite; its scales make no sense.")
    shapes = [rows_shape(values[name]) for name in op.inputs]
    expected = _EXPECTED[op.kind](op, shapes)
    given = rows_shape(values[op.output])
    if given != expected:
        raise ShapeError(
            f"op {op.name!r} gives [H, W, C] = {list(expected)}, but its value is declared {list(given)}."
        )


def _windows(size: int, window: int, stride: int, before: int, after: int, dilation: int = 1) -> int:
    return (size + before + after - dilation * (window - 1) - 1) // stride + 1


def _conv(op: Op, shapes: list[tuple[int, int, int]]) -> tuple[int, int, int]:
    a = op.attributes
    height, width, channels = shapes[0]
    outputs = op.tensors["multiplier"].shape[0]
    (kh, kw), (top, left, bottom, right), groups = a["kernel"], a["padding"], a["groups"]
    if groups < 1 or channels % groups or outputs % groups:
        raise ShapeError(
            f"op {op.name!r}: groups={groups} does not divide {channels} inputs and {outputs} outputs."
        )
    if min(kh, kw, *a["stride"], *a["dilation"]) < 1 or min(top, left, bottom, right) < 0:
        raise ShapeError(
            f"op {op.name!r}: kernel, stride and dilation are at least 1, and padding at least 0."
        )
    words = words_of(kh * kw * (channels // groups), a["weight_bits"])
    if tuple(op.tensors["weight"].shape) != (outputs, words) or op.tensors["bias"].shape != (outputs,):
        raise ShapeError(
            f"op {op.name!r}: weight {list(op.tensors['weight'].shape)} "
            f"and bias {list(op.tensors['bias'].shape)} should be {[outputs, words]} and {[outputs]}."
        )
    result = (
        _windows(height, kh, a["stride"][0], top, bottom, a["dilation"][0]),
        _windows(width, kw, a["stride"][1], left, right, a["dilation"][1]),
        outputs,
    )
    if min(result) < 1:
        raise ShapeError(
            f"op {op.name!r}: a {kh} x {kw} kernel does not fit a {height} x {width} input; add padding."
        )
    if len(shapes) > 1 and shapes[1] != result:
        raise ShapeError(
            f"op {op.name!r}: residual {list(shapes[1])} should be shaped like the result {list(result)}."
        )
    return result


def _pool(op: Op, shapes: list[tuple[int, int, int]]) -> tuple[int, int, int]:
    a = op.attributes
    height, width, channels = shapes[0]
    (kh, kw), (sh, sw) = a["window"], a["stride"]
    top, left, bottom, right = a.get("padding", (0, 0, 0, 0))
    result = (_windows(height, kh, sh, top, bottom), _windows(width, kw, sw, left, right), channels)
    if min(result) < 1:
        raise ShapeError(f"op {op.name!r}: a {kh} x {kw} window does not fit a {height} x {width} input.")
    last_row, last_column = (result[0] - 1) * sh - top, (result[1] - 1) * sw - left
    if top >= kh or left >= kw or last_row >= height or last_column >= width:
        raise ShapeError(f"op {op.name!r}: a window sees padding only; use less padding.")
    return result


def _same(op: Op, shapes: list[tuple[int, int, int]]) -> tuple[int, int, int]:
    if any(shape != shapes[0] for shape in shapes):
        raise ShapeError(
            f"op {op.name!r} takes inputs of one shape, not {' and '.join(str(list(s)) for s in shapes)}."
        )
    if op.kind == "lookup" and (
        op.tensors["table"].shape != (256,) or op.tensors["table"].dtype != torch.uint8
    ):
        raise ShapeError(f"op {op.name!r}: the table holds 256 uint8 codes.")
    return shapes[0]


def _flatten(op: Op, shapes: list[tuple[int, int, int]]) -> tuple[int, int, int]:
    height, width, channels = shapes[0]
    return 1, 1, height * width * channels


_EXPECTED = {
    "conv": _conv,
    "avg_pool": _pool,
    "max_pool": _pool,
    "add": _same,
    "lookup": _same,
    "quantize": _same,
    "dequantize": _same,
    "flatten": _flatten,
}
