"""Every distinct convolution of ResNet-50 and MobileNetV2 alone, uint8 codes in and out, against other engines' int8 and float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from bench.layer import alone, engine_call, multiplications, pinned, random_inputs
from bench.measure import bound_of, measure
from bench.network import ZOO, calibration, quantised
from bench.peers.cached import model_of
from bench.peers.crew import Check, Crew, codes_within_one
from bench.record import Row
from pyquant.runtime.execute_reference import conv_weight
from pyquant.runtime.geometry import rows_shape
from pyquant.runtime.net import Net
from pyquant.runtime.program import Op, Program

MODELS = ("resnet50", "mobilenet_v2")
PEERS = ("onednn", "onnxruntime", "openvino")
# Few channels in, and few positions out, leave lanes and rows of a tile idle: read these rows apart.
SMALL_MAP = 7


def rows(threads: Sequence[int], quick: bool, peers: bool) -> Iterator[Row]:
    """All geometries at batch 1; quick: those of ResNet-20."""
    generator = torch.Generator().manual_seed(0)
    with Crew("conv_s8", PEERS) if peers else nullcontext() as crew:
        for name in ZOO[-1:] if quick else MODELS:
            net = quantised(model_of(name), calibration(name), 8)
            for index, (geometry, op) in enumerate(geometries(net).items()):
                program = alone(net.program, op)
                for count in threads:
                    torch.set_num_threads(count)
                    for row in _layer(f"{name} {geometry}", op, program, count, quick, crew, generator):
                        yield row | {"kind": kind(op, program, first=index == 0)}


def _layer(
    case: str,
    op: Op,
    program: Program,
    threads: int,
    quick: bool,
    crew: Crew | None,
    generator: torch.Generator,
) -> Iterator[Row]:
    inputs = random_inputs(program, 1, generator)
    runs: dict[str, Callable[[], Any]] = {"cpu": engine_call(program, inputs, threads)}
    runs |= {isa: engine_call(program, inputs, threads, isa) for isa in pinned()}
    ours = tuple(runs)
    runs["torch-fp32"] = float_layer(op, program, generator)
    if crew is not None and program.values[op.output].kind == "codes":
        runs |= crew.runs(case_of(op, program, inputs[0]), threads, clamped(op, runs["cpu"]().numpy()))
    with torch.no_grad():
        measured = measure(runs, [bound_of(key) for key in runs], threads, rounds=3 if quick else 9)
    others = [key for key in runs if key not in ours] if crew is not None else []
    for key in runs:
        yield measured.row(
            case,
            key,
            operations=2 * multiplications(op, program),
            traffic=(4 if key == "torch-fp32" else 1) * _elements(op, program),
            limit=bound_of(key),
            peers=others if key in ours else (),
        )


def geometries(net: Net) -> dict[str, Op]:
    """Geometry -> the first conv of the program that has it, without the residual that may be added to it."""
    found: dict[str, Op] = {}
    for row, op in zip(net.describe(), net.program.ops, strict=True):
        if op.kind == "conv":
            attributes = {
                key: value for key, value in op.attributes.items() if not key.startswith("residual")
            }
            plain = replace(op, inputs=op.inputs[:1], attributes=attributes)
            found.setdefault(row["geometry"].removesuffix(" + residual"), plain)
    return found


def kind(op: Op, program: Program, first: bool) -> str:
    """``first``, ``linear``, ``depthwise``, ``pointwise`` or ``full``; with `` small`` behind it where the map is 7x7 or less."""
    a = op.attributes
    height, width, channels = rows_shape(program.values[op.inputs[0]])
    if first:
        return "first"
    if (height, width) == (1, 1):
        return "linear"
    word = "depthwise" if a["groups"] == channels else "pointwise" if set(a["kernel"]) == {1} else "full"
    out_height, out_width, _ = rows_shape(program.values[op.output])
    return f"{word} small" if max(out_height, out_width) <= SMALL_MAP else word


def _elements(op: Op, program: Program) -> int:
    """Input, weights and output."""
    sides = (rows_shape(program.values[name]) for name in (op.inputs[0], op.output))
    return conv_weight(op, program).numel() + sum(
        height * width * channels for height, width, channels in sides
    )


def case_of(op: Op, program: Program, x: torch.Tensor) -> dict[str, Any]:
    """The layer as the peers take it; they leave out the clamp, which is part of their requantisation anyway."""
    a = op.attributes
    top, left, bottom, right = a["padding"]
    return {
        "x": x.reshape(1, *rows_shape(program.values[op.inputs[0]])).numpy(),
        "weight": conv_weight(op, program).to(torch.int8).numpy(),
        "multiplier": op.tensors["multiplier"].numpy(),
        "bias": op.tensors["bias"].numpy(),
        "x_zero": a["x_zero"],
        "y_zero": a["y_zero"],
        "stride": tuple(a["stride"]),
        "dilation": tuple(a["dilation"]),
        "groups": a["groups"],
        "before": (top, left),
        "after": (bottom, right),
    }


def clamped(op: Op, want: np.ndarray) -> Check:
    """A check that clamps a peer's codes as the layer's activation does."""
    check = codes_within_one(want)
    return lambda got: check(got.clip(op.attributes["low"], op.attributes["high"]))


def float_layer(op: Op, program: Program, generator: torch.Generator) -> Callable[[], Any]:
    """The same layer in float32 on random numbers."""
    a, shape = op.attributes, program.values[op.inputs[0]].shape
    weight = conv_weight(op, program).float()
    bias = op.tensors["bias"]
    if shape[:2] == (1, 1):
        rows, matrix = torch.randn(1, shape[2], generator=generator), weight.flatten(1)
        return lambda: F.linear(rows, matrix, bias)
    top, left, bottom, right = a["padding"]
    x = F.pad(torch.randn(1, shape[2], *shape[:2], generator=generator), (0, right - left, 0, bottom - top))
    x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    return lambda: F.conv2d(x, weight, bias, a["stride"], (top, left), a["dilation"], a["groups"])
