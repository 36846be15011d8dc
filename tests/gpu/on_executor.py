"""The cuda backend with its kernels executed on this CPU: everything between an op and a launch is what runs on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from pyquant.ops import backend, cuda_launch, gemm_w4a16
from tests.gpu.executor import KERNEL, Executor


class ExecutorDriver:
    """Stands for the driver: launches go to the executor, and are listed.

    Attributes:
        launched: entries, in order.
    """

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.launched: list[str] = []

    def kernel(self, entry: str, device: int) -> str:
        assert device == 0
        return entry

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared_bytes: int,
        stream: int,
        arguments: Mapping[str, Any],
    ) -> None:
        about = KERNEL[kernel]
        assert (block, shared_bytes, stream) == ((about.block, 1, 1), about.shared_bytes, 7)
        for name, value in arguments.items():
            if hasattr(value, "data_ptr"):
                assert value.is_contiguous() and value.data_ptr() % 16 == 0, name
        self.launched.append(kernel)
        self.executor.launch(kernel, grid, list(arguments.values()), seed=len(self.launched))


def serve(executor: Executor, patch: pytest.MonkeyPatch, architecture: str = "sm_80") -> ExecutorDriver:
    """Have ``backend="cuda"`` take CPU tensors, as a device of this architecture."""
    driver = ExecutorDriver(executor)
    missing = backend.missing
    patch.setattr(backend, "missing", lambda name: None if name == "cuda" else missing(name))
    patch.setitem(backend._READS, "cuda", ("cpu",))
    for module in (backend, cuda_launch):
        patch.setattr(module, "architecture", lambda device: architecture)
    patch.setattr(cuda_launch, "driver", lambda: driver)
    patch.setattr(cuda_launch, "stream_of", lambda device: 7)
    patch.setattr(cuda_launch, "index_of", lambda device: 0)
    for page in (cuda_launch, gemm_w4a16):
        patch.setattr(page, "processors", lambda device: 4)
    return driver
