"""The reference executor: runs an integer program in plain torch. Slow, and right by construction: the oracle of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyquant import reference
from pyquant.layers import evaluate
from pyquant.ops.pack import unpack
from pyquant.runtime.program import Op, Program


class ReferenceExecutor:
    """Runs a program op by op.

    Args:
        program: the integer program.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.weights = {op.output: conv_weight(op, program) for op in program.ops if op.kind == "conv"}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run one batch; returns the outputs in torch's layouts."""
        values = self.trace(*inputs)
        return tuple(values[name] for name in self.program.outputs)

    def trace(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Run one batch and return every value by name."""
        values: dict[str, Any] = dict(zip(self.program.inputs, inputs, strict=True))
        batch = inputs[0].shape[0]
        with torch.no_grad():
            for op in self.program.ops:
                values[op.output] = self._run(op, [values[name] for name in op.inputs], batch)
        return values

    def _run(self, op: Op, inputs: Sequence[Any], batch: int) -> Any:
        a = op.attributes
        if op.kind == "quantize":
            scale, zero = (_f32(a[name], inputs[0]) for name in ("scale", "zero_point"))
            codes = reference.quantize(inputs[0], scale, zero, a["low"], a["high"])
            return to_codes_layout(codes.to(torch.uint8))
        if op.kind == "dequantize":
            scale, zero = (_f32(a[name], inputs[0]) for name in ("scale", "zero_point"))
            floats = reference.dequantize(inputs[0], scale, zero)
            return to_torch_layout(floats, self.program.values[op.output].shape)
        if op.kind == "conv":
            return self._conv(op, inputs)
        if op.kind == "add":
            return reference.add(
                inputs[0],
                a["a_zero"],
                a["a_scale"],
                inputs[1],
                a["b_zero"],
                a["b_scale"],
                a["y_zero"],
                a["low"],
                a["high"],
            )
        if op.kind == "avg_pool":
            return reference.avg_pool(
                inputs[0],
                a["x_zero"],
                a["multiplier"],
                a["y_zero"],
                a["low"],
                a["high"],
                a["window"],
                a["stride"],
            )
        if op.kind == "max_pool":
            return reference.max_pool(inputs[0], a["window"], a["stride"], a["padding"])
        if op.kind == "lookup":
            return reference.lookup(inputs[0], op.tensors["table"])
        if op.kind == "flatten":
            return inputs[0].reshape(batch, 1, 1, -1)
        return run_aten(op, inputs, batch)

    def _conv(self, op: Op, inputs: Sequence[Tensor]) -> Tensor:
        a, weight = op.attributes, self.weights[op.output]
        zero = op.tensors.get("weight_zero")
        if zero is None:
            zero = weight.new_zeros(weight.shape[0])
        acc = reference.accumulate_conv(
            inputs[0], a["x_zero"], weight, zero, a["stride"], a["padding"], a["dilation"], a["groups"]
        )
        value = self.program.values[op.output]
        if value.kind == "float":
            return to_torch_layout(
                reference.affine(acc, op.tensors["multiplier"], op.tensors["bias"]), value.shape
            )
        residual = (inputs[1], a["residual_zero"], a["residual_scale"]) if len(inputs) > 1 else None
        return reference.requantize(
            acc, op.tensors["multiplier"], op.tensors["bias"], a["y_zero"], a["low"], a["high"], residual
        )


def run_aten(op: Op, inputs: Sequence[Any], batch: int) -> Any:
    """Run a float node by torch; executors share it."""
    with torch.no_grad():
        return evaluate(op.attributes["op"], op.attributes["attrs"], inputs, op.tensors, batch)


def conv_weight(op: Op, program: Program) -> Tensor:
    """Unpacked weight codes of a conv, ``[N, C / groups, KH, KW]`` int32."""
    kh, kw = op.attributes["kernel"]
    channels = program.values[op.inputs[0]].shape[2] // op.attributes["groups"]
    rows = unpack(
        op.tensors["weight"], op.attributes["weight_bits"], op.attributes["weight_signed"], kh * kw * channels
    )
    return rows.reshape(-1, kh, kw, channels).permute(0, 3, 1, 2).to(torch.int32)


def to_codes_layout(x: Tensor) -> Tensor:
    """``[B, C, H, W] -> [B, H, W, C]``, ``[B, F] -> [B, 1, 1, F]``, ``[B, T, F] -> [B, 1, T, F]``."""
    if x.dim() == 4:
        return x.permute(0, 2, 3, 1).contiguous()
    return x.reshape(x.shape[0], *(1,) * (4 - x.dim()), *x.shape[1:])


def to_torch_layout(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of :func:`to_codes_layout`, to a value of per-sample ``shape``."""
    if len(shape) == 3:
        return x.permute(0, 3, 1, 2).contiguous()
    return x.reshape(x.shape[0], *shape)


def _f32(value: float, like: Tensor) -> Tensor:
    """A number where a tensor is; filled in there, as a graph that is captured copies nothing."""
    return torch.full((), value, dtype=torch.float32, device=like.device)


def sizes(program: Program) -> Mapping[str, int]:
    """Bytes of the program's tensors: ``weights`` (packed codes) and ``total`` (with scales, biases, tables)."""
    weights = sum(op.tensors["weight"].nbytes for op in program.ops if op.kind == "conv")
    total = sum(tensor.nbytes for op in program.ops for tensor in op.tensors.values())
    return {"weights": weights, "total": total}
