"""Runs the CUDA kernels' own source on a CPU: built once by a plain C++ compiler, launched as the CUDA driver would.

See ``fibers.h`` for how threads, barriers and asynchronous copies behave there.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pyquant.ops.cuda_configurations import KERNELS, CudaKernel

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[2] / "csrc"
COMPILER = shutil.which("c++")
KERNEL = {kernel.entry: kernel for kernel in KERNELS}
# Stacks are the fibers' own, which a sanitizer does not know; what it watches is the tensors and the shared memory.
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "--param", "asan-stack=0", "-g1"]


class ExecutorError(Exception):
    """A kernel did what no GPU allows: a misaligned address, a barrier not all threads reach."""


class Executor:
    """A built library of the kernels.

    Args:
        folder: where to build.
        csrc: the sources, ``csrc`` of this project or a changed copy.
        flags: more compiler flags.
    """

    def __init__(self, folder: Path, csrc: Path = CSRC, flags: Sequence[str] = ()) -> None:
        entries = "".join(f"PQ_ENTRY({kernel.entry})\n" for kernel in KERNELS)
        (folder / "entries.inc").write_text(entries, encoding="utf-8")
        library = folder / "libexecutor.so"
        driver = (HERE / "driver.cpp").read_text(encoding="utf-8").replace("../../../csrc", str(csrc))
        (folder / "driver.cpp").write_text(driver, encoding="utf-8")
        command = [
            str(COMPILER), "-std=c++17", "-O1", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-Wall", "-Wextra",
            "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC", f"-I{folder}", f"-I{HERE}", f"-I{csrc}", *flags,
            str(folder / "driver.cpp"), "-o", str(library),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        self._run = ctypes.CDLL(str(library)).run
        self.worst_conflict = 0

    def launch(
        self, entry: str, grid: tuple[int, int, int], arguments: Sequence[Tensor | int | None], seed: int = 0
    ) -> None:
        """Run a kernel; tensors are passed as pointers, None as a null pointer, ints as int32.

        Raises:
            ExecutorError: the kernel broke a rule.
        """
        kernel: CudaKernel = KERNEL[entry]
        values = [
            ctypes.c_int32(a) if isinstance(a, int) else ctypes.c_void_p(None if a is None else a.data_ptr())
            for a in arguments
        ]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        failure, conflict = ctypes.create_string_buffer(256), ctypes.c_int()
        failed = self._run(
            entry.encode(), (ctypes.c_uint * 3)(*grid), kernel.block, kernel.shared_bytes, pointers, seed,
            failure, ctypes.byref(conflict),
        )  # fmt: skip
        self.worst_conflict = max(self.worst_conflict, conflict.value)
        if failed:
            raise ExecutorError(failure.value.decode())


def aligned(tensor: Tensor) -> Tensor:
    """A copy whose data begins at a multiple of 16, as torch's do on a GPU."""
    size = tensor.numel() * tensor.element_size()
    memory = torch.empty(size + 16, dtype=torch.uint8)
    first = -memory.data_ptr() % 16
    return memory[first : first + size].view(tensor.dtype).reshape(tensor.shape).copy_(tensor)
