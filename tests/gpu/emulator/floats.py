"""Instructions on floating point: each rounds once, to nearest even, and keeps subnormal numbers unless .ftz says otherwise.

Approximate ones (.approx, .full) return any result within the error that the PTX manual allows, drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import numbers
from .block import Array, Block, Step, Where, expect_operands, only
from .errors import EmulatorError

Compute = Callable[..., Array]


def _flushed(x: Array) -> Array:
    tiny = np.abs(x) < np.finfo(np.float32).tiny
    return np.where(tiny, np.copysign(np.float32(0), x), x)


def _operands(block: Block, kind: str, operands: tuple[str, ...], count: int) -> tuple[list[Array], Array]:
    """Sources and target; a packed pair is read as twice as many numbers."""
    expect_operands(operands, count + 1)
    arrays = [block.registers.read(operand, kind) for operand in operands[1:]]
    target = block.registers.write(operands[0], kind)
    if kind == "f16x2":
        arrays = [array.view(np.float16) for array in arrays]
    elif kind == "bf16x2":
        arrays = [array.view(np.uint16) for array in arrays]
    return arrays, target


def _rounded(compute: Compute, count: int, *modifiers_known: str, bf16: Compute | None = None):
    """An instruction whose result numpy rounds correctly."""

    def bind(block: Block, modifiers: list[str], kind: str, operands: tuple[str, ...]) -> Step:
        flush = "ftz" in only(modifiers, "rn", "ftz", *modifiers_known)
        sources, target = _operands(block, kind, operands, count)
        function = compute
        if kind.startswith("bf16"):
            if bf16 is None:
                raise EmulatorError(f"unknown type .{kind} of this instruction")
            function = bf16

        def step(where: Where) -> None:
            inputs = [_flushed(x) for x in sources] if flush else sources
            result = function(*inputs)
            np.copyto(target, (_flushed(result) if flush else result).view(target.dtype), where=where)

        if flush and kind != "f32":
            raise EmulatorError(f"unknown modifier .ftz of .{kind}")
        return step

    return bind


def _fma(block: Block, modifiers: list[str], kind: str, operands: tuple[str, ...]) -> Step:
    function = {"f32": numbers.fma32, "f16": numbers.fma16, "f16x2": numbers.fma16}.get(kind)
    if kind.startswith("bf16"):
        function = numbers.fma_bf16
    if function is None:
        raise EmulatorError(f"fma of .{kind} is not known")
    return _rounded(function, 3, bf16=numbers.fma_bf16)(block, modifiers, kind, operands)


def _as_bf16(compute: Compute) -> Compute:
    # One operation in float32 and one more rounding: 24 bits are enough for 8.
    return lambda *x: numbers.to_bf16(compute(*(numbers.from_bf16(code) for code in x)))


def _divide(block: Block, modifiers: list[str], kind: str, operands: tuple[str, ...]) -> Step:
    if "approx" in modifiers or "full" in modifiers:
        return _approximate(lambda a, b: a / b, 2, 2)(block, modifiers, kind, operands)
    if "rn" not in modifiers:
        raise EmulatorError("a division needs .rn, .full or .approx")
    return _rounded(np.divide, 2)(block, modifiers, kind, operands)


def _unary(exact: Compute, ulps: int):
    """rcp, sqrt: .rn or .approx."""

    def bind(block: Block, modifiers: list[str], kind: str, operands: tuple[str, ...]) -> Step:
        if "approx" in modifiers:
            return _approximate(exact, 1, ulps)(block, modifiers, kind, operands)
        return _rounded(exact, 1)(block, modifiers, kind, operands)

    return bind


def _approximate(exact: Compute, count: int, ulps: int):
    def bind(block: Block, modifiers: list[str], kind: str, operands: tuple[str, ...]) -> Step:
        given = only(modifiers, "approx", "full", "ftz")
        if kind != "f32" or not given & {"approx", "full"}:
            raise EmulatorError(f"this instruction is known as .approx.f32 only, not as .{kind}")
        sources, target = _operands(block, kind, operands, count)

        def step(where: Where) -> None:
            inputs = [_flushed(x) if "ftz" in given else x for x in sources]
            result = numbers.within_ulps(exact(*(x.astype(np.float64) for x in inputs)), ulps, block.rng)
            np.copyto(target, _flushed(result) if "ftz" in given else result, where=where)

        return step

    return bind


def _sign(mask_of: Callable[[int], int], change: np.ufunc):
    """neg and abs: the sign bit and nothing else."""

    def bind(block: Block, modifiers: list[str], kind: str, operands: tuple[str, ...]) -> Step:
        only(modifiers)
        width = 16 if kind in ("f16", "bf16", "f16x2", "bf16x2") else int(kind[1:])
        sources, target = _operands(block, kind, operands, 1)
        codes = np.dtype(f"u{width // 8}")
        source = sources[0].view(codes)
        mask = codes.type(mask_of(width))
        return lambda where: np.copyto(target, change(source, mask).view(target.dtype), where=where)

    return bind


_ORDERED = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}


def _comparison(name: str, kind: str) -> Compute:
    floating = kind[0] == "f" or kind == "bf16"
    if name in ("lo", "ls", "hi", "hs") and kind[0] != "u":
        raise EmulatorError(f"comparison .{name} of .{kind}")
    if kind == "bf16":
        inner = _comparison(name, "f32")
        return lambda a, b: inner(numbers.from_bf16(a), numbers.from_bf16(b))
    if floating:
        if name == "num":
            return lambda a, b: ~(np.isnan(a) | np.isnan(b))
        if name == "nan":
            return lambda a, b: np.isnan(a) | np.isnan(b)
        if name == "ne":  # numpy's is true of NaN, PTX's is not
            return lambda a, b: (a != b) & ~(np.isnan(a) | np.isnan(b))
        if name.endswith("u") and name[:-1] in _ORDERED:
            ordered = _ORDERED[name[:-1]]
            return lambda a, b: ordered(a, b) | np.isnan(a) | np.isnan(b)
    if name not in _ORDERED:
        raise EmulatorError(f"unknown comparison .{name} of .{kind}")
    return _ORDERED[name]


def _setp(block: Block, modifiers: list[str], kind: str, operands: tuple[str, ...]) -> Step:
    """``setp.cmp[.bool].type p[|q], a, b[, [!]c]``."""
    joins = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
    name, *rest = modifiers
    compare = _comparison(name, kind)
    join = joins.get(rest[0]) if rest else None
    if len(rest) > 1 or (rest and join is None):
        raise EmulatorError(f"unknown modifier .{rest[-1]}")
    expect_operands(operands, 3 if join is None else 4)
    a, b = (block.registers.read(operand, kind) for operand in operands[1:3])
    targets = [block.registers.write(name.strip(), "pred") for name in operands[0].split("|")]
    inverted = join is not None and operands[3].startswith("!")
    c = block.registers.read(operands[3].lstrip("!"), "pred") if join is not None else None

    def step(where: Where) -> None:
        result = compare(a, b)
        other = ~result
        if join is not None:
            also = ~c if inverted else c
            result, other = join(result, also), join(other, also)
        for target, value in zip(targets, (result, other), strict=False):
            np.copyto(target, value, where=where)

    return step


COMPARISONS = {"setp": _setp}
FLOATS = {
    "add": _rounded(np.add, 2),
    "sub": _rounded(np.subtract, 2),
    "mul": _rounded(np.multiply, 2),
    "fma": _fma,
    "mad": _fma,
    "div": _divide,
    "min": _rounded(numbers.least, 2, bf16=_as_bf16(numbers.least)),
    "max": _rounded(numbers.greatest, 2, bf16=_as_bf16(numbers.greatest)),
    "rcp": _unary(lambda x: x.dtype.type(1) / x, 1),
    "sqrt": _unary(np.sqrt, 2),
    "rsqrt": _approximate(lambda x: 1.0 / np.sqrt(x), 1, 2),
    "ex2": _approximate(np.exp2, 1, 2),
    "lg2": _approximate(np.log2, 1, 2),
    "neg": _sign(lambda width: 1 << (width - 1), np.bitwise_xor),
    "abs": _sign(lambda width: (1 << (width - 1)) - 1, np.bitwise_and),
}
