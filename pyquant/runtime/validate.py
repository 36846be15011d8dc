"""Checks, once at the door, that a program makes sense: what runs it trusts all it is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyquant.errors import BackendError, CheckpointError, ShapeError
from pyquant.runtime.float_nodes import float_node_fault
from pyquant.runtime.geometry import check_op
from pyquant.runtime.program import Op, Program, Value

ACCUMULATOR_LIMIT = 2**31 - 1
# Beyond these no size is meant, and products of sizes could leave the 64 bits that kernels count in.
LARGEST_SIZE, LARGEST_VALUE = 2**16, 2**31 - 1

Rule = tuple[str, Callable[[Any], bool]]


def whole(item: Any, low: int, high: int) -> bool:
    """Whether ``item`` is a whole number of ``low..high``; a bool is none."""
    return isinstance(item, int) and not isinstance(item, bool) and low <= item <= high


def wholes(item: Any, length: int, low: int) -> bool:
    """Whether ``item`` is ``length`` whole numbers from ``low`` to :data:`LARGEST_SIZE`."""
    return (
        isinstance(item, list | tuple)
        and len(item) == length
        and all(whole(i, low, LARGEST_SIZE) for i in item)
    )


def _is_float32(item: Any, least: float) -> bool:
    if not isinstance(item, float) or not math.isfinite(item) or abs(item) > float(np.finfo(np.float32).max):
        return False
    return item >= least and float(np.float32(item)) == item


CODE: Rule = ("a whole number of 0..255", lambda item: whole(item, 0, 255))
COUNT: Rule = ("a whole number from 1", lambda item: whole(item, 1, LARGEST_SIZE))
PAIR: Rule = ("two whole numbers from 1", lambda item: wholes(item, 2, 1))
PADS: Rule = ("four whole numbers from 0", lambda item: wholes(item, 4, 0))
BITS: Rule = ("a whole number of 2..8", lambda item: whole(item, 2, 8))
FLAG: Rule = ("true or false", lambda item: isinstance(item, bool))
SCALE: Rule = ("a positive normal float32", lambda item: _is_float32(item, float(np.finfo(np.float32).tiny)))
RATIO: Rule = (
    "a positive finite float32",
    lambda item: _is_float32(item, float(np.finfo(np.float32).smallest_subnormal)),
)

_CLAMP = {"y_zero": CODE, "low": CODE, "high": CODE}
_ATTRIBUTES: Mapping[str, Mapping[str, Rule]] = {
    "quantize": {"scale": SCALE, "zero_point": CODE, "low": CODE, "high": CODE},
    "dequantize": {"scale": SCALE, "zero_point": CODE},
    "conv": {
        "stride": PAIR, "padding": PADS, "dilation": PAIR, "groups": COUNT, "kernel": PAIR,
        "x_zero": CODE, "weight_bits": BITS, "weight_signed": FLAG,
    },
    "add": {"a_zero": CODE, "a_scale": RATIO, "b_zero": CODE, "b_scale": RATIO, **_CLAMP},
    "avg_pool": {"window": PAIR, "stride": PAIR, "x_zero": CODE, "multiplier": RATIO, **_CLAMP},
    "max_pool": {"window": PAIR, "stride": PAIR, "padding": PADS},
    "lookup": {},
    "flatten": {},
}  # fmt: skip
_RESIDUAL = {"residual_zero": CODE, "residual_scale": RATIO}
# Kinds of the inputs -> kind of the output; a conv, which has several forms, is looked at apart.
_SIGNATURES = {
    "quantize": (("float",), "codes"),
    "dequantize": (("codes",), "float"),
    "add": (("codes", "codes"), "codes"),
    "avg_pool": (("codes",), "codes"),
    "max_pool": (("codes",), "codes"),
    "lookup": (("codes",), "codes"),
    "flatten": (("codes",), "codes"),
}


def validate(program: Program) -> None:
    """Raise unless every executor can run the program without looking at it again.

    Args:
        program: from a file, or just lowered.

    Raises:
        CheckpointError: an op is unknown or reads what nothing gives, an attribute or tensor is missing, of
            another type or out of range, shapes do not follow from each other, or a sum may overflow int32.
            The sentence names the op.
    """
    _check_values(program)
    known = dict.fromkeys(program.inputs, (0, 255))
    for op in program.ops:
        unknown = [name for name in op.inputs if name not in known]
        if unknown:
            raise _fault(op, f"reads {unknown[0]!r}, which no input or earlier op gives; ops run in order")
        if op.output in known:
            raise _fault(op, f"gives {op.output!r} a second time; every value is given once")
        if op.output not in program.values:
            raise _fault(op, f"gives {op.output!r}, which is not among the values")
        if op.kind == "aten":
            fault = float_node_fault(op, program.values)
            if fault is not None:
                raise _fault(op, fault)
        else:
            _check_integer_op(op, program.values)
            _check_sums(op, program.values, known)
        known[op.output] = _bounds(op, known)
    for name in (*program.values, *program.outputs):
        if name not in known:
            raise CheckpointError(
                f"the value {name!r} is given by no input and no op; every value is given once."
            )


def _fault(op: Op, what: str) -> CheckpointError:
    return CheckpointError(f"op {op.name!r} ({op.kind}) {what}.")


def _check_values(program: Program) -> None:
    if not program.inputs or not program.outputs or len(set(program.inputs)) != len(program.inputs):
        raise CheckpointError("a program has inputs, each named once, and outputs; this one has not.")
    for name in program.inputs:
        if name not in program.values:
            raise CheckpointError(f"the input {name!r} is not among the program's values.")
    for name, value in program.values.items():
        least = 1 if value.kind == "codes" else 0
        if value.kind not in ("codes", "float") or not all(
            whole(size, least, LARGEST_VALUE) for size in value.shape
        ):
            raise CheckpointError(
                f"the value {name!r} is {value.kind!r} of shape {value.shape}; "
                f"it should be codes or float, of sizes from {least}."
            )
        if value.kind == "codes" and len(value.shape) != 3:
            raise CheckpointError(f"the value {name!r} has shape {value.shape}; codes are (H, W, C).")
        if math.prod(value.shape) > LARGEST_VALUE:
            raise CheckpointError(
                f"the value {name!r} of shape {value.shape} has more than {LARGEST_VALUE} elements a sample; "
                "use smaller inputs."
            )


# ------------------------------------------------------------------------------------------------ integer ops
def _check_integer_op(op: Op, values: Mapping[str, Value]) -> None:
    if op.kind not in _ATTRIBUTES:
        raise _fault(
            op, f"is of a kind this version does not know; it knows {', '.join(_ATTRIBUTES)} and aten"
        )
    given, gives = tuple(values[name].kind for name in op.inputs), values[op.output].kind
    if op.kind == "conv":
        fits = given == ("codes",) or (given == ("codes", "codes") and gives == "codes")
    else:
        fits = (given, gives) == _SIGNATURES[op.kind]
    if not fits:
        raise _fault(
            op, f"takes {' and '.join(given) or 'nothing'} and gives {gives}, which this kind does not"
        )
    if any(len(values[name].shape) > 3 for name in (*op.inputs, op.output)):
        raise _fault(op, "has a value of more than three dimensions a sample; integer ops take up to three")
    _check_attributes(op, gives)
    _check_tensors(op)
    try:
        check_op(op, dict(values))
    except (ShapeError, BackendError) as error:
        raise CheckpointError(str(error)) from error


def _check_attributes(op: Op, gives: str) -> None:
    rules = dict(_ATTRIBUTES[op.kind])
    if op.kind == "conv" and gives == "codes":
        rules |= _CLAMP | (_RESIDUAL if len(op.inputs) == 2 else {})
    for name in op.attributes.keys() ^ rules.keys():
        raise _fault(
            op,
            f"lacks the attribute {name!r}"
            if name in rules
            else f"has an attribute {name!r} that means nothing to it",
        )
    for name, (right, holds) in rules.items():
        if not holds(op.attributes[name]):
            raise _fault(op, f"has {name}={op.attributes[name]!r}; it should be {right}")
    if "low" in rules and op.attributes["low"] > op.attributes["high"]:
        raise _fault(op, f"clamps to {op.attributes['low']}..{op.attributes['high']}, which holds no code")


def _check_tensors(op: Op) -> None:
    needed = {"conv": {"weight", "multiplier", "bias"}, "lookup": {"table"}}.get(op.kind, set())
    allowed = needed | {"weight_zero"} if op.kind == "conv" else needed
    if not needed <= op.tensors.keys() <= allowed:
        raise _fault(op, f"has the tensors {sorted(op.tensors)}; it should have {sorted(needed)}")
    if op.kind == "lookup":
        _check_tensor(op, "table", torch.uint8, (256,))
    if op.kind != "conv":
        return
    n = op.tensors["multiplier"].numel()
    for role in ("multiplier", "bias"):
        _check_tensor(op, role, torch.float32, (n,))
        if not bool(torch.isfinite(op.tensors[role]).all()):
            raise _fault(op, f"has a {role} with NaN or infinite elements")
    if op.tensors["weight"].dim() != 2 or n == 0:
        raise _fault(
            op, f"has a weight of shape {list(op.tensors['weight'].shape)} for {n} channels; use [N, words]"
        )
    # The words a row takes are checked with the geometry.
    _check_tensor(op, "weight", torch.int32, (n, op.tensors["weight"].shape[1]))
    if "weight_zero" in op.tensors:
        _check_tensor(op, "weight_zero", torch.int32, (n,))
        low, high = _weight_codes(op)
        if not bool(((op.tensors["weight_zero"] >= low) & (op.tensors["weight_zero"] <= high)).all()):
            raise _fault(op, f"has weight zero points outside its grid {low}..{high}")


def _check_tensor(op: Op, role: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor: Tensor = op.tensors[role]
    if (
        tensor.dtype != dtype
        or tuple(tensor.shape) != shape
        or tensor.device.type != "cpu"
        or not tensor.is_contiguous()
    ):
        given = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
        raise _fault(
            op, f"has a {role} of {given}; it should be {dtype} {list(shape)}, contiguous on the CPU"
        )


def _weight_codes(op: Op) -> tuple[int, int]:
    bits, signed = op.attributes["weight_bits"], op.attributes["weight_signed"]
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


# ------------------------------------------------------------------------------------------------------- sums
def _check_sums(op: Op, values: Mapping[str, Value], known: Mapping[str, tuple[int, int]]) -> None:
    """An accumulator holds ``K`` products of the largest codes."""
    if op.kind not in ("conv", "avg_pool"):
        return
    a = op.attributes
    products = (
        math.prod(a["kernel"]) * (values[op.inputs[0]].shape[2] // a["groups"])
        if op.kind == "conv"
        else math.prod(a["window"])
    )
    largest = _reach(known[op.inputs[0]], a["x_zero"])
    if op.kind == "conv":
        zeros = op.tensors.get("weight_zero", torch.zeros(1, dtype=torch.int32))
        largest *= max(
            _reach(_weight_codes(op), int(zeros.min())), _reach(_weight_codes(op), int(zeros.max()))
        )
    if products * largest > ACCUMULATOR_LIMIT:
        raise _fault(op, f"sums {products} products of up to {largest}, which may overflow int32")


def _reach(codes: tuple[int, int], zero: int) -> int:
    return max(abs(codes[0] - zero), abs(codes[1] - zero))


def _bounds(op: Op, known: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    """Smallest and largest code that a value may hold; meaningless for floats."""
    if op.kind in ("max_pool", "flatten"):
        return known[op.inputs[0]]
    if op.kind == "lookup":
        return int(op.tensors["table"].min()), int(op.tensors["table"].max())
    low, high = op.attributes.get("low", 0), op.attributes.get("high", 255)
    # A NaN becomes the zero point, clamp or not.
    zero = op.attributes["zero_point"] if op.kind == "quantize" else low
    return min(low, zero), max(high, zero)
