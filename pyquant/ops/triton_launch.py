"""From an op to the Triton kernels: the target that serves a device, or why none does."""

from __future__ import annotations

import torch

from pyquant.ops.backend import Unserved

# How the Triton kernels name the types.
FLOATS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def target_of(device: torch.device) -> str:
    """Name of the target that kernels are chosen by.

    Raises:
        Unserved: the Triton kernels are not for this device's architecture.
    """
    from pyquant.kernels import targets

    try:
        return targets.of(device)
    except ValueError as error:
        raise Unserved(str(error).rstrip(".")) from None
