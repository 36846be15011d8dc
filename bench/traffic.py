"""What a kernel asks of memory and of the tensor cores, by the addresses it computes, and the least that its result needs.

Counted are the bytes that all blocks load and store, every block its own: what a block reads of another's operands comes from L2 in
part, but has to come. Factors of an epilogue, some bytes a column of a tile, count once a block.
The least is every operand read once and every result written once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bench.compiled import Artefact
from bench.roofline import INT8


@dataclass(frozen=True)
class Work:
    """What one launch does.

    Args:
        bytes: loaded and stored by all blocks.
        bytes_minimum: of operands and results, once.
        operations: of tensor cores; a multiply-add is two.
        kind: what they multiply, a key of a device's peaks; None where they have no part in it.
    """

    bytes: int
    bytes_minimum: int
    operations: int
    kind: str | None


def work(artefact: Artefact) -> Work:
    """What a launch of an artefact's case does.

    Raises:
        KeyError: nobody has said yet what such a kernel does.
    """
    return KERNELS[artefact.op](artefact)


def product(
    artefact: Artefact,
    kind: str,
    x_bits: int,
    w_bits: int,
    y_bytes: int,
    column_bytes: int,
    row_bytes: int = 0,
) -> Work:
    """A matrix product in tiles.

    Args:
        kind: what is multiplied.
        x_bits, w_bits: of a stored operand.
        y_bytes: of a result.
        column_bytes, row_bytes: of the epilogue's factors, an output and a row.
    """
    shape, tile = artefact.description, artefact.constants
    m, n, k = shape.m, shape.n, shape.k
    down, across = -(-m // tile["BLOCK_M"]), -(-n // tile["BLOCK_N"])
    # Triton's kernels load row 0 in place of rows that are not there; CUDA's fill shared memory with zeros instead.
    padded = artefact.backend == "triton"
    x_rows, w_rows = (down * tile["BLOCK_M"], across * tile["BLOCK_N"]) if padded else (m, n)
    loaded = (x_rows * across * x_bits + w_rows * down * w_bits) * k // 8
    factors = column_bytes * n * down + row_bytes * m * across
    least = (m * x_bits + n * w_bits) * k // 8 + column_bytes * n + row_bytes * m
    results = m * n * y_bytes
    return Work(loaded + factors + results, least + results, 2 * m * n * k, kind)


def _gemm_s8(artefact: Artefact) -> Work:
    """Multiplier, bias and correction are four bytes each."""
    codes = getattr(artefact.description, "to_codes", True)
    return product(artefact, INT8, 8, 8, 1 if codes else 4, 12)


def _gemm_s8_float(artefact: Artefact) -> Work:
    return product(artefact, INT8, 8, 8, 4, 12)


# Op -> what a launch of its kernel does.
KERNELS: Mapping[str, Callable[[Artefact], Work]] = {
    "gemm_s8": _gemm_s8,
    "gemm_s8_float": _gemm_s8_float,
}
