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
from pyquant.runtime.program import Op, Program, Value


def linear_op(m: int, n: int, k: int, bits: int, generator: torch.Generator) -> Program:
    """A linear layer ``[M, K] -> [M, N]``, uint8 codes in and out, with random symmetric weights of ``bits`` bits."""
    edge = 2 ** (bits - 1) - 1
    codes = torch.randint(-edge, edge + 1, (n, k), generator=generator)
    # Accumulators of random codes have a deviation of some 74 * edge / sqrt(3) * sqrt(K): this spreads them over the codes.
    multiplier = torch.full((n,), 40 / (74 * edge / 3**0.5 * k**0.5))
    tensors = {
        "weight": pack(codes, bits),
        "multiplier": multiplier,
        "bias": torch.randn(n, generator=generator),
    }
    attributes = {
        "stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1, "kernel": (1, 1), "x_zero": 128,
        "weight_bits": bits, "weight_signed": True, "y_zero": 128, "low": 0, "high": 255,
    }  # fmt: skip
    values = {"x": Value("codes", (1, m, k)), "y": Value("codes", (1, m, n))}
    return Program(values, (Op("conv", "linear", ("x",), "y", attributes, tensors),), ("x",), ("y",))


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
