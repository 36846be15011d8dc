"""One integer layer alone: built as a program of one op, checked byte for byte, then called without Python's checks around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyquant.errors import BackendError
from pyquant.ops.backend import extension
from pyquant.ops.pack import pack
from pyquant.runtime.compare import same_bytes
from pyquant.runtime.execute_cpu import load
from pyquant.runtime.execute_reference import ReferenceExecutor, conv_weight
from pyquant.runtime.geometry import rows_shape
from pyquant.runtime.program import Op, Program, Value


def linear_op(m: int, n: int, k: int, bits: int, generator: torch.Generator) -> Program:
    """A linear layer ``[M, K] -> [M, N]``, uint8 codes in and out, with random symmetric weights of ``bits`` bits."""
    return _random_op("linear", (1, m, k), (1, m, n), (1, 1), (0, 0), 1, 1, bits, generator)


def conv_op(
    size: int, inputs: int, outputs: int, kernel: int, stride: int, groups: int, generator: torch.Generator
) -> Program:
    """A convolution of a ``size x size`` map, padded to keep its size at stride 1; uint8 codes, random 8-bit weights."""
    after = -(-size // stride)
    shapes = (size, size, inputs), (after, after, outputs)
    padding = (kernel // 2, kernel // 2)
    return _random_op("conv", *shapes, (kernel, kernel), padding, stride, groups, 8, generator)


def _random_op(
    name: str,
    before: tuple[int, ...],
    after: tuple[int, ...],
    kernel: tuple[int, int],
    padding: tuple[int, int],
    stride: int,
    groups: int,
    bits: int,
    generator: torch.Generator,
) -> Program:
    edge = 2 ** (bits - 1) - 1
    outputs, taps = after[2], kernel[0] * kernel[1] * before[2] // groups
    codes = torch.randint(-edge, edge + 1, (outputs, taps), generator=generator)
    # Accumulators of random codes have a deviation of some 74 * edge / sqrt(3) * sqrt(taps): this spreads them over the codes.
    multiplier = torch.full((outputs,), 40 / (74 * edge / 3**0.5 * taps**0.5))
    tensors = {
        "weight": pack(codes, bits),
        "multiplier": multiplier,
        "bias": torch.randn(outputs, generator=generator),
    }
    attributes = {
        "stride": (stride, stride), "padding": padding * 2, "dilation": (1, 1), "groups": groups, "kernel": kernel,
        "x_zero": 128, "weight_bits": bits, "weight_signed": True, "y_zero": 128, "low": 0, "high": 255,
    }  # fmt: skip
    values = {"x": Value("codes", before), "y": Value("codes", after)}
    return Program(values, (Op("conv", name, ("x",), "y", attributes, tensors),), ("x",), ("y",))


def alone(program: Program, op: Op) -> Program:
    """The program of one op of another program."""
    values = {name: program.values[name] for name in (*op.inputs, op.output)}
    return Program(values, (op,), op.inputs, (op.output,))


def random_inputs(program: Program, batch: int, generator: torch.Generator) -> list[Tensor]:
    """Random codes ``[B, H, W, C]`` for every input."""
    shapes = [program.values[name].shape for name in program.inputs]
    return [
        torch.randint(0, 256, (batch, *shape), dtype=torch.uint8, generator=generator) for shape in shapes
    ]


def multiplications(op: Op, program: Program) -> int:
    """Multiply-adds of one sample."""
    height, width, _ = rows_shape(program.values[op.output])
    return height * width * conv_weight(op, program).numel()


def pinned() -> tuple[str, ...]:
    """Instruction sets to time beside the best: AVX-512 where the best is another, because most machines end there."""
    best, *others = extension().available_isas()  # type: ignore[union-attr]
    return tuple(isa for isa in others if isa == "avx512" != best)


def engine_call(program: Program, inputs: list[Tensor], threads: int, isa: str = "auto") -> Callable[[], Any]:
    """Check one call of the C++ engine against the reference, byte for byte; returns that call.

    Raises:
        BackendError: the bytes differ.
    """
    value = program.values[program.outputs[0]]
    dtype = torch.uint8 if value.kind == "codes" else torch.float32
    # What the kernel leaves unwritten shows up as 77.
    output = torch.full((inputs[0].shape[0], *value.shape), 77, dtype=dtype)
    engine = load(program, program.ops, program.inputs, program.outputs, isa)

    def call() -> Tensor:
        engine.run([x.data_ptr() for x in inputs], [output.data_ptr()], inputs[0].shape[0], threads)
        return output

    want = ReferenceExecutor(program)(*inputs)[0]
    if not same_bytes(call(), want):
        raise BackendError(
            f"{program.ops[0].name}: the cpu backend's bytes are not those of the reference; not timed."
        )
    return call
