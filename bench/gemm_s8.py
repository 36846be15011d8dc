"""Matrix products, uint8 x int8 (or int4) -> uint8 with bias and requantisation, against other engines' int8 and torch's float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F

from bench.layer import engine_call, linear_op, pinned, random_inputs
from bench.limits import READ, Probe, available
from bench.measure import bound_of, measure
from bench.peers.crew import Crew, codes_within_one
from bench.record import Row
from pyquant.runtime.execute_reference import conv_weight
from pyquant.runtime.program import Program

# Convolutions of ResNets as products, then layers of transformers, then one row and ragged edges: (M, N, K).
SHAPES = (
    (128, 1024, 1024), (512, 512, 4608), (3136, 64, 576), (784, 128, 1152), (196, 256, 2304), (49, 512, 4608),
    (128, 768, 768), (128, 3072, 768), (128, 768, 3072), (1, 4096, 4096), (17, 63, 500),
)  # fmt: skip
QUICK = ((49, 512, 4608), (17, 63, 500))
PEERS = ("onednn", "fbgemm", "onnxruntime", "openvino", "xnnpack")


def rows(threads: Sequence[int], quick: bool, peers: bool) -> Iterator[Row]:
    """All shapes with 8 and 4 bits of weights, which stay in the caches; quick: two shapes."""
    with Crew("gemm_s8", PEERS) if peers else nullcontext() as crew:
        for m, n, k in QUICK if quick else SHAPES:
            for count in threads:
                torch.set_num_threads(count)
                yield from _shape(m, n, k, count, quick, crew)


def _shape(m: int, n: int, k: int, threads: int, quick: bool, crew: Crew | None) -> Iterator[Row]:
    generator = torch.Generator().manual_seed(0)
    programs = {bits: linear_op(m, n, k, bits, generator) for bits in (8, 4)}
    inputs = random_inputs(programs[8], 1, generator)
    x, weight = torch.randn(m, k, generator=generator), torch.randn(n, k, generator=generator)
    runs: dict[str, Callable[[], Any]] = {
        f"cpu-w{bits}": engine_call(program, inputs, threads) for bits, program in programs.items()
    }
    runs |= {f"{isa}-w8": engine_call(programs[8], inputs, threads, isa) for isa in pinned()}
    ours = tuple(runs)
    runs["torch-fp32"] = lambda: F.linear(x, weight)
    if crew is not None:
        want = runs["cpu-w8"]().reshape(m, n).numpy()
        runs |= crew.runs(case_of(programs[8], inputs[0].reshape(m, k)), threads, codes_within_one(want))
    bounds = {key: bound_of(key) if m > 1 else READ for key in runs}
    # One row reads every weight once, from whichever cache holds them all.
    limits = set(bounds.values()) if m > 1 or not available() else {READ: Probe(READ, threads, n * k)}
    measured = measure(runs, limits, threads, rounds=3 if quick else 9)
    others = [key for key in runs if key not in ours] if crew is not None else []
    for key in runs:
        width = 4 if key == "torch-fp32" else 1
        yield measured.row(
            f"M{m} N{n} K{k}",
            key,
            operations=2 * m * n * k,
            traffic=width * (m * k + n * k + m * n),
            limit=bounds[key],
            peers=others if key in ours else (),
        )


def case_of(program: Program, x: torch.Tensor) -> dict[str, Any]:
    """The layer as the peers take it: ``y = (x - x_zero) @ weight.T * multiplier + bias + y_zero``, rounded and clamped."""
    op = program.ops[0]
    return {
        "x": x.numpy(),
        "weight": conv_weight(op, program).flatten(1).to(torch.int8).numpy(),
        "multiplier": op.tensors["multiplier"].numpy(),
        "bias": op.tensors["bias"].numpy(),
        "x_zero": op.attributes["x_zero"],
        "y_zero": op.attributes["y_zero"],
    }
