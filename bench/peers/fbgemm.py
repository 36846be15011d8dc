"""FBGEMM, as torch calls it for int8: ``quantized::linear`` with packed weights."""

from __future__ import annotations

from typing import Any

import torch

from bench.peers.crew import Built


def gemm_s8(case: dict[str, Any], threads: int) -> Built:
    """``[M, K]`` uint8 times ``[N, K]`` int8 to uint8."""
    torch.set_num_threads(threads)
    torch.backends.quantized.engine = "fbgemm"
    codes, weight, multiplier, bias = (
        torch.from_numpy(case[n]) for n in ("x", "weight", "multiplier", "bias")
    )
    x = torch._make_per_tensor_quantized_tensor(codes, 1.0, case["x_zero"])
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    quantised = torch._make_per_channel_quantized_tensor(weight, multiplier.double(), zeros, 0)
    packed = torch.ops.quantized.linear_prepack(quantised, bias)

    def call() -> torch.Tensor:
        return torch.ops.quantized.linear(x, packed, 1.0, case["y_zero"])

    return call, call
