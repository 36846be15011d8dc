"""Every kernel of ``pyquant_cuda.fatbin``, with what a launch of it needs to know. No tensor, no driver."""

from __future__ import annotations

from dataclasses import dataclass

# Those with int4 tensor cores.
INT4 = ("sm_80", "sm_86", "sm_89")
ALL = (*INT4, "sm_90", "sm_100", "sm_120")
# Column tiles of a band, at most: blocks that run at one time are some 200, and read least where they form a square.
BAND = 8


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
        x_signed: whether activation codes are signed.
        group_sizes: groups of K that it takes; None is a whole row.
    """

    entry: str
    op: str
    block: int
    shared_bytes: int
    tile: tuple[int, int, int]
    stages: int
    architectures: tuple[str, ...] = ALL
    x_signed: bool = False
    group_sizes: tuple[int | None, ...] = (None,)

    def grid(self, m: int, n: int) -> tuple[int, int, int]:
        """Blocks for a result of ``[m, n]``.

        x counts the column tiles of a band, y all row tiles, z the bands, which are as even as can be: so blocks that run at one
        time share what they read. Those of a split K have x for row tiles, y for column tiles, and z for the splits.
        """
        rows, columns = -(-m // self.tile[0]), -(-n // self.tile[1])
        if self.op.startswith("gemm_w4a16"):
            return rows, columns, 1
        bands = -(-columns // BAND)
        return -(-columns // bands), rows, bands


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


def _low_bit(
    op: str, tiles: tuple[tuple[str, tuple[int | None, ...], int, int, int, int], ...]
) -> list[CudaKernel]:
    """``tiles``: name of the grouping, group sizes, rows, columns, K, stages."""
    narrow = op == "gemm_w4a4"
    return [
        CudaKernel(
            f"{op}_{'signed' if x_signed else 'unsigned'}_{name}_{rows}x{columns}",
            op,
            128,
            stages * (rows * 64 + columns * (64 if narrow else 32)),
            (rows, columns, k),
            stages,
            INT4 if narrow else ALL,
            x_signed,
            sizes,
        )
        for x_signed in (True, False)
        for name, sizes, rows, columns, k, stages in tiles
    ]


def _w4a16() -> list[CudaKernel]:
    """Each of ``[m, n, splits]`` blocks; more than one split needs the ``sum`` kernel behind it, a thread a result."""
    return [
        *(
            CudaKernel(
                f"gemm_w4a16_{dtype}_{rows}x128",
                "gemm_w4a16",
                128,
                4 * (rows * 128 + 4096),
                (rows, 128, 64),
                4,
                group_sizes=(None, 32, 64, 128),
            )
            for dtype in ("f16", "bf16")
            for rows in (16, 64)
        ),
        *(
            CudaKernel(f"gemm_w4a16_sum_{dtype}", "gemm_w4a16_sum", 256, 0, (256, 1, 1), 1)
            for dtype in ("f16", "bf16")
        ),
    ]


def w4a16_splits(kernel: CudaKernel, m: int, n: int, k: int, multiprocessors: int) -> int:
    """Parts of K that give every multiprocessor two blocks, each with at least four slabs to read."""
    rows, columns, _ = kernel.grid(m, n)
    slabs = -(-k // kernel.tile[2])
    return max(1, min(2 * multiprocessors // (rows * columns), slabs // kernel.stages))


KERNELS: tuple[CudaKernel, ...] = (
    *_gemm_s8(),
    *_low_bit(
        "gemm_w4a4",
        (
            ("row", (None,), 128, 128, 128, 3),
            ("row", (None,), 64, 64, 128, 4),
            ("row", (None,), 16, 128, 128, 4),
            *((f"group{size}", (size,), rows, 128, 128, 4) for size in (128, 64, 32) for rows in (64, 16)),
        ),
    ),
    *_low_bit(
        "gemm_w4a8",
        (
            ("row", (None,), 128, 128, 64, 3),
            ("row", (None,), 16, 128, 64, 4),
            ("group", (32, 64, 128), 64, 128, 64, 4),
            ("group", (32, 64, 128), 16, 128, 64, 4),
        ),
    ),
    *_w4a16(),
)
