"""What a kernel asks of memory and of the tensor cores, by the addresses it computes, and the least that its result needs.

Counted are the bytes that all blocks load and store, every block its own: what a block reads of another's operands comes from L2 in
part, but has to come. An operand counts each time a block asks for it, factors of an epilogue or of a group once a block, whose
threads share them. Products count as the tensor cores do them, those of a tile's empty rows and columns too.
The least is every operand read once, every result written once, and no product but those that were asked for.

``tests/gpu/test_traffic.py`` runs the compiled kernels on the emulator and finds the same bytes and products, each kernel and tile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bench.compiled import LARGE, Artefact
from bench.roofline import FP16, INT4, INT8


@dataclass(frozen=True)
class Work:
    """What one launch does.

    Args:
        bytes: loaded and stored by all blocks.
        bytes_minimum: of operands and results, once.
        operations: that tensor cores do; a multiply-add is two.
        operations_minimum: that the result needs.
        kind: what they multiply, a key of a device's peaks; None where they have no part in it.
    """

    bytes: int
    bytes_minimum: int
    operations: int
    operations_minimum: int
    kind: str | None


def work(artefact: Artefact) -> Work:
    """What a launch of an artefact's case does.

    Raises:
        KeyError: nobody has said yet what such a kernel does.
    """
    name = artefact.kernel if artefact.backend == "triton" else artefact.op
    return KERNELS[name](artefact)


def _product(artefact: Artefact, kind: str, x: Row, w: Row, depth: int, factors: int, y_bytes: int) -> Work:
    """A matrix product in tiles, without what the factors of its epilogue come to at least.

    Rows of a tile behind the last read a row that is there again, in Triton's kernels and in CUDA's.

    Args:
        kind: what is multiplied.
        x, w: a row of either operand.
        depth: products a sum, as the tensor cores do them.
        factors: bytes that all blocks load of them.
        y_bytes: of a result.
    """
    d = artefact.description
    down, across, tall, wide = _tiles(artefact)
    moved = down * across * (tall * x.loaded + wide * w.loaded) + factors + d.m * d.n * y_bytes
    least = d.m * x.stored + d.n * w.stored + d.m * d.n * y_bytes
    return Work(moved, least, 2 * down * tall * across * wide * depth, 2 * d.m * d.n * d.k, kind)


@dataclass(frozen=True)
class Row:
    """Bytes of one row of an operand.

    Args:
        loaded: by a block that owns it.
        stored: without what fills it up.
    """

    loaded: int
    stored: int


def _row(codes: int, filled: int, bits: int) -> Row:
    """A row of so many codes, filled up to so many."""
    return Row(filled * bits // 8, -(-codes * bits // 8))


def _tiles(artefact: Artefact) -> tuple[int, int, int, int]:
    """Tiles down and across a product, and rows and columns of one."""
    tall, wide = artefact.constants["BLOCK_M"], artefact.constants["BLOCK_N"]
    return -(-artefact.description.m // tall), -(-artefact.description.n // wide), tall, wide


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _with_first(size: int, tile: int) -> int:
    """Rows, or columns, that all tiles load together where those behind the last read the first again."""
    return size + (size > tile and size % tile != 0)


# ------------------------------------------------------------------------------------------------------------ CUDA
# Rows of every operand are filled up to whole chunks of 16 bytes, and a slab of x is 64 bytes a row.
def _cuda_s8(artefact: Artefact) -> Work:
    """Multiplier, bias and correction are four bytes each."""
    d = artefact.description
    row = _row(d.k, _up(d.k, 16), 8)
    down, *_ = _tiles(artefact)
    y_bytes = 4 if artefact.op == "gemm_s8_float" else 1
    done = _product(artefact, INT8, row, row, _up(d.k, 64), 12 * d.n * down, y_bytes)
    return _needing(done, 12 * d.n)


def _cuda_w4a4(artefact: Artefact) -> Work:
    d = artefact.description
    row = _row(d.k, _up(d.k, 32), 4)
    done = _product(artefact, INT4, row, row, _up(d.k, 128), _cuda_scales(artefact), 4)
    return _needing(done, 4 * _groups(d) * d.n + 4 * d.m)


def _cuda_w4a8(artefact: Artefact) -> Work:
    d = artefact.description
    x, w = _row(d.k, _up(d.k, 16), 8), _row(d.k, _up(d.k, 32), 4)
    done = _product(artefact, INT8, x, w, _up(d.k, 64), _cuda_scales(artefact), 4)
    return _needing(done, 4 * _groups(d) * d.n + 4 * d.m)


def _cuda_scales(artefact: Artefact) -> int:
    """A scale a group and column, in arrays of whole tiles of eight columns, and a scale a row."""
    d = artefact.description
    down, across, *_ = _tiles(artefact)
    return 4 * _groups(d) * _up(d.n, 8) * down + 4 * d.m * across


def _cuda_w4a16(artefact: Artefact) -> Work:
    """Weights and scales fill whole tiles. Where K is split, each split writes its sums in float32."""
    d = artefact.description
    down, across, _, wide = _tiles(artefact)
    x, w = _row(d.k, _up(d.k, 8), 16), _row(d.k, _up(d.k, 64), 4)
    scales = 4 * across * wide * down * _cuda_w4a16_groups(d)
    return _split(_product(artefact, FP16, x, w, _up(d.k, 64), scales, 2), d, d.splits, 4 * _groups(d) * d.n)


def _cuda_w4a16_groups(shape: Any) -> int:
    """Groups whose scales are loaded, of all splits together: a split begins one more than it ends, if there is one."""
    groups, slabs = _groups(shape), -(-shape.k // 64)
    if groups == 1:
        return shape.splits
    share, parts, found = -(-slabs // shape.splits), shape.group // 32, 0
    for split in range(shape.splits):
        begin, count = 2 * split * share, 2 * max(0, min(share, slabs - split * share))
        first, last = begin // parts, (begin + count) // parts
        found += min(last, groups - 1) - min(first, groups - 1) + 1
    return found


def _cuda_w4a16_sum(artefact: Artefact) -> Work:
    d = artefact.description
    return _once(d.m * d.n * (4 * d.splits + 2))


# ---------------------------------------------------------------------------------------------------------- Triton
def _triton_s8(artefact: Artefact) -> Work:
    d = artefact.description
    down, *_ = _tiles(artefact)
    row, depth = _row(d.k, d.k, 8), _up(d.k, artefact.constants["BLOCK_K"])
    y_bytes = 1 if getattr(d, "to_codes", True) else 4
    done = _product(artefact, INT8, row, row, depth, 12 * d.n * down, y_bytes)
    return _needing(done, 12 * d.n)


def _triton_w4a8(artefact: Artefact) -> Work:
    """A scale a group and column, a scale a row; where weights have zero points, these and the sums of the codes of a row."""
    d = artefact.description
    down, across, tall, _ = _tiles(artefact)
    depth, groups = _up(d.k, artefact.constants["BLOCK_K"]), _groups(d)
    column, row = groups * (4 + 4 * d.zero + 4 * d.x_zero), 4 + 4 * d.x_zero + 4 * groups * d.zero
    factors = column * d.n * down + row * _with_first(d.m, tall) * across
    x, w = _row(d.k, d.k, 8), _row(d.k, depth, 4)
    return _needing(_product(artefact, INT8, x, w, depth, factors, BYTES[d.dtype]), column * d.n + row * d.m)


def _triton_w4a16(artefact: Artefact) -> Work:
    """A scale and an offset a group and column; where K is split, each split writes its sums in float32."""
    d, splits = artefact.description, _splits(artefact)
    down, _, _, wide = _tiles(artefact)
    depth, groups = _up(d.k, artefact.constants["BLOCK_K"]), _groups(d)
    # A group is no longer than a step, so that one split has all of it, unless it is the whole row.
    factors = 6 * (groups if d.group else splits) * _with_first(d.n, wide) * down
    x, w = _row(d.k, d.k, 16), _row(d.k, depth, 4)
    return _split(_product(artefact, FP16, x, w, depth, factors, 2), d, splits, 6 * groups * d.n)


def _triton_w4a16_sum(artefact: Artefact) -> Work:
    return _once(artefact.description.m * artefact.description.n * (4 * _splits(artefact) + 2))


def _splits(artefact: Artefact) -> int:
    from pyquant.kernels import gemm_w4a16

    d = artefact.description
    return gemm_w4a16.choose_splits(d, gemm_w4a16.choose(d, artefact.target))[0]


def _needing(done: Work, factors: int) -> Work:
    """With factors of so many bytes at least."""
    return replace(done, bytes_minimum=done.bytes_minimum + factors)


def _split(done: Work, shape: Any, splits: int, factors: int) -> Work:
    """Where K is split, each split writes float32 sums instead of results of two bytes."""
    more = shape.m * shape.n * (4 * splits - 2) if splits > 1 else 0
    return _needing(replace(done, bytes=done.bytes + more), factors)


def _conv_s8(artefact: Artefact) -> Work:
    """An implicit product: every tile reads the pixels under its rows, none that lie outside the image."""
    d, tile = artefact.description, artefact.constants
    m, outputs, channels = d.images * d.out[0] * d.out[1], d.outputs // d.groups, d.channels // d.groups
    length = d.kernel[0] * d.kernel[1] * channels
    down, across = -(-m // tile["BLOCK_M"]), -(-outputs // tile["BLOCK_N"])
    steps = (
        d.kernel[0] * d.kernel[1] * _up(channels, tile["BLOCK_K"])
        if tile["BY_TAP"]
        else _up(length, tile["BLOCK_K"])
    )
    done = 2 * down * tile["BLOCK_M"] * across * tile["BLOCK_N"] * d.groups * steps
    high, wide = _taps(d, 0), _taps(d, 1)
    # Rows behind the last read the first pixel's again.
    pixels = d.images * sum(map(len, high)) * sum(map(len, wide)) + (down * tile["BLOCK_M"] - m) * len(
        high[0]
    ) * len(wide[0])
    loaded = (pixels * channels * across + across * tile["BLOCK_N"] * length * down) * d.groups
    results = m * d.outputs * (1 + d.residual)
    least = _seen(d) * d.channels + d.outputs * length + 12 * d.outputs
    moved = loaded + 12 * d.outputs * down + results
    return Work(moved, least + results, done, 2 * m * d.outputs * length, INT8)


def _depthwise_s8(artefact: Artefact) -> Work:
    d, box = artefact.description, artefact.constants
    m, taps = d.images * d.out[0] * d.out[1], d.kernel[0] * d.kernel[1]
    down = -(-m // box["BLOCK_PIXELS"])
    pixels = d.images * sum(map(len, _taps(d, 0))) * sum(map(len, _taps(d, 1)))
    results, factors = m * d.channels * (1 + d.residual), d.channels * (taps + 8)
    moved = pixels * d.channels + down * factors + results
    return _moving(moved, _seen(d) * d.channels + factors + results)


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
    # Rows behind the last have channels too.
    return _moving(moved + 8 * down * across * min(size["BLOCK_ROWS"], d.channels), moved + 8 * d.channels)


def _fake_quantize_backward(artefact: Artefact) -> Work:
    """dy and x once, dx once, and the partial sums of each program."""
    d = artefact.description
    programs = _programs(artefact)
    moved = d.outer * d.channels * d.inner * 3 * BYTES[d.dtype]
    return _moving(moved + 16 * programs * d.channels, moved + 16 * d.channels)


def _fake_quantize_sums(artefact: Artefact) -> Work:
    return _once((8 * _programs(artefact) + 12) * artefact.description.channels)


def _programs(artefact: Artefact) -> int:
    from pyquant.kernels import fake_quantize

    return fake_quantize.choose_backward(artefact.description, artefact.target)[2]


def _quantize_rows(artefact: Artefact) -> Work:
    """Rows too long for registers are read a second time. The description says no number of rows: LARGE."""
    d = artefact.description
    read = LARGE * d.k * BYTES[d.dtype]
    codes = d.k if d.bits == 8 else 4 * -(-d.k // 8)
    written = LARGE * (codes + 4 + 4 * (d.k // d.group if d.group else 0))
    return _moving(read * (1 if artefact.constants["ONCE"] else 2) + written, read + written)


def _row_sums(artefact: Artefact) -> Work:
    d = artefact.description
    return _once(LARGE * (d.k + 4 * d.k // d.group))


def _once(moved: int) -> Work:
    """All of it is needed, and none of it twice."""
    return _moving(moved, moved)


def _moving(moved: int, least: int) -> Work:
    """Nothing that tensor cores have a part in."""
    return Work(moved, least, 0, 0, None)


BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
# Triton's function, or the op of a CUDA kernel -> what a launch of it does.
KERNELS: Mapping[str, Callable[[Artefact], Work]] = {
    "gemm_s8": _cuda_s8,
    "gemm_s8_float": _cuda_s8,
    "gemm_w4a4": _cuda_w4a4,
    "gemm_w4a8": _cuda_w4a8,
    "gemm_w4a16": _cuda_w4a16,
    "gemm_w4a16_sum": _cuda_w4a16_sum,
    "gemm_s8_kernel": _triton_s8,
    "gemm_w4a8_kernel": _triton_w4a8,
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
