"""Instructions on integers, bits and predicates.

A binder takes the block, an instruction's modifiers without its type, the type and the operands, and returns the instruction as a
function of the threads that run it.
"""

from __future__ import annotations

import numpy as np

from .block import Array, Block, Step, Where, expect_operands, only
from .errors import EmulatorError
from .registers import vector
from .source import bits


def _assign(target: Array, compute) -> Step:
    def step(where: Where) -> None:
        np.copyto(target, compute(), where=where)

    return step


def _ufunc(function: np.ufunc, inputs: int):
    """An instruction that numpy has: results modulo 2^width."""

    def bind(block: Block, modifiers: list[str], kind: str, operands: tuple[str, ...]) -> Step:
        only(modifiers)
        expect_operands(operands, inputs + 1)
        sources = [block.registers.read(operand, kind) for operand in operands[1:]]
        target = block.registers.write(operands[0], kind)

        def step(where: Where) -> None:
            function(*sources, out=target, where=where)

        return step

    return bind


def _mov(block: Block, modifiers: list[str], kind: str, operands: tuple[str, ...]) -> Step:
    only(modifiers)
    expect_operands(operands, 2)
    into, out_of = vector(operands[0]), vector(operands[1])
    if len(into) > 1:
        whole = block.registers.read(operands[1], f"b{bits(kind)}")
        part = bits(kind) // len(into)
        targets = [block.registers.write(name, f"b{part}") for name in into]

        def split(where: Where) -> None:
            parts = whole.view(f"u{part // 8}").reshape(block.threads, -1).copy()
            for i, target in enumerate(targets):
                np.copyto(target, parts[:, i], where=where)

        return split
    target = block.registers.write(operands[0], kind)
    if len(out_of) == 1:
        source = block.registers.read(operands[1], kind)
        return _assign(target, lambda: source)
    parts = [block.registers.read(name, f"b{bits(kind) // len(out_of)}") for name in out_of]
    return _assign(target, lambda: np.stack(parts, axis=1).view(target.dtype).reshape(-1))


def _cvta(block: Block, modifiers: list[str], kind: str, operands: tuple[str, ...]) -> Step:
    # Shared addresses stay offsets: generic loads and stores are not known here, so nothing can take one for a global one.
    only(modifiers, "to", "global", "shared")
    return _mov(block, [], kind, operands)


def _multiply(block: Block, modifiers: list[str], kind: str, operands: tuple[str, ...]) -> Step:
    return _multiply_add(block, modifiers, kind, (*operands, "0"))


def _multiply_add(block: Block, modifiers: list[str], kind: str, operands: tuple[str, ...]) -> Step:
    """mul and mad: .lo keeps the low half of the product, .hi the high half, .wide all of it."""
    part = only(modifiers, "lo", "hi", "wide")
    expect_operands(operands, 4)
    read = block.registers.read
    a, b = read(operands[1], kind), read(operands[2], kind)
    width = bits(kind)
    result = f"{kind[0]}{2 * width}" if part == {"wide"} else kind
    c = read(operands[3], result)
    target = block.registers.write(operands[0], result)
    if part == {"hi"}:
        return _assign(target, lambda: _high_half(a, b, width) + c)
    if part not in ({"lo"}, {"wide"}):
        raise EmulatorError("a product needs .lo, .hi or .wide")

    def step(where: Where) -> None:
        np.copyto(target, np.multiply(a, b, dtype=target.dtype) + c, where=where)

    return step


def _high_half(a: Array, b: Array, width: int) -> Array:
    if width < 64:
        wide = np.int64 if a.dtype.kind == "i" else np.uint64
        return ((a.astype(wide) * b.astype(wide)) >> wide(width)).astype(a.dtype)
    product = a.astype(object) * b.astype(object)
    return np.array([(int(p) >> 64) & (2**64 - 1) for p in product], np.uint64).view(a.dtype)


def _divide(remainder: bool):
    """div and rem: the quotient goes toward zero."""

    def bind(block: Block, modifiers: list[str], kind: str, operands: tuple[str, ...]) -> Step:
        only(modifiers)
        expect_operands(operands, 3)
        a, b = (block.registers.read(operand, kind) for operand in operands[1:])
        target = block.registers.write(operands[0], kind)

        def step(where: Where) -> None:
            if not np.all(b, where=where):
                raise EmulatorError("division of integers by zero")
            safe = np.where(b == 0, b.dtype.type(1), b)
            rest = np.fmod(a, safe)
            np.copyto(target, rest if remainder else (a - rest) // safe, where=where)

        return step

    return bind


def _shift(function: np.ufunc):
    """shl and shr: a distance of the width or more leaves zeros (signed: the sign)."""

    def bind(block: Block, modifiers: list[str], kind: str, operands: tuple[str, ...]) -> Step:
        only(modifiers)
        expect_operands(operands, 3)
        a = block.registers.read(operands[1], kind)
        distance = block.registers.read(operands[2], "u32")
        target = block.registers.write(operands[0], kind)
        width = bits(kind)
        if block.registers.constant(operands[2]) and distance[0] < width:
            fixed = distance.astype(a.dtype)

            def step(where: Where) -> None:
                function(a, fixed, out=target, where=where)

            return step

        def shifted() -> Array:
            moved = function(a, np.minimum(distance, width - 1).astype(a.dtype))
            return np.where(distance >= width, a >> (width - 1) if kind[0] == "s" else 0, moved)

        return _assign(target, shifted)

    return bind


def _funnel_shift(block: Block, modifiers: list[str], kind: str, operands: tuple[str, ...]) -> Step:
    """shf: 32 bits out of a pair of registers."""
    way = only(modifiers, "l", "r", "wrap", "clamp")
    expect_operands(operands, 4)
    low, high, distance = (block.registers.read(operand, "u32") for operand in operands[1:])
    target = block.registers.write(operands[0], kind)

    def shifted() -> Array:
        pair = low.astype(np.uint64) | (high.astype(np.uint64) << np.uint64(32))
        by = (distance & 31 if "wrap" in way else np.minimum(distance, 32)).astype(np.uint64)
        return ((pair << by) >> np.uint64(32) if "l" in way else pair >> by).astype(np.uint32)

    return _assign(target, shifted)


def _lop3(block: Block, modifiers: list[str], kind: str, operands: tuple[str, ...]) -> Step:
    """Any function of three bits, by its table."""
    only(modifiers)
    expect_operands(operands, 5)
    a, b, c = (block.registers.read(operand, kind) for operand in operands[1:4])
    table = int(operands[4], 0)
    target = block.registers.write(operands[0], kind)

    def combined() -> Array:
        result = np.zeros_like(a)
        for row in range(8):
            if table >> row & 1:
                result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
        return result

    return _assign(target, combined)


def _prmt(block: Block, modifiers: list[str], kind: str, operands: tuple[str, ...]) -> Step:
    """Four bytes picked out of eight; a selector's fourth bit spreads the byte's sign instead."""
    only(modifiers)
    expect_operands(operands, 4)
    a, b, selector = (block.registers.read(operand, "u32") for operand in operands[1:])
    target = block.registers.write(operands[0], kind)

    def picked() -> Array:
        pool = np.stack([a, b], axis=1).view(np.uint8)
        picks = (selector[:, None] >> np.array([0, 4, 8, 12], np.uint32)) & np.uint32(15)
        chosen = np.take_along_axis(pool, (picks & 7).astype(np.intp), axis=1)
        signs = np.where(chosen & 0x80, np.uint8(0xFF), np.uint8(0))
        return np.where(picks & 8, signs, chosen).astype(np.uint8).view(np.uint32).reshape(-1)

    return _assign(target, picked)


def _bfe(block: Block, modifiers: list[str], kind: str, operands: tuple[str, ...]) -> Step:
    """A field of bits, extended by zeros or by its sign."""
    only(modifiers)
    expect_operands(operands, 4)
    a = block.registers.read(operands[1], kind)
    first, length = (block.registers.read(operand, "u32") for operand in operands[2:])
    target = block.registers.write(operands[0], kind)
    width = bits(kind)

    def field() -> Array:
        code = a.view(f"u{width // 8}").astype(np.uint64)
        start, asked = (np.minimum(x & 0xFF, width).astype(np.int64) for x in (first, length))
        inside = _ones(np.minimum(asked, width - start))
        value = (
            np.where(start < width, code >> np.minimum(start, width - 1).astype(np.uint64), np.uint64(0))
            & inside
        )
        if kind[0] == "s":
            top = np.minimum(start + asked, width) - 1
            negative = (asked > 0) & ((code >> np.maximum(top, 0).astype(np.uint64)) & np.uint64(1) == 1)
            value |= np.where(negative, ~inside, np.uint64(0))
        return value.astype(f"u{width // 8}").view(a.dtype)

    return _assign(target, field)


def _ones(count: Array) -> Array:
    """Words whose ``count`` lowest bits, 0 to 64, are set."""
    some = np.minimum(count, 63).astype(np.uint64)
    return np.where(count >= 64, ~np.uint64(0), (np.uint64(1) << some) - np.uint64(1))


def _bfi(block: Block, modifiers: list[str], kind: str, operands: tuple[str, ...]) -> Step:
    """A field of bits put into a word."""
    only(modifiers)
    expect_operands(operands, 5)
    a, b = (block.registers.read(operand, kind) for operand in operands[1:3])
    first, length = (block.registers.read(operand, "u32") for operand in operands[3:])
    target = block.registers.write(operands[0], kind)
    if bits(kind) != 32:
        raise EmulatorError("bfi of 32 bits is all that is known")

    def put() -> Array:
        start = (first & 0xFF).astype(np.uint64)
        mask = ((np.uint64(1) << np.minimum(length & 0xFF, 32).astype(np.uint64)) - np.uint64(1)) << start
        return ((b.astype(np.uint64) & ~mask) | ((a.astype(np.uint64) << start) & mask)).astype(np.uint32)

    return _assign(target, put)


def _count(function):
    """clz and popc: a count of 32 bits whatever the type."""

    def bind(block: Block, modifiers: list[str], kind: str, operands: tuple[str, ...]) -> Step:
        only(modifiers)
        expect_operands(operands, 2)
        a = block.registers.read(operands[1], kind)
        return _assign(block.registers.write(operands[0], "u32"), lambda: function(a).astype(np.uint32))

    return bind


def _leading_zeros(a: Array) -> Array:
    width = a.dtype.itemsize * 8
    return np.array([width - int(code).bit_length() for code in a])


def _selp(block: Block, modifiers: list[str], kind: str, operands: tuple[str, ...]) -> Step:
    only(modifiers)
    expect_operands(operands, 4)
    a, b = (block.registers.read(operand, kind) for operand in operands[1:3])
    predicate = block.registers.read(operands[3], "pred")
    return _assign(block.registers.write(operands[0], kind), lambda: np.where(predicate, a, b))


def _dp4a(block: Block, modifiers: list[str], kind: str, operands: tuple[str, ...]) -> Step:
    """Four products of bytes and a sum: ``dp4a.atype.btype``."""
    expect_operands(operands, 4)
    kinds = [*modifiers, kind]
    only(kinds, "s32", "u32")
    total = "s32" if "s32" in kinds else "u32"
    forms = [np.int8 if given == "s32" else np.uint8 for given in kinds]
    a, b = (block.registers.read(operand, "u32") for operand in operands[1:3])
    c = block.registers.read(operands[3], total)
    target = block.registers.write(operands[0], total)

    def dot() -> Array:
        left, right = (x.view(form).astype(np.int64) for x, form in zip((a, b), forms, strict=True))
        return ((left * right).reshape(-1, 4).sum(axis=1) + c).astype(c.dtype)

    return _assign(target, dot)


_FUNCTIONS = {
    "add": (np.add, 2),
    "sub": (np.subtract, 2),
    "min": (np.minimum, 2),
    "max": (np.maximum, 2),
    "and": (np.bitwise_and, 2),
    "or": (np.bitwise_or, 2),
    "xor": (np.bitwise_xor, 2),
    "not": (np.invert, 1),
    "neg": (np.negative, 1),
    "abs": (np.absolute, 1),
}
INTEGERS = {op: _ufunc(*function) for op, function in _FUNCTIONS.items()} | {
    "mul": _multiply,
    "mad": _multiply_add,
    "div": _divide(remainder=False),
    "rem": _divide(remainder=True),
    "shl": _shift(np.left_shift),
    "shr": _shift(np.right_shift),
    "shf": _funnel_shift,
    "lop3": _lop3,
    "prmt": _prmt,
    "bfe": _bfe,
    "bfi": _bfi,
    "clz": _count(_leading_zeros),
    "popc": _count(np.bitwise_count),
    "dp4a": _dp4a,
    "cvta": _cvta,
}
# Moves of bits, whatever their type.
MOVES = {"mov": _mov, "selp": _selp}
