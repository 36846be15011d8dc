"""Memory for big results on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from pyquant.ops.backend import extension

# Results of so many bytes or more reuse each other's memory on the CPU: touching fresh pages costs more than the kernels do.
# At most 256 MiB that no tensor uses any more wait for the next result of their size. Such a result cannot be resized in place.
KEPT_FROM = 16 << 20


def result_like(x: Tensor) -> Tensor:
    """An uninitialised contiguous result. A big one on the CPU takes memory that an earlier one left: see ``KEPT_FROM``."""
    native = extension()
    if native is None or type(x) is not Tensor or x.device.type != "cpu" or x.nbytes < KEPT_FROM:
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    return torch.frombuffer(native.ResultMemory(x.nbytes), dtype=x.dtype).view(x.shape)
