"""Every attribute, tensor and shape that makes no sense is refused, by a sentence that names the op."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pyquant.errors import CheckpointError
from pyquant.runtime.program import Op, Program, Value
from pyquant.runtime.validate import validate
from tests.runtime.random_program import random_conv, random_network
from tests.runtime.small_networks import program

CASE = "pools_then_linear-w4a4"  # quantize, conv, max_pool, avg_pool, flatten, conv to codes, conv to floats
FLOATS = "mask-w8a8"  # unary and aten nodes, a dequantize and two quantizes
RESIDUAL = "residual_blocks-asymmetric"
ADD = "two_inputs-w8a8"
LOOKUP = "silu_lookups-w4a4"


def refused(broken: Program, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        validate(broken)
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text and all(word in text for word in words), text


def with_op(given: Program, index: int, op: Op) -> Program:
    return replace(given, ops=(*given.ops[:index], op, *given.ops[index + 1 :]))


def first(given: Program, kind: str, wanted: Callable[[Op], bool] = lambda op: True) -> tuple[int, Op]:
    return next((i, op) for i, op in enumerate(given.ops) if op.kind == kind and wanted(op))


def test_random_programs_are_valid() -> None:
    for seed in range(20):
        validate(in_float32(random_conv(seed)[0]))
        validate(in_float32(random_network(seed)[0]))


def in_float32(given: Program) -> Program:
    """The program with its scales rounded once, as lowering rounds them."""

    def rounded(op: Op) -> Op:
        attributes = {
            k: float(np.float32(v)) if isinstance(v, float) else v for k, v in op.attributes.items()
        }
        return replace(op, attributes=attributes)

    return replace(given, ops=tuple(rounded(op) for op in given.ops))


WRONG: dict[str, tuple[Any, ...]] = {
    "scale": (0.0, -1.0, 1e-39, 2.0**-127, float("nan"), float("inf"), 0.1, "1", None, True, 1),
    "zero_point": (-1, 256, 3.0, None, True),
    "x_zero": (-1, 256, 1.0),
    "y_zero": (-1, 256, "0"),
    "low": (-1, 256, 0.0),
    "high": (-1, 256, None),
    "stride": ((0, 1), (1,), (1, 1, 1), "11", 1, (1.0, 1), (2**20, 1)),
    "dilation": ((0, 1), (1, -1), None),
    "padding": ((0, 0), (-1, 0, 0, 0), (0, 0, 0, 0.0)),
    "kernel": ((0, 3), (3, 3, 3), (7, 7)),
    "groups": (0, 2.0, -1, 5, None),
    "weight_bits": (1, 9, 8.0, "8"),
    "weight_signed": (1, None, "yes"),
    "window": ((0, 1), (100, 100), (3,)),
    "multiplier": (0.0, float("nan"), -0.5, 0.1),
    "a_scale": (0.0, float("inf"), 1),
    "b_zero": (300, -2),
    "residual_zero": (256, None),
    "residual_scale": (-1.0, float("nan"), 1e300),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_attributes(name: str) -> None:
    found = 0
    for given in (program(CASE), program(RESIDUAL), program(ADD)):
        for index, op in enumerate(given.ops):
            if name not in op.attributes:
                continue
            found += 1
            for value in WRONG[name]:
                if name in ("x_zero", "kernel") and value == op.attributes[name]:
                    continue
                refused(
                    with_op(given, index, replace(op, attributes={**op.attributes, name: value})), op.name
                )
            without = {key: value for key, value in op.attributes.items() if key != name}
            refused(with_op(given, index, replace(op, attributes=without)), op.name, name)
    assert found


def test_unknown_attributes_and_kinds() -> None:
    index, op = first(program(CASE), "conv")
    given = program(CASE)
    refused(with_op(given, index, replace(op, attributes={**op.attributes, "speed": 3})), op.name, "'speed'")
    refused(with_op(given, index, replace(op, kind="softmax")), op.name, "softmax")


def test_clamps_that_hold_no_code() -> None:
    index, op = first(program(CASE), "conv", lambda op: "low" in op.attributes)
    broken = replace(op, attributes={**op.attributes, "low": 9, "high": 8})
    refused(with_op(program(CASE), index, broken), op.name, "9..8")


def test_wrong_tensors() -> None:
    given = program(RESIDUAL)
    index, op = first(given, "conv")
    t = op.tensors
    nan = t["bias"].clone()
    nan[1] = float("nan")
    wrong = (
        {"bias": nan},
        {"multiplier": t["multiplier"] * float("inf")},
        {"bias": t["bias"].double()},
        {"bias": t["bias"][:-1]},
        {"multiplier": t["multiplier"][:0]},
        {"weight": t["weight"][:, :-1].contiguous()},
        {"weight": t["weight"].long()},
        {"weight": t["weight"].reshape(-1)},
        {"weight": t["weight"].T.contiguous().T},
        {"weight_zero": t["weight_zero"] + 16},
        {"weight_zero": torch.full_like(t["weight_zero"], 1 << op.attributes["weight_bits"])},
        {"weight_zero": torch.full_like(t["weight_zero"], -1)},
        {"weight_zero": t["weight_zero"].long()},
        {"extra": t["bias"]},
    )
    for change in wrong:
        refused(with_op(given, index, replace(op, tensors={**t, **change})), op.name)
    for role in ("weight", "multiplier", "bias"):
        left = {key: value for key, value in t.items() if key != role}
        refused(with_op(given, index, replace(op, tensors=left)), op.name)
    index, op = first(program(LOOKUP), "lookup")
    for table in (op.tensors["table"][:255], op.tensors["table"].int()):
        refused(with_op(program(LOOKUP), index, replace(op, tensors={"table": table})), op.name, "table")


def test_wrong_wiring() -> None:
    given = program(CASE)
    index, op = first(given, "max_pool")
    refused(with_op(given, index, replace(op, inputs=("nowhere",))), op.name, "'nowhere'")
    refused(with_op(given, index, replace(op, inputs=())), op.name)
    refused(with_op(given, index, replace(op, inputs=op.inputs * 2)), op.name)
    refused(with_op(given, index, replace(op, inputs=given.inputs)), op.name, "float")
    refused(with_op(given, index, replace(op, output="new")), op.name, "'new'")
    refused(with_op(given, index, replace(op, output=given.ops[0].output)), op.name, "second time")
    refused(replace(given, ops=given.ops[::-1]), given.ops[-1].name, "reads")
    refused(replace(given, ops=given.ops[:-1]), "given by no input")
    refused(replace(given, outputs=()), "outputs")
    refused(replace(given, outputs=("nowhere",)), "'nowhere'")
    refused(replace(given, inputs=("nowhere",)), "'nowhere'")
    refused(replace(given, inputs=given.inputs * 2), "inputs")


def test_wrong_values() -> None:
    given = program(CASE)
    _, op = first(given, "conv")
    h, w, c = given.values[op.output].shape
    wrong = (
        Value("codes", (h, w)), Value("text", (h, w, c)), Value("codes", (h, w, 0)),
        Value("codes", (2**20, 2**20, c)),
        Value("codes", (h, w, float(c))),
    )  # fmt: skip
    for value in wrong:
        refused(replace(given, values={**given.values, op.output: value}), repr(op.output))
    for value in (Value("codes", (h + 1, w, c)), Value("codes", (h, w, c + 1)), Value("float", (h, w, c))):
        refused(replace(given, values={**given.values, op.output: value}), repr(op.name))
    refused(replace(given, values={**given.values, "idle": Value("float", ())}), "'idle'")


def test_sums_that_may_overflow() -> None:
    taps = 70_000
    tensors = {
        "weight": torch.zeros(1, taps // 4, dtype=torch.int32), "multiplier": torch.ones(1),
        "bias": torch.zeros(1),
    }  # fmt: skip
    attributes = {
        "stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1, "kernel": (1, 1),
        "x_zero": 0, "weight_bits": 8, "weight_signed": True,
    }  # fmt: skip
    conv = Op("conv", "long", ("x",), "y", attributes, tensors)
    values = {"x": Value("codes", (1, 1, taps)), "y": Value("float", (1,))}
    refused(Program(values, (conv,), ("x",), ("y",)), "'long'", "overflow")
    # Half the reach, half the sum.
    conv = replace(conv, attributes={**attributes, "x_zero": 128})
    validate(Program(values, (conv,), ("x",), ("y",)))
    # A zero point at either end of the weights' grid doubles their reach, in one channel of two.
    two = {
        "weight": torch.zeros(2, taps // 4, dtype=torch.int32),
        "multiplier": torch.ones(2),
        "bias": torch.zeros(2),
    }
    values["y"] = Value("float", (2,))
    for zeros, fits in (([0, 0], True), ([0, 127], False), ([-128, 0], False)):
        conv = replace(conv, tensors={**two, "weight_zero": torch.tensor(zeros, dtype=torch.int32)})
        given = Program(values, (conv,), ("x",), ("y",))
        validate(given) if fits else refused(given, "'long'", "overflow")


def test_float_nodes_run_whitelisted_calls_only() -> None:
    given = program(FLOATS)
    index, op = first(given, "aten", lambda op: op.attributes["op"] == "aten")
    attrs = op.attributes["attrs"]
    wrong = (
        {**attrs, "target": "aten.set_.source_Tensor"},
        {**attrs, "target": "os.system"},
        {**attrs, "target": ["aten.cat.default"]},
        {**attrs, "args": {"input": 0}},
        {**attrs, "kwargs": []},
        {**attrs, "args": [{"input": 9}]},
        {**attrs, "args": [{"input": -1}]},
        {**attrs, "args": [{"batch": 0}]},
        {**attrs, "args": [{"dtype": "load"}]},
        {**attrs, "args": [[{"input": 0, "batch": 1}]]},
        {**attrs, "args": [{"file": "x"}]},
        {**attrs, "args": [object()]},
        {"target": attrs["target"]},
    )
    for change in wrong:
        refused(with_op(given, index, replace(op, attributes={"op": "aten", "attrs": change})), op.name)
    for layer in ("conv2d", "system", None):
        refused(with_op(given, index, replace(op, attributes={"op": layer, "attrs": attrs})), op.name)
    refused(with_op(given, index, replace(op, attributes={**op.attributes, "more": 1})), op.name)
    refused(with_op(given, index, replace(op, tensors={"p7": torch.zeros(1)})), op.name)
    unary = replace(op, attributes={"op": "unary", "attrs": {**attrs, "target": "aten.cat.default"}})
    refused(with_op(given, index, unary), op.name, "aten.cat.default")


def test_float_layers_have_their_attributes() -> None:
    given = program("ends_in_relu-w8a8")
    index, op = first(given, "aten", lambda op: op.attributes["op"] == "clamp")
    for attrs in ({}, {"low": "0", "high": None}, {"low": 0.0, "high": None, "more": 1}):
        refused(with_op(given, index, replace(op, attributes={"op": "clamp", "attrs": attrs})), op.name)
    for pads in ((0, 1, 2), (0.5, 1), "01", None):
        broken = replace(op, attributes={"op": "pad", "attrs": {"pads": pads}})
        refused(with_op(given, index, broken), op.name, "pads")
    window = {"window": (2, 2), "stride": (1,)}
    refused(
        with_op(given, index, replace(op, attributes={"op": "avg_pool", "attrs": window})), op.name, "stride"
    )
    refused(with_op(given, index, replace(op, attributes={"op": "add", "attrs": {}})), op.name)
    refused(
        with_op(given, index, replace(op, attributes={"op": "batch_norm", "attrs": {"eps": 1e-5}})), op.name
    )
