"""Matrix products, uint8 x int8 (or int4) -> uint8 requantised, against oneDNN's int8 and torch's float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from bench.layer import engine_call, linear_op, random_inputs
from bench.record import Row
from bench.timing import interleaved
from pyquant.errors import BackendError
from pyquant.runtime.execute_reference import conv_weight
from pyquant.runtime.program import Program

# Convolutions of ResNets as products, then layers of transformers: (M, N, K).
SHAPES = (
    (128, 1024, 1024), (512, 512, 4608), (3136, 64, 576), (784, 128, 1152), (196, 256, 2304), (49, 512, 4608),
    (128, 768, 768), (128, 3072, 768), (128, 768, 3072), (1, 4096, 4096), (17, 63, 500),
)  # fmt: skip
QUICK = ((49, 512, 4608), (17, 63, 500))


def rows(threads: Sequence[int], quick: bool) -> Iterator[Row]:
    """All shapes with 8 and 4 bits of weights; quick: two shapes."""
    generator = torch.Generator().manual_seed(0)
    for m, n, k in QUICK if quick else SHAPES:
        programs = {bits: linear_op(m, n, k, bits, generator) for bits in (8, 4)}
        inputs = random_inputs(programs[8], 1, generator)
        x, weight = torch.randn(m, k, generator=generator), torch.randn(n, k, generator=generator)
        for count in threads:
            torch.set_num_threads(count)
            runs = {f"cpu-w{bits}": engine_call(program, inputs, count) for bits, program in programs.items()}
            runs["onednn-w8"] = onednn(programs[8], inputs[0].reshape(m, k), runs["cpu-w8"]().reshape(m, n))
            runs["torch-fp32"] = lambda x=x, weight=weight: F.linear(x, weight)
            timings = interleaved(runs, count, rounds=3 if quick else 9)
            for key, timing in timings.items():
                yield {
                    "case": f"M{m} N{n} K{k}",
                    "backend": key,
                    "threads": count,
                    "us": timing.us,
                    "spread": timing.spread,
                    "clock": timing.clock,
                    "tops": 2 * m * n * k / timing.us / 1e6,
                    "over_best_peer": min(timings["onednn-w8"].us, timings["torch-fp32"].us) / timing.us,
                }


def onednn(program: Program, x: torch.Tensor, want: torch.Tensor) -> Callable[[], Any]:
    """oneDNN's product of the same codes; it adds the bias before it scales, so a code may differ by one.

    Raises:
        BackendError: a code differs by more.
    """
    op = program.ops[0]
    a, multiplier = op.attributes, op.tensors["multiplier"]
    codes = conv_weight(op, program).flatten(1).to(torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(codes, list(x.shape))
    zeros = torch.zeros(len(codes), dtype=torch.int32)

    def call() -> torch.Tensor:
        return torch.ops.onednn.qlinear_pointwise(
            x,
            1.0,
            a["x_zero"],
            packed,
            multiplier,
            zeros,
            op.tensors["bias"],
            1.0,
            a["y_zero"],
            torch.uint8,
            "none",
            [],
            "",
        )

    worst = int((call().int() - want.int()).abs().max())
    if worst > 1:
        raise BackendError(
            f"oneDNN's codes differ by up to {worst} from ours; it computes something else, so it is not timed."
        )
    return call
