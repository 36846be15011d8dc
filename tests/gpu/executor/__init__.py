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
# For a process that the sanitizers' libraries were loaded into first. Stacks are the fibers' own, which they do not know;
# what they watch is the tensors and the shared memory.
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "--param", "asan-stack=0", "-g1"]


class ExecutorError(Exception):
    """A kernel did what no GPU allows: a misaligned address, a barrier not all threads reach."""


class Executor:
    """A built library of the kernels.

    Args:
        folder: where to build.
        source: the file of ``csrc/cuda`` to build, all kernels or one operator's.
        csrc: the sources, ``csrc`` of this project or a changed copy.
        flags: more compiler flags.
    """

    def __init__(
        self, folder: Path, source: str = "pyquant_cuda.cu", csrc: Path = CSRC, flags: Sequence[str] = ()
    ) -> None:
        own = source.removesuffix(".cu") + "_"
        entries = [k.entry for k in KERNELS if source == "pyquant_cuda.cu" or k.entry.startswith(own)]
        text = "".join(f"PQ_ENTRY({entry})\n" for entry in entries)
        (folder / "entries.inc").write_text(text, encoding="utf-8")
        library = folder / "libexecutor.so"
        command = [
            str(COMPILER), "-std=c++17", "-O1", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-Wall", "-Wextra",
            "-Werror", "-Wno-unknown-pragmas", "-shared", "-fPIC", f"-I{folder}", f"-I{HERE}", f"-I{csrc}", *flags,
            f'-DPQ_SOURCE="cuda/{source}"', str(HERE / "driver.cpp"), "-o", str(library),
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
        sizes = [a.numel() * a.element_size() if isinstance(a, Tensor) else 0 for a in arguments]
        failure, conflict = ctypes.create_string_buffer(256), ctypes.c_int()
        failed = self._run(
            entry.encode(), (ctypes.c_uint * 3)(*grid), kernel.block, kernel.shared_bytes, pointers,
            (ctypes.c_size_t * len(sizes))(*sizes), len(sizes), seed,
            failure, ctypes.byref(conflict),
        )  # fmt: skip
        self.worst_conflict = max(self.worst_conflict, conflict.value)
        if failed:
            raise ExecutorError(failure.value.decode())


def aligned(tensor: Tensor) -> Tensor:
    """A copy of its own memory, which begins at a multiple of 16, as torch's does, and ends where the copy ends."""
    copy = tensor.clone(memory_format=torch.contiguous_format)
    assert copy.data_ptr() % 16 == 0
    return copy
