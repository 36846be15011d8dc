"""cvt: between types, with the rounding that is written."""

from __future__ import annotations

import numpy as np

from . import numbers
from .block import Array, Block, Step, expect_operands, only
from .errors import EmulatorError
from .registers import dtype_of
from .source import bits

_WHOLE = {"rni": np.rint, "rmi": np.floor, "rpi": np.ceil, "rzi": np.trunc}


def _floating(kind: str) -> bool:
    return kind[0] == "f" or kind.startswith("bf16")


def convert(block: Block, modifiers: list[str], kind: str, operands: tuple[str, ...]) -> Step:
    """``cvt[.rounding][.sat].to.from d, a``: ``kind`` is the type converted from, the last modifier the one to."""
    to = modifiers[-1]
    given = only(modifiers[:-1], "rn", "rz", "rni", "rmi", "rpi", "rzi", "sat")
    if to in ("f16x2", "bf16x2"):
        return _pack(block, to, kind, given, operands)
    expect_operands(operands, 2)
    source = block.registers.read(operands[1], kind, wider=True)
    target = block.registers.write(operands[0], to, wider=True)
    if _floating(kind):
        compute = _from_float(kind, to, given, source)
    elif _floating(to):
        compute = _integer_to_float(to, given, source)
    else:
        compute = _integer_to_integer(to, given, source)

    def step(where) -> None:
        np.copyto(target, compute(), where=where, casting="unsafe")

    return step


def _pack(block: Block, to: str, kind: str, given: set[str], operands: tuple[str, ...]) -> Step:
    """Two float32 numbers to a pair: the first becomes the high half."""
    expect_operands(operands, 3)
    if kind != "f32" or given not in ({"rn"}, {"rz"}) or (given == {"rz"} and to == "f16x2"):
        raise EmulatorError(f"unknown conversion of two .{kind} to .{to}")
    high, low = (block.registers.read(operand, "f32") for operand in operands[1:])
    target = block.registers.write(operands[0], to)
    narrow = _narrow(to[:-2], given)

    def step(where) -> None:
        pair = np.stack([narrow(low), narrow(high)], axis=1)
        np.copyto(target, pair.view(np.uint32).reshape(-1), where=where)

    return step


def _narrow(to: str, given: set[str]):
    """float32 to 16 bits."""
    if to == "bf16":
        return numbers.truncated_bf16 if "rz" in given else numbers.to_bf16
    if "rz" in given:
        raise EmulatorError("cvt.rz to .f16 is not known")
    return lambda x: x.astype(np.float16)


def _from_float(kind: str, to: str, given: set[str], source: Array):
    wide = (lambda: numbers.from_bf16(source)) if kind == "bf16" else (lambda: source)
    whole = [_WHOLE[name] for name in given if name in _WHOLE]
    if not _floating(to):
        if len(whole) != 1 or "sat" in given:
            raise EmulatorError(f"a conversion of .{kind} to .{to} needs one of {sorted(_WHOLE)}")
        return lambda: numbers.to_integer(whole[0](wide()), dtype_of(to))
    if whole:
        if to != kind or "sat" in given:
            raise EmulatorError(f"unknown conversion of .{kind} to .{to}")
        return lambda: whole[0](wide())
    if "sat" in given:
        raise EmulatorError("cvt.sat of floating point is not known")
    if bits(to) < bits(kind):
        if not given or kind != "f32":
            raise EmulatorError(
                f"a conversion of .{kind} to .{to} needs its rounding, and is known from .f32"
            )
        narrow = _narrow(to, given)
        return lambda: narrow(wide())
    return wide


def _integer_to_float(to: str, given: set[str], source: Array):
    if given != {"rn"}:
        raise EmulatorError(f"a conversion of an integer to .{to} needs .rn")
    if to == "bf16":
        raise EmulatorError("cvt of integers to .bf16 is not known")
    if to == "f16":  # by way of float64, which holds every 32-bit integer: one rounding
        if source.dtype.itemsize == 8:
            raise EmulatorError("cvt of 64-bit integers to .f16 is not known")
        return lambda: source.astype(np.float64).astype(np.float16)
    return lambda: source.astype(dtype_of(to))


def _integer_to_integer(to: str, given: set[str], source: Array):
    if given - {"sat"}:
        raise EmulatorError("integers convert without a rounding")
    kind = dtype_of(to)
    if "sat" not in given:
        return lambda: source.astype(kind)
    limits = np.iinfo(kind)

    def clamped() -> Array:
        low = max(limits.min, np.iinfo(source.dtype).min)
        high = min(limits.max, np.iinfo(source.dtype).max)
        return np.clip(source, low, high).astype(kind)

    return clamped


CONVERSIONS = {"cvt": convert}
