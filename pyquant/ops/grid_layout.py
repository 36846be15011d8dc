"""How the fake-quantize kernels see a tensor and the grid on it."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor


def layout_of(shape: torch.Size, axis: int | None, group_size: int | None) -> tuple[int, int, int]:
    """``(outer, channels, inner)`` of a contiguous tensor that has elements: number ``i`` uses ``scale[(i // inner) % channels]``."""
    if axis is None:
        return 1, 1, prod(shape)
    if group_size is not None:
        return 1, prod(shape) // group_size, group_size
    axis %= len(shape)
    return prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])


def prepare(x: Tensor, scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All three contiguous, zero points rounded half to even."""
    return x.contiguous(), scale.contiguous(), torch.round(zero_point).contiguous()


def cpu_grid(x, scale, zero_point, qmin, qmax, axis, group_size) -> tuple:
    """What every kernel of the cpu backend takes behind its tensors."""
    addresses = scale.data_ptr(), zero_point.data_ptr()
    return *addresses, *layout_of(x.shape, axis, group_size), qmin, qmax, torch.get_num_threads()
