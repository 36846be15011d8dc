"""Every distinct layer of both networks alone, uint8 codes in and out, against torch's float32 layer (channels last)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from bench.layer import alone, engine_call, random_inputs
from bench.network import CALIBRATION_COUNT, MODELS, quantised
from bench.record import Row
from bench.timing import interleaved
from pyquant import zoo
from pyquant.runtime.execute_reference import conv_weight
from pyquant.runtime.geometry import rows_shape
from pyquant.runtime.net import Net
from pyquant.runtime.program import Op, Program


def rows(threads: Sequence[int], quick: bool) -> Iterator[Row]:
    """All geometries at batch 1; quick: those of ResNet-20."""
    generator = torch.Generator().manual_seed(0)
    for name in MODELS[-1:] if quick else MODELS:
        net = quantised(zoo.load(name), zoo.calibration(name)[:CALIBRATION_COUNT], 8)
        for geometry, op in geometries(net).items():
            program = alone(net.program, op)
            for count in threads:
                torch.set_num_threads(count)
                inputs = random_inputs(program, 1, generator)
                peer = float_layer(op, program, generator)
                with torch.no_grad():
                    runs = {"cpu": engine_call(program, inputs, count), "torch-fp32": peer}
                    timings = interleaved(runs, count, rounds=3 if quick else 9)
                operations = 2 * multiplications(op, program)
                for key, timing in timings.items():
                    yield {
                        "case": f"{name} {geometry}",
                        "backend": key,
                        "threads": count,
                        "us": timing.us,
                        "spread": timing.spread,
                        "clock": timing.clock,
                        "tops": operations / timing.us / 1e6,
                        "over_best_peer": timings["torch-fp32"].us / timing.us,
                    }


def geometries(net: Net) -> dict[str, Op]:
    """Geometry -> the first conv of the program that has it."""
    found: dict[str, Op] = {}
    for row, op in zip(net.describe(), net.program.ops, strict=True):
        if op.kind == "conv":
            found.setdefault(row["geometry"], op)
    return found


def multiplications(op: Op, program: Program) -> int:
    """Multiply-adds of one sample."""
    height, width, _ = rows_shape(program.values[op.output])
    return height * width * conv_weight(op, program).numel()


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
