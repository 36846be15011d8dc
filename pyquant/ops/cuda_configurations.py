"""Every kernel of ``pyquant_cuda.fatbin``, with what a launch of it needs to know. No tensor, no driver."""

from __future__ import annotations

from dataclasses import dataclass

ALL = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")


@dataclass(frozen=True)
class CudaKernel:
    """A kernel and its launch.

    Attributes:
        entry: its name in the fatbin.
        op: the operator it serves.
        block: threads of a block.
        shared_bytes: dynamic shared memory of a block; above 48 KB the launch has to ask for it.
        tile: ``(M, N, K)`` of a block: rows and columns of the result, and input channels of one pipeline stage.
        stages: slabs of K in shared memory at a time.
        architectures: those whose code the fatbin has.
    """

    entry: str
    op: str
    block: int
    shared_bytes: int
    tile: tuple[int, int, int]
    stages: int
    architectures: tuple[str, ...] = ALL

    def grid(self, m: int, n: int) -> tuple[int, int, int]:
        """Blocks for a result of ``[m, n]``: x counts row tiles, y column tiles."""
        return -(-m // self.tile[0]), -(-n // self.tile[1]), 1


# Rows, columns, threads, stages of the tiles of gemm_s8; csrc/cuda/gemm_s8.cu says the same to its templates.
_S8_TILES = ((128, 128, 128, 3), (64, 64, 128, 4), (16, 128, 128, 4))


def _gemm_s8() -> list[CudaKernel]:
    return [
        CudaKernel(
            f"gemm_s8_{result}_{rows}x{columns}",
            "gemm_s8" if result == "codes" else "gemm_s8_float",
            threads,
            stages * (rows + columns) * 64,
            (rows, columns, 64),
            stages,
        )
        for result in ("codes", "floats")
        for rows, columns, threads, stages in _S8_TILES
    ]


KERNELS: tuple[CudaKernel, ...] = tuple(_gemm_s8())
