"""torch's own 4-bit product for CPUs: groups of weights in bfloat16's company, no quantised activations."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import torch

from bench.peers.crew import Built


def gemm_w4a8(case: dict[str, Any], threads: int) -> Built:
    """``[M, K]`` bfloat16 to ``[M, N]``; there is no int8 form of activations."""
    torch.set_num_threads(threads)
    if case["group"] is None:
        raise NotImplementedError("it has no scales per channel")
    codes = torch.from_numpy(case["codes"]).int() + 8
    # [K / group, N, 2]: scale, and the real value of code 8.
    scale = torch.from_numpy(case["scale"]).T
    pairs = torch.stack([scale, torch.zeros_like(scale)], dim=2).bfloat16().contiguous()
    x = torch.from_numpy(case["x"]).bfloat16()
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    turns = cycle([(packed.clone(), pairs.clone()) for _ in range(case["copies"])])

    def call() -> torch.Tensor:
        weight, scales = next(turns)
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x, weight, case["group"], scales)

    return call, call
