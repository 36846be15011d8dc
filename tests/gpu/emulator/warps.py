"""Instructions that a warp's 32 threads run together: matrix products, shuffles, votes."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from . import numbers
from .block import Array, Block, Step, Where, expect_operands, only
from .errors import EmulatorError
from .registers import vector

_SHAPE = re.compile(r"m16n8k(\d+)")
_INT32 = np.iinfo(np.int32)


def _bytes(words: Array, form: type) -> Array:
    return words.view(form)


def _nibbles(words: Array, signed: bool) -> Array:
    """Eight 4-bit codes a word, the lowest first."""
    pairs = words.view(np.uint8)
    codes = np.stack([pairs & 15, pairs >> 4], axis=1).reshape(-1).astype(np.int8)
    return np.where(codes > 7, codes - 16, codes) if signed else codes


# Type of the factors -> (numbers in a register, how they are read, the form that holds products and their sums exactly).
_FACTORS: dict[str, tuple[int, Callable[[Array], Array], type]] = {
    "s8": (4, lambda words: words.view(np.int8), np.float32),
    "u8": (4, lambda words: words.view(np.uint8), np.float32),
    "s4": (8, lambda words: _nibbles(words, signed=True), np.float32),
    "u4": (8, lambda words: _nibbles(words, signed=False), np.float32),
    "f16": (2, lambda words: words.view(np.float16), np.float64),
    "bf16": (2, lambda words: numbers.from_bf16(words.view(np.uint16)), np.float64),
}


def _fragment(words: list[Array], kind: str) -> Array:
    """``[warps, 8, k]``: the rows of a factor, out of registers that hold 16 bytes' width of K each.

    Lane ``4 g + q`` has row ``g``; register ``i`` has its numbers ``q`` of four from K's ``i``-th part.
    """
    count, values, form = _FACTORS[kind]
    parts = [values(word).astype(form).reshape(-1, 8, 4 * count) for word in words]
    return np.concatenate(parts, axis=2)


def _mma(block: Block, modifiers: list[str], kind: str, operands: tuple[str, ...]) -> Step:
    """``mma.sync.aligned.m16n8kK.row.col[.satfinite].d.a.b.c``: D = A B + C on tensor cores.

    Sums of integers are exact, modulo 2^32 or saturated. Those of floats are promised to float32 precision in no promised order,
    and chips truncate: here the exact sum, then one truncation.
    """
    expect_operands(operands, 4)
    *given, to, left, right = modifiers
    saturate = "satfinite" in only(
        [name for name in given if not _SHAPE.fullmatch(name)], "sync", "aligned", "row", "col", "satfinite"
    )
    shapes = [match for match in map(_SHAPE.fullmatch, given) if match]
    if (
        "sync" not in given
        or given.index("row") > given.index("col")
        or len(shapes) != 1
        or left not in _FACTORS
    ):
        raise EmulatorError("unknown form of mma")
    floating = left in ("f16", "bf16")
    total = "f32" if floating else "s32"
    if (to, kind) != (total, total) or right not in _FACTORS or (floating and (right != left or saturate)):
        raise EmulatorError(f"unknown types of mma: .{to}.{left}.{right}.{kind}")
    if _FACTORS[left][0] != _FACTORS[right][0]:
        raise EmulatorError(f"mma of .{left} and .{right}")
    parts = int(shapes[0][1]) // (4 * _FACTORS[left][0])
    a, b = ([block.registers.read(name, "b32") for name in vector(operands[i])] for i in (1, 2))
    c = [block.registers.read(name, total) for name in vector(operands[3])]
    d = [block.registers.write(name, total) for name in vector(operands[0])]
    if parts not in (1, 2) or (len(a), len(b), len(c), len(d)) != (2 * parts, parts, 4, 4):
        raise EmulatorError("registers and shape of mma do not agree")

    def step(where: Where) -> None:
        block.whole_warps(where, "mma")
        columns = _fragment(b, right).swapaxes(1, 2)
        # Rows 0 to 7 lie in a's even registers and c's first two, rows 8 to 15 in the others.
        products = [
            np.matmul(_fragment(a[half::2], left), columns).reshape(block.threads, 2) for half in (0, 1)
        ]
        sums = [_accumulate(products[i // 2][:, i % 2], c[i], floating, saturate) for i in range(4)]
        for target, value in zip(d, sums, strict=True):
            np.copyto(target, value, where=where)

    return step


def _accumulate(product: Array, addend: Array, floating: bool, saturate: bool) -> Array:
    if floating:
        return numbers.toward_zero(product + addend.astype(np.float64))
    total = product.astype(np.int64) + addend
    return (np.clip(total, _INT32.min, _INT32.max) if saturate else total).astype(np.int32)


def _all_named(block: Block, operand: str, where: Where, op: str) -> None:
    """A member mask has to name the whole warp, and the whole warp has to be there."""
    block.whole_warps(where, op)
    mask = block.registers.read(operand, "b32")
    if not np.all(mask == np.uint32(0xFFFFFFFF), where=where):
        raise EmulatorError(f"{op} with a mask of less than the warp is not known")


def _shfl(block: Block, modifiers: list[str], kind: str, operands: tuple[str, ...]) -> Step:
    """``shfl.sync.mode.b32 d[|p], a, b, c, mask``: a register of another lane, as far as the segment in ``c`` reaches."""
    mode = only(modifiers, "sync", "idx", "up", "down", "bfly") - {"sync"}
    expect_operands(operands, 5)
    if "sync" not in modifiers or len(mode) != 1 or kind != "b32":
        raise EmulatorError("unknown form of shfl")
    names = [name.strip() for name in operands[0].split("|")]
    source = block.registers.read(operands[1], kind)
    amount, clamp = (block.registers.read(operand, "u32") for operand in operands[2:4])
    target = block.registers.write(names[0], kind)
    inside = block.registers.write(names[1], "pred") if len(names) > 1 else None
    lane = np.arange(block.threads, dtype=np.int64) % 32
    base = np.arange(block.threads, dtype=np.int64) - lane

    def step(where: Where) -> None:
        _all_named(block, operands[4], where, "shfl")
        by = (amount & 31).astype(np.int64)
        segment = ((clamp >> 8) & 31).astype(np.int64)
        bound = (clamp & 31).astype(np.int64)
        first, last = lane & segment, (lane & segment) | (bound & ~segment)
        moves = {"up": lane - by, "down": lane + by, "bfly": lane ^ by, "idx": first | (by & ~segment)}
        other = moves[next(iter(mode))]
        valid = other >= last if "up" in mode else other <= last
        np.copyto(target, source[base + np.where(valid, other, lane)], where=where)
        if inside is not None:
            np.copyto(inside, valid, where=where)

    return step


def _vote(block: Block, modifiers: list[str], kind: str, operands: tuple[str, ...]) -> Step:
    """``vote.sync.{ballot.b32, any.pred, all.pred, uni.pred} d, [!]a, mask``."""
    mode = only(modifiers, "sync", "ballot", "any", "all", "uni") - {"sync"}
    expect_operands(operands, 3)
    if len(mode) != 1 or (mode == {"ballot"}) != (kind == "b32"):
        raise EmulatorError("unknown form of vote")
    source = block.registers.read(operands[1].lstrip("!"), "pred")
    target = block.registers.write(operands[0], kind)
    negated = operands[1].startswith("!")

    def step(where: Where) -> None:
        _all_named(block, operands[2], where, "vote")
        votes = (source ^ negated).reshape(-1, 32)
        if mode == {"ballot"}:
            result = np.packbits(votes, axis=1, bitorder="little").view(np.uint32)[:, 0]
        else:
            every, some = votes.all(axis=1), votes.any(axis=1)
            result = {"all": every, "any": some, "uni": every | ~some}[next(iter(mode))]
        np.copyto(target, np.repeat(result, 32), where=where)

    return step


def _redux(block: Block, modifiers: list[str], kind: str, operands: tuple[str, ...]) -> Step:
    """``redux.sync.op.type d, a, mask``: one value out of a warp's 32."""
    mode = only(modifiers, "sync", "add", "min", "max", "and", "or", "xor") - {"sync"}
    expect_operands(operands, 3)
    reduce = {
        "add": np.add,
        "min": np.minimum,
        "max": np.maximum,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }
    source = block.registers.read(operands[1], kind)
    target = block.registers.write(operands[0], kind)
    function = reduce[next(iter(mode))]

    def step(where: Where) -> None:
        _all_named(block, operands[2], where, "redux")
        rows = function.reduce(source.reshape(-1, 32), axis=1, dtype=source.dtype)
        np.copyto(target, np.repeat(rows, 32), where=where)

    return step


def warp_barrier(block: Block, operands: tuple[str, ...]) -> Step:
    """``bar.warp.sync mask``: what the warp's threads wrote, they may now read of each other."""

    def step(where: Where) -> None:
        _all_named(block, operands[0], where, "bar.warp.sync")
        block.shared.warp_barrier(block.whole_warps(where, "bar.warp.sync"))

    return step


WARPS = {"mma": _mma, "shfl": _shfl, "vote": _vote, "redux": _redux}
