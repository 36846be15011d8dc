"""oneDNN, as torch calls it for int8: weights prepacked, one fused product or convolution with bias and requantisation.

It adds the bias before it scales, so a code may differ by one from ours.
"""

from __future__ import annotations

from typing import Any

import torch

from bench.peers.crew import Built


def gemm_s8(case: dict[str, Any], threads: int) -> Built:
    """``[M, K]`` uint8 times ``[N, K]`` int8 to uint8."""
    torch.set_num_threads(threads)
    x, weight, multiplier, bias = (torch.from_numpy(case[n]) for n in ("x", "weight", "multiplier", "bias"))
    packed = torch.ops.onednn.qlinear_prepack(weight, list(x.shape))
    zeros = torch.zeros(len(weight), dtype=torch.int32)

    def call() -> torch.Tensor:
        return torch.ops.onednn.qlinear_pointwise(
            x,
            1.0,
            case["x_zero"],
            packed,
            multiplier,
            zeros,
            bias,
            1.0,
            case["y_zero"],
            torch.uint8,
            "none",
            [],
            "",
        )

    return call, call


def conv_s8(case: dict[str, Any], threads: int) -> Built:
    """``[1, H, W, C]`` uint8 in channels_last to codes of the same layout."""
    if case["before"] != case["after"]:
        raise NotImplementedError("its operator in torch pads both sides alike")
    torch.set_num_threads(threads)
    codes, weight, multiplier, bias = (
        torch.from_numpy(case[n]) for n in ("x", "weight", "multiplier", "bias")
    )
    x = codes.permute(0, 3, 1, 2)
    zeros = torch.zeros(len(weight), dtype=torch.int32)
    where = (case["stride"], case["before"], case["dilation"], case["groups"])
    packed = torch.ops.onednn.qconv_prepack(weight, multiplier, 1.0, case["x_zero"], *where, list(x.shape))
    inputs = (x, 1.0, case["x_zero"], packed, multiplier, zeros, bias, *where)

    def call() -> torch.Tensor:
        y = torch.ops.onednn.qconv_pointwise(*inputs, 1.0, case["y_zero"], torch.uint8, "none", [], "")
        return y.permute(0, 2, 3, 1)

    return call, call
