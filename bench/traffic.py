"""What a kernel asks of memory and of the tensor cores, by the addresses it computes, and the least that its result needs.

Counted are the bytes that all blocks load and store, every block its own: what a block reads of another's operands comes from L2 in
part, but has to come. Factors of an epilogue, some bytes a column of a tile, count once a block.
The least is every operand read once and every result written once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.compiled import LARGE, Artefact
from bench.roofline import FP16, INT4, INT8


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
    name = artefact.kernel if artefact.backend == "triton" else artefact.op
    return KERNELS[name](artefact)


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
    floats = artefact.op == "gemm_s8_float" or not getattr(artefact.description, "to_codes", True)
    return product(artefact, INT8, 8, 8, 4 if floats else 1, 12)


def _gemm_w4a4(artefact: Artefact) -> Work:
    return product(artefact, INT4, 4, 4, 4, 4 * _groups(artefact.description), 4)


def _gemm_w4a8(artefact: Artefact) -> Work:
    """A scale a group and column, a scale a row; where weights have zero points, these and the sums of the codes of a row."""
    d = artefact.description
    groups = _groups(d)
    column = groups * (4 + 4 * d.zero + 4 * d.x_zero)
    return product(artefact, INT8, 8, 4, BYTES[d.dtype], column, 4 + 4 * d.x_zero + 4 * groups * d.zero)


def _gemm_w4a16(artefact: Artefact) -> Work:
    """Where K is split, each split writes its sums in float32."""
    d = artefact.description
    return product(artefact, FP16, 16, 4, 4 * d.splits if d.splits > 1 else 2, 4 * _groups(d))


def _gemm_w4a16_sum(artefact: Artefact) -> Work:
    d = artefact.description
    return _once(d.m * d.n * (4 * d.splits + 2))


def _triton_w4a16(artefact: Artefact) -> Work:
    """A scale and an offset a group and column; where K is split, each split writes its sums in float32."""
    splits = _splits(artefact)
    return product(artefact, FP16, 16, 4, 4 * splits if splits > 1 else 2, 6 * _groups(artefact.description))


def _triton_w4a16_sum(artefact: Artefact) -> Work:
    return _once(artefact.description.m * artefact.description.n * (4 * _splits(artefact) + 2))


def _splits(artefact: Artefact) -> int:
    from pyquant.kernels import gemm_w4a16

    d = artefact.description
    return gemm_w4a16.choose_splits(d, gemm_w4a16.choose(d, artefact.target))[0]


def _conv_s8(artefact: Artefact) -> Work:
    """An implicit product: every tile reads the pixels under its rows, none that lie outside the image."""
    d, tile = artefact.description, artefact.constants
    m, outputs, channels = d.images * d.out[0] * d.out[1], d.outputs // d.groups, d.channels // d.groups
    length = d.kernel[0] * d.kernel[1] * channels
    down, across = -(-m // tile["BLOCK_M"]), -(-outputs // tile["BLOCK_N"])
    high, wide = _taps(d, 0), _taps(d, 1)
    # Rows behind the last read the first pixel's again.
    pixels = d.images * sum(map(len, high)) * sum(map(len, wide)) + (down * tile["BLOCK_M"] - m) * len(
        high[0]
    ) * len(wide[0])
    loaded = (pixels * channels * across + across * tile["BLOCK_N"] * length * down) * d.groups
    results = m * d.outputs * (1 + d.residual)
    least = _seen(d) * d.channels + d.outputs * length + 12 * d.outputs
    return Work(loaded + 12 * d.outputs * down + results, least + results, 2 * m * d.outputs * length, INT8)


def _depthwise_s8(artefact: Artefact) -> Work:
    d, box = artefact.description, artefact.constants
    m, taps = d.images * d.out[0] * d.out[1], d.kernel[0] * d.kernel[1]
    down = -(-m // box["BLOCK_PIXELS"])
    pixels = d.images * sum(map(len, _taps(d, 0))) * sum(map(len, _taps(d, 1)))
    results, factors = m * d.channels * (1 + d.residual), d.channels * (taps + 8)
    return Work(
        pixels * d.channels + down * factors + results, _seen(d) * d.channels + factors + results, 0, None
    )


def _taps(shape: Any, axis: int) -> list[list[int]]:
    """For every row of the result, or column: the rows of the image that it sees."""
    size = (shape.height, shape.width)[axis]
    first = [at * shape.stride[axis] - shape.padding[axis] for at in range(shape.out[axis])]
    steps = [tap * shape.dilation[axis] for tap in range(shape.kernel[axis])]
    return [[at + step for step in steps if 0 <= at + step < size] for at in first]


def _seen(shape: Any) -> int:
    """Pixels that some result needs."""
    high, wide = (len({at for row in _taps(shape, axis) for at in row}) for axis in (0, 1))
    return shape.images * high * wide


def _groups(shape: Any) -> int:
    return -(-shape.k // shape.group) if shape.group else 1


def _fake_quantize(artefact: Artefact) -> Work:
    """Forward: x once, y once; every block loads the scale and zero point of its rows."""
    d, size = artefact.description, artefact.constants
    rows, item = d.outer * d.channels, BYTES[d.dtype]
    moved = rows * d.inner * (item + (1 if size["TO_CODES"] else item))
    down, across = -(-rows // size["BLOCK_ROWS"]), -(-d.inner // size["BLOCK_INNER"])
    return Work(moved + 8 * down * across * size["BLOCK_ROWS"], moved + 8 * d.channels, 0, None)


def _fake_quantize_backward(artefact: Artefact) -> Work:
    """dy and x once, dx once, and the partial sums of each program."""
    d = artefact.description
    programs = _programs(artefact)
    moved = d.outer * d.channels * d.inner * 3 * BYTES[d.dtype]
    return Work(moved + 16 * programs * d.channels, moved + 16 * d.channels, 0, None)


def _fake_quantize_sums(artefact: Artefact) -> Work:
    return _once((8 * _programs(artefact) + 12) * artefact.description.channels)


def _programs(artefact: Artefact) -> int:
    from pyquant.kernels import fake_quantize

    return fake_quantize.choose_backward(artefact.description, artefact.target)[2]


def _quantize_rows(artefact: Artefact) -> Work:
    """Rows too long for registers are read a second time. The description says no number of rows: LARGE."""
    d = artefact.description
    read = LARGE * d.k * BYTES[d.dtype]
    written = LARGE * (-(-d.k * d.bits // 8) + 4 + 4 * (d.k // d.group if d.group else 0))
    return Work(read * (1 if artefact.constants["ONCE"] else 2) + written, read + written, 0, None)


def _row_sums(artefact: Artefact) -> Work:
    d = artefact.description
    return _once(LARGE * (d.k + 4 * d.k // d.group))


def _once(moved: int) -> Work:
    """All of it is needed, and none of it twice."""
    return Work(moved, moved, 0, None)


BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
# Triton's function, or the op of a CUDA kernel -> what a launch of it does.
KERNELS: Mapping[str, Callable[[Artefact], Work]] = {
    "gemm_s8": _gemm_s8,
    "gemm_s8_float": _gemm_s8,
    "gemm_s8_kernel": _gemm_s8,
    "gemm_w4a4": _gemm_w4a4,
    "gemm_w4a8": _gemm_w4a8,
    "gemm_w4a8_kernel": _gemm_w4a8,
    "gemm_w4a16": _gemm_w4a16,
    "gemm_w4a16_sum": _gemm_w4a16_sum,
    "gemm_w4a16_kernel": _triton_w4a16,
    "add_splits_kernel": _triton_w4a16_sum,
    "conv_s8_kernel": _conv_s8,
    "depthwise_s8_kernel": _depthwise_s8,
    "fake_quantize_kernel": _fake_quantize,
    "backward_kernel": _fake_quantize_backward,
    "sums_kernel": _fake_quantize_sums,
    "quantize_rows_kernel": _quantize_rows,
    "row_sums_kernel": _row_sums,
}
