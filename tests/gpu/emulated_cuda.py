"""The CUDA kernels' PTX, as nvcc writes it for sm_80, launched on the emulator with the arguments that a GPU would get."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyquant.ops.cuda_configurations import KERNELS
from tests.gpu.emulator import Report, run, together

ROOT = Path(__file__).resolve().parents[2]
NVCC = shutil.which("nvcc")
KERNEL = {kernel.entry: kernel for kernel in KERNELS}


def _set_in_setup(name: str) -> object:
    """A constant of setup.py, which cannot be imported."""
    found = re.search(rf"^{name} = (.*)$", (ROOT / "setup.py").read_text(encoding="utf-8"), re.M)
    assert found is not None, f"setup.py sets no {name}"
    return ast.literal_eval(found[1])


def compile_ptx(folder: Path) -> str:
    """The PTX of all kernels, with the flags that the fatbin is built with."""
    out = folder / "kernels.ptx"
    flags, source = _set_in_setup("CUDA_FLAGS"), _set_in_setup("CUDA_SOURCE")
    command = [str(NVCC), *flags, "-ptx", "-arch=compute_80", str(ROOT / source), "-o", str(out)]  # type: ignore[misc, operator]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out.read_text(encoding="utf-8")


def memory_of(tensor: Tensor) -> np.ndarray:
    """A tensor's own memory as an array; types that numpy lacks as bytes' codes."""
    assert tensor.is_contiguous()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)
    return tensor.numpy()


class EmulatedGpu:
    """Stands where ``executor.Executor`` stands: the same tests run on either.

    Args:
        ptx: all kernels.
        replaced: entry -> another text that it is taken from, a mutant's.

    Attributes:
        worst_conflict: of banks, over all launches.
        reports: entry -> what its launches did.
    """

    def __init__(self, ptx: str, replaced: Mapping[str, str] | None = None) -> None:
        self.ptx = ptx
        self.replaced = replaced or {}
        self.worst_conflict = 0
        self.reports: dict[str, Report] = {}

    def launch(
        self,
        entry: str,
        grid: tuple[int, int, int],
        arguments: Sequence[Tensor | int | float | None],
        seed: int = 0,
    ) -> None:
        """Run a kernel; tensors are passed as pointers and None as a null pointer.

        Raises:
            EmulatorError: the kernel broke a rule.
        """
        kernel = KERNEL[entry]
        values = [memory_of(given) if isinstance(given, Tensor) else given or 0 for given in arguments]
        text = self.replaced.get(entry, self.ptx)
        report = run(text, entry, grid, kernel.block, values, dynamic_shared=kernel.shared_bytes, seed=seed)
        self.worst_conflict = max(self.worst_conflict, report.worst_conflict)
        before = self.reports.get(entry)
        self.reports[entry] = report if before is None else together([before, report])
