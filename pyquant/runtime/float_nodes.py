"""What a float node of a program may ask torch to run: whitelisted names with JSON arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pyquant.layers import FLOAT_TARGETS, UNARY
from pyquant.runtime.program import Op, Value

_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
_WINDOW = {"window": 2, "stride": 2}
# Kind of layer -> how many values it takes, and its attributes that are whole numbers, with how many of them.
_LAYERS: Mapping[str, tuple[int, Mapping[str, int]]] = {
    "clamp": (1, {}),
    "add": (2, {}),
    "flatten": (1, {}),
    "avg_pool": (1, _WINDOW),
    "max_pool": (1, {**_WINDOW, "padding": 4}),
    "pad": (1, {"pads": 0}),
    "batch_norm": (1, {}),
}
_NUMBERS = {"clamp": {"low", "high"}, "batch_norm": {"eps"}}
_ROLES = {"batch_norm": ({"mean", "var"}, {"mean", "var", "weight", "bias"})}


def float_node_fault(op: Op, values: Mapping[str, Value]) -> str | None:
    """Say what is wrong with an ``aten`` op, as the end of a sentence; None if torch may run it."""
    if any(values[name].kind != "float" for name in (*op.inputs, op.output)):
        return "takes or gives codes; float nodes take and give floats"
    if op.attributes.keys() != {"op", "attrs"} or not isinstance(op.attributes["attrs"], dict):
        return "should have the attributes 'op' and 'attrs'"
    layer, attrs = op.attributes["op"], op.attributes["attrs"]
    if layer in ("unary", "aten"):
        return _call_fault(op, attrs, UNARY if layer == "unary" else FLOAT_TARGETS)
    if layer not in _LAYERS:
        return f"asks for {layer!r}, which is no float layer; it may be {', '.join(_LAYERS)}, unary or aten"
    inputs, counts = _LAYERS[layer]
    numbers = _NUMBERS.get(layer, set())
    needed, allowed = _ROLES.get(layer, (set(), set()))
    if (
        len(op.inputs) != inputs
        or not needed <= op.tensors.keys() <= allowed
        or attrs.keys() != counts.keys() | numbers
    ):
        return f"does not have the inputs, tensors and attributes of {layer!r}"
    for name, count in counts.items():
        if not _all_whole(attrs[name], count):
            return f"has {name}={attrs[name]!r}; it should be {count or 'an even number of'} whole numbers"
    for name in numbers:
        if not _is_number(attrs[name]) and not (layer == "clamp" and attrs[name] is None):
            return f"has {name}={attrs[name]!r}; it should be a number"
    return None


def _all_whole(item: Any, count: int) -> bool:
    if not isinstance(item, list | tuple) or not all(
        isinstance(i, int) and not isinstance(i, bool) for i in item
    ):
        return False
    return len(item) == count if count else len(item) % 2 == 0


def _is_number(item: Any) -> bool:
    return isinstance(item, int | float) and not isinstance(item, bool)


def _call_fault(op: Op, attrs: Mapping[str, Any], targets: frozenset[str]) -> str | None:
    if attrs.keys() != {"target", "args", "kwargs"}:
        return "should have a target, args and kwargs"
    if not isinstance(attrs["target"], str) or attrs["target"] not in targets:
        return f"asks for {attrs['target']!r}, which is not an operation that a checkpoint may run"
    if not isinstance(attrs["args"], list | tuple) or not isinstance(attrs["kwargs"], dict):
        return "should have a list of args and an object of kwargs"
    roles = {f"p{i}" for i in range(len(op.tensors))}
    if op.tensors.keys() != roles:
        return f"has the tensors {sorted(op.tensors)}; it should have p0, p1 and so on"
    known = len(op.inputs) + len(op.tensors)
    for item in (*attrs["args"], *attrs["kwargs"].values()):
        fault = _argument_fault(item, known)
        if fault is not None:
            return fault
    return None


def _argument_fault(item: Any, known: int) -> str | None:
    """JSON, with placeholders for tensors, the batch size and dtypes."""
    if isinstance(item, list | tuple):
        return next(
            (fault for fault in (_argument_fault(part, known) for part in item) if fault is not None), None
        )
    if isinstance(item, dict):
        holds = len(item) == 1 and all(
            key in _PLACEHOLDERS and _PLACEHOLDERS[key](value, known) for key, value in item.items()
        )
        return None if holds else f"passes {item!r}, which stands for none of its tensors, sizes and dtypes"
    return (
        None
        if item is None or isinstance(item, bool | int | float | str)
        else f"passes {item!r}, which has no JSON form"
    )


_PLACEHOLDERS: Mapping[str, Callable[[Any, int], bool]] = {
    "input": lambda value, known: (
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value < known
    ),
    "batch": lambda value, known: isinstance(value, int) and not isinstance(value, bool) and value >= 1,
    "dtype": lambda value, known: value in _DTYPES,
}
