"""Blocks a multiprocessor, compared with NVIDIA's own arithmetic where a toolkit has it."""

import ctypes
import shutil
import subprocess
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pytest

from bench.occupancy import MULTIPROCESSORS, block_shared, blocks

FOLDERS = [Path("/usr/local/cuda/include")]
for package, inner in (("triton", "backends/nvidia/include"), ("nvidia", "cuda_runtime/include")):
    found = find_spec(package)
    FOLDERS += [Path(place) / inner for place in (found.submodule_search_locations or [])] if found else []
HEADER = next((folder for folder in FOLDERS if (folder / "cuda_occupancy.h").is_file()), None)
ORACLE = """
#include <cuda_occupancy.h>
extern "C" int active(int major, int minor, int warps, int shared, int block_shared, int threads, int registers, int fixed,
                      int dynamic) {
  cudaOccDeviceProp chip{};
  chip.computeMajor = major; chip.computeMinor = minor; chip.maxThreadsPerBlock = 1024; chip.warpSize = 32;
  chip.maxThreadsPerMultiprocessor = 32 * warps; chip.regsPerBlock = chip.regsPerMultiprocessor = 65536; chip.numSms = 1;
  chip.sharedMemPerBlock = 49152; chip.sharedMemPerMultiprocessor = shared; chip.sharedMemPerBlockOptin = block_shared;
  chip.reservedSharedMemPerBlock = 1024;
  cudaOccFuncAttributes kernel{};
  kernel.maxThreadsPerBlock = 1024; kernel.numRegs = registers; kernel.sharedSizeBytes = fixed;
  kernel.partitionedGCConfig = PARTITIONED_GC_OFF; kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
  kernel.maxDynamicSharedSizeBytes = block_shared - fixed;
  cudaOccDeviceState state{};
  cudaOccResult result;
  if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &chip, &kernel, &state, threads, dynamic)) return -1;
  return result.activeBlocksPerMultiprocessor;
}
"""
THREADS = (32, 96, 128, 160, 256, 384, 512, 1024)
REGISTERS = (16, 33, 40, 64, 72, 90, 128, 168, 232, 255)


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    if HEADER is None or shutil.which("g++") is None:
        pytest.skip("no cuda_occupancy.h (of a CUDA toolkit or Triton's wheel), or no g++ for it.")
    folder = tmp_path_factory.mktemp("occupancy")
    source, library = folder / "oracle.cpp", folder / "oracle.so"
    source.write_text(ORACLE)
    subprocess.run(["g++", "-O1", "-shared", "-fPIC", f"-I{HEADER}", "-o", library, source], check=True)
    return ctypes.CDLL(str(library)).active


@pytest.mark.parametrize("target", MULTIPROCESSORS)
def test_blocks_are_those_of_nvidia_s_header(target, oracle):
    chip, number = MULTIPROCESSORS[target], int(target.removeprefix("sm_"))
    whole = block_shared(target)
    amounts = {0, 1, 1024, 20_480, 33_000, 49_152, 65_536, whole // 2, whole - 1, whole}
    counts = set()
    for threads, registers, shared in product(THREADS, REGISTERS, sorted(amounts)):
        for fixed in {0, min(shared, 20_480)}:
            expected = oracle(
                number // 10,
                number % 10,
                chip.warps,
                chip.shared,
                whole,
                threads,
                registers,
                fixed,
                shared - fixed,
            )
            assert blocks(target, threads, registers, shared) == expected, (threads, registers, shared, fixed)
            counts.add(expected)
    # 0 where no block fits, one where the whole of a resource goes to it, and as many as there are places for.
    assert {0, 1, 2, 3, chip.blocks} <= counts


def test_what_no_device_can_launch():
    for target in (*MULTIPROCESSORS, "gfx942"):
        most = block_shared(target)
        assert blocks(target, 256, 64, most) == 1 and blocks(target, 256, 64, most + 1) == 0
        assert blocks(target, 1024, 32, 0) >= 1 and blocks(target, 1025, 32, 0) == 0
        assert blocks(target, 64, 513, 0) == 0
    # What fits on an A100 does not on a 3090, and a thread cannot have 256 registers.
    assert blocks("sm_80", 128, 64, 163_840) == 1 and blocks("sm_86", 128, 64, 163_840) == 0
    assert blocks("sm_80", 32, 255, 0) == 8 and blocks("sm_80", 32, 256, 0) == 0


def test_tensor_memory_limits_blocks_too():
    assert blocks("sm_100", 128, 64, 20_000) == 8
    assert [blocks("sm_100", 128, 64, 20_000, columns) for columns in (32, 64, 128, 256, 512, 513)] == [
        8,
        8,
        4,
        2,
        1,
        0,
    ]


@pytest.mark.parametrize(
    ("threads", "registers", "shared", "expected"),
    [
        # Eight waves a SIMD up to 64 registers; 128 leave four, 129 three.
        (256, 64, 0, 8),
        (256, 128, 0, 4),
        (256, 129, 0, 3),
        (256, 512, 0, 1),
        # LDS: 8,193 bytes take 17 units, so seven blocks have room.
        (256, 32, 8_192, 8),
        (256, 32, 8_193, 7),
        # Sixteen barriers; a single wave takes none.
        (128, 32, 0, 16),
        (64, 32, 0, 32),
        (1024, 64, 0, 2),
    ],
)
def test_blocks_of_amd(threads, registers, shared, expected):
    assert blocks("gfx942", threads, registers, shared) == expected
