"""How many blocks of a kernel a multiprocessor holds at once, for every architecture that kernels are compiled for.

NVIDIA's own arithmetic is ``cuda_occupancy.h`` of the CUDA toolkit, which wants a compiler; the tests compare with it.
"""

from __future__ import annotations

from dataclasses import dataclass

# Registers are given out to a warp 256 at a time, out of four parts of a multiprocessor; shared memory in 128 bytes. The driver
# keeps one KiB of each block's. A thread has 255 registers at most. CUDA programming guide, "Compute capabilities"; cuda_occupancy.h.
WARP, PARTS, REGISTERS, REGISTER_UNIT, SHARED_UNIT, RESERVED = 32, 4, 65_536, 256, 128, 1024
MOST_REGISTERS, MOST_THREADS = 255, 1024
# Columns of sm_100's tensor memory, which its tensor cores accumulate in. PTX ISA, "Tensor Memory".
TENSOR_COLUMNS = 512


@dataclass(frozen=True)
class Multiprocessor:
    """Limits of one architecture's multiprocessor.

    Args:
        warps, blocks: resident at most.
        shared: bytes of shared memory.
        block_shared: bytes that one block may have of it.
    """

    warps: int
    blocks: int
    shared: int
    block_shared: int


# CUDA programming guide, "Compute capabilities", table "Technical specifications per compute capability".
MULTIPROCESSORS = {
    "sm_80": Multiprocessor(64, 32, 167_936, 166_912),
    "sm_86": Multiprocessor(48, 16, 102_400, 101_376),
    "sm_89": Multiprocessor(48, 24, 102_400, 101_376),
    "sm_90": Multiprocessor(64, 32, 233_472, 232_448),
    "sm_100": Multiprocessor(64, 32, 233_472, 232_448),
    "sm_120": Multiprocessor(48, 24, 102_400, 101_376),
}
# AMD's compute unit: four SIMDs of 512 vector registers (a multiple of eight to a wave) and eight waves each, sixteen barriers,
# LDS in units of 512 bytes. LLVM's AMDGPUBaseInfo.cpp, after which its register allocator works.
GFX942, SIMDS, SIMD_REGISTERS, SIMD_WAVES, BARRIERS, LDS, LDS_UNIT = "gfx942", 4, 512, 8, 16, 65_536, 512
WAVE = 64


def block_shared(target: str) -> int:
    """Bytes of shared memory, static and dynamic, that one block may have on a target."""
    return LDS if target == GFX942 else MULTIPROCESSORS[target].block_shared


def blocks(target: str, threads: int, registers: int, shared: int, tensor_columns: int = 0) -> int:
    """Blocks that a multiprocessor holds at once; 0: a block cannot be launched.

    Args:
        target: a key of :data:`MULTIPROCESSORS`, or ``gfx942``.
        threads: of a block.
        registers: of a thread; 1 or more.
        shared: bytes of shared memory of a block, static and dynamic.
        tensor_columns: of tensor memory that a block takes on sm_100.
    """
    if threads > MOST_THREADS or shared > block_shared(target) or tensor_columns > TENSOR_COLUMNS:
        return 0
    if target == GFX942:
        return _compute_unit(threads, registers, shared)
    chip, warps = MULTIPROCESSORS[target], -(-threads // WARP)
    warp_registers = _up(registers * WARP, REGISTER_UNIT)
    if registers > MOST_REGISTERS:
        return 0
    # Each part has a quarter of the registers, and takes whole warps.
    by_registers = REGISTERS // PARTS // warp_registers * PARTS // warps
    by_shared = chip.shared // _up(shared + RESERVED, SHARED_UNIT)
    by_tensor = TENSOR_COLUMNS // tensor_columns if tensor_columns else chip.blocks
    return min(chip.warps // warps, chip.blocks, by_registers, by_shared, by_tensor)


def _compute_unit(threads: int, registers: int, shared: int) -> int:
    waves = -(-threads // WAVE)
    if registers > SIMD_REGISTERS:
        return 0
    resident = SIMDS * min(SIMD_WAVES, SIMD_REGISTERS // _up(registers, 8))
    # A block of one wave has nothing to wait for, and takes no barrier.
    most = BARRIERS if waves > 1 else resident
    by_shared = LDS // _up(shared, LDS_UNIT) if shared else most
    return min(resident // waves, most, by_shared)


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
