"""The fatbin: nvcc compiles the kernels as setup.py says, and every configuration is in it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pyquant.ops.cuda_configurations import ALL, KERNELS

ROOT = Path(__file__).resolve().parents[2]
NVCC = shutil.which("nvcc")
SOURCE = ROOT / "csrc/cuda/pyquant_cuda.cu"
# What a block may have in all of a device's shared memory, in bytes: CUDA C++ Programming Guide, "Compute Capabilities".
SHARED_LIMIT = {
    "sm_80": 166912,
    "sm_86": 101376,
    "sm_89": 101376,
    "sm_90": 232448,
    "sm_100": 232448,
    "sm_120": 101376,
}


@pytest.mark.skipif(NVCC is None, reason="nvcc is not on PATH, so the CUDA kernels are not built here")
@pytest.mark.parametrize(
    "architecture", ["sm_80", *(pytest.param(a, marks=pytest.mark.slow) for a in ALL[1:])]
)
def test_nvcc_compiles_every_configuration_without_spills(architecture, tmp_path):
    command = [
        str(NVCC), "-std=c++17", "-O3", "-fmad=false", f"-arch={architecture}", "-cubin", "-Xptxas", "-v,-warn-spills",
        str(SOURCE), "-o", str(tmp_path / "kernels.cubin"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    functions = re.findall(
        r"Function properties for (\w+)\n\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads",
        done.stderr,
    )
    assert {name for name, *_ in functions} == {k.entry for k in KERNELS if architecture in k.architectures}
    assert [name for name, *spilled in functions if spilled != ["0", "0", "0"]] == []


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.entry)
def test_every_configuration_fits_its_devices(kernel):
    assert [a for a in kernel.architectures if kernel.shared_bytes > SHARED_LIMIT[a]] == []
    assert kernel.block % 32 == 0 and kernel.block <= 1024
