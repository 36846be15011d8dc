"""From an op to a launch on the cuda backend: which kernel of the fatbin fits, and the call of the driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import torch

from pyquant.ops.backend import Unserved, architecture
from pyquant.ops.cuda_configurations import KERNELS, CudaKernel
from pyquant.ops.cuda_driver import driver


@dataclass(frozen=True)
class Launch:
    """A kernel chosen for a call; ``str`` is one line.

    Args:
        kernel: of the fatbin.
        target: the device's architecture.
        grid: blocks of the launch.
    """

    kernel: CudaKernel
    target: str
    grid: tuple[int, int, int]

    def __str__(self) -> str:
        k, (m, n, depth) = self.kernel, self.kernel.tile
        size = (
            f"{m}x{n}x{depth}, {k.block} threads, {k.stages} stages, {k.shared_bytes} bytes of shared memory"
        )
        return f"{k.entry} on {self.target}: {size}"

    def __call__(self, device: torch.device, arguments: Mapping[str, Any]) -> None:
        """Put the launch into torch's current stream of the device."""
        index, gpu = index_of(device), driver()
        kernel = gpu.kernel(self.kernel.entry, index)
        block = (self.kernel.block, 1, 1)
        gpu.launch(kernel, self.grid, block, self.kernel.shared_bytes, stream_of(device), arguments)


def fit(
    op: str,
    device: torch.device,
    m: int,
    n: int,
    x_signed: bool = False,
    group_size: int | None = None,
    word: str = "",
) -> Launch:
    """Choose a kernel: the largest tile, less than half of it past the rows, that gives every multiprocessor a block.

    Args:
        op: ``op`` of :class:`~pyquant.ops.cuda_configurations.CudaKernel`.
        device: where it will run.
        m, n: shape of the result.
        x_signed, group_size: of the codes.
        word: a part of the entry's name.

    Raises:
        Unserved: there is no such kernel for the architecture or the groups.
    """
    target = architecture(device)
    ours = [k for k in KERNELS if k.op == op and k.x_signed == x_signed and word in k.entry]
    if not ours:
        raise Unserved(f"its kernels take {'unsigned' if x_signed else 'signed'} activations only")
    running = [k for k in ours if any(runs_on(target, built) for built in k.architectures)]
    if not running:
        raise Unserved(f"its kernels of {op} are built for {', '.join(ours[0].architectures)}")
    fitting = [k for k in running if group_size in k.group_sizes]
    if not fitting:
        raise Unserved(f"it has no kernel of {op} for groups of {group_size}")
    fitting.sort(key=lambda k: k.tile[0] * k.tile[1], reverse=True)
    smallest = min(k.tile[0] for k in fitting)
    fitting = [k for k in fitting if k.tile[0] < 2 * m or k.tile[0] == smallest]
    grids = {k.entry: k.grid(m, n) for k in fitting}
    filling = [k for k in fitting if prod(grids[k.entry]) >= processors(device)]
    kernel = filling[0] if filling else fitting[-1]
    return Launch(kernel, target, grids[kernel.entry])


def runs_on(target: str, built: str) -> bool:
    """Whether a device runs code built for an architecture: of its own generation, and no newer."""
    have, need = target.removeprefix("sm_"), built.removeprefix("sm_")
    if not have.isdigit():
        return False
    return have[:-1] == need[:-1] and have[-1] >= need[-1]


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a device."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def index_of(device: torch.device) -> int:
    """The device's number: that of ``torch.device("cuda")`` is the current one's."""
    return torch.cuda.current_device() if device.index is None else device.index


def stream_of(device: torch.device) -> int:
    """Address of torch's current stream."""
    return torch.cuda.current_stream(device).cuda_stream
