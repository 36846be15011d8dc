"""Instructions that move data between registers, shared and global memory."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from .block import Array, Block, Step, Where, expect_operands, only
from .errors import EmulatorError
from .registers import vector
from .source import bits

# What bears on speed or on the order seen by other blocks, and not on what one block may see of itself.
_HINTS = (
    "nc",
    "ca",
    "cg",
    "cs",
    "lu",
    "cv",
    "wb",
    "wt",
    "weak",
    "relaxed",
    "acquire",
    "release",
    "acq_rel",
    "volatile",
)
_SCOPES = ("cta", "gpu", "sys")
_CACHE = re.compile(r"L[12]::(evict_\w+|no_allocate|(64|128|256)B|cache_hint)")


def _space(modifiers: list[str], *more: str) -> str:
    """The state space of an access; every other modifier has to be known."""
    spaces = [
        name.removesuffix("::cta")
        for name in modifiers
        if name in ("global", "shared", "shared::cta", "param")
    ]
    rest = [name for name in modifiers if not _CACHE.fullmatch(name)]
    only(rest, "global", "shared", "shared::cta", "param", *_HINTS, *_SCOPES, *more)
    if len(spaces) != 1:
        raise EmulatorError("an access needs one state space: generic addresses are not known")
    return spaces[0]


def _width(modifiers: list[str], kind: str, parts: list[str]) -> int:
    written = [int(name[1:]) for name in modifiers if re.fullmatch(r"v[248]", name)]
    if (written or [1])[0] != len(parts):
        raise EmulatorError(f"{len(parts)} registers for a vector of {(written or [1])[0]}")
    return len(parts) * bits(kind) // 8


def _addresses(block: Block, operand: str, space: str) -> Callable[[], Array]:
    """The address operand, for all lanes: int64 in shared memory, uint64 in global memory."""
    base, offset = block.registers.address(operand)
    if space == "shared":
        return lambda: base.astype(np.int64) + offset
    if base.dtype != np.uint64:
        raise EmulatorError(f"{operand} of 32 bits is no global address")
    step = np.uint64(offset & (2**64 - 1))
    return lambda: base + step


def _load(block: Block, modifiers: list[str], kind: str, operands: tuple[str, ...]) -> Step:
    parts = vector(operands[0])
    space = _space(modifiers, "v2", "v4", "v8")
    width = _width(modifiers, kind, parts)
    targets = [block.registers.write(name, kind, wider=True) for name in parts]
    if space == "param":
        return _load_parameter(block, kind, operands, targets[0])
    addresses = _addresses(block, operands[1], space)
    element = np.dtype(f"{'i' if kind[0] == 's' else 'u'}{bits(kind) // 8}")
    meter = block.bank_meter(width) if space == "shared" else None
    narrow = [target.view(f"{element.kind}{target.dtype.itemsize}") for target in targets]

    def step(where: Where) -> None:
        lanes = block.lanes(where)
        at = addresses()
        if meter is not None:
            meter(at, where)
            rows = block.shared.read(lanes, at[lanes], width)
        else:
            rows = block.memory.load(at[lanes], width)
        values = rows.view(element)
        for i, target in enumerate(narrow):
            target[lanes] = values[:, i]

    return step


def _load_parameter(block: Block, kind: str, operands: tuple[str, ...], target: Array) -> Step:
    name = operands[1].strip("[] ")
    if name not in dict(block.registers.kernel.parameters):
        raise EmulatorError(f"no parameter {name!r}: offsets into one are not known")
    width = bits(kind)
    form = "i" if kind[0] == "s" else "u"
    register = target.view(f"{form}{target.dtype.itemsize}")

    def step(where: Where) -> None:
        code = np.array(block.parameters[name] & ((1 << width) - 1), f"u{width // 8}")
        np.copyto(register, code.view(f"{form}{width // 8}"), where=where)

    return step


def _store(block: Block, modifiers: list[str], kind: str, operands: tuple[str, ...]) -> Step:
    parts = vector(operands[1])
    space = _space(modifiers, "v2", "v4", "v8")
    width = _width(modifiers, kind, parts)
    addresses = _addresses(block, operands[0], space)
    element = np.dtype(f"u{bits(kind) // 8}")
    sources = [block.registers.read(name, kind, wider=True) for name in parts]
    meter = block.bank_meter(width) if space == "shared" else None
    word = f"u{min(width, 8)}"

    def step(where: Where) -> None:
        lanes = block.lanes(where)
        at = addresses()
        values = np.empty((lanes.size, len(sources)), element)
        for i, source in enumerate(sources):
            values[:, i] = source[lanes].view(element)
        rows = values.view(word)
        if meter is not None:
            meter(at, where)
            block.shared.write(lanes, at[lanes], width, rows)
        else:
            block.memory.store(at[lanes], width, rows, block.number * block.threads + lanes + 1)

    return step


def _copy(block: Block, modifiers: list[str], kind: str, operands: tuple[str, ...]) -> Step:
    """The cp.async family: copies, commits and waits. ``kind`` is the last modifier, whatever it is."""
    names = [*modifiers, kind]
    if names == ["async", "commit_group"]:
        return lambda where: block.copies.commit(block.lanes(where))
    if names == ["async", "wait_all"]:
        return lambda where: block.copies.wait(block.lanes(where), None)
    if names == ["async", "wait_group"]:
        pending = int(operands[0])
        return lambda where: block.copies.wait(block.lanes(where), pending)
    plain = [name for name in names if not _CACHE.fullmatch(name)]
    if (
        plain[:1] != ["async"]
        or plain[1] not in ("ca", "cg")
        or plain[2] not in ("shared", "shared::cta")
        or plain[3:] != ["global"]
    ):
        raise EmulatorError(f"unknown form cp.{'.'.join(names)}")
    return _copy_async(block, plain[1], operands)


def _copy_async(block: Block, cached: str, operands: tuple[str, ...]) -> Step:
    width = int(operands[2], 0)
    if width not in ((16,) if cached == "cg" else (4, 8, 16)):
        raise EmulatorError(f"cp.async.{cached} copies no {width} bytes at once")
    into = _addresses(block, operands[0], "shared")
    out_of = _addresses(block, operands[1], "global")
    size = block.registers.read(operands[3], "u32") if len(operands) == 4 else None
    meter = block.bank_meter(width)
    word = np.dtype(f"u{min(width, 8)}")

    def step(where: Where) -> None:
        lanes = block.lanes(where)
        target, source = into(), out_of()
        meter(target, where)
        rows = np.zeros((lanes.size, max(width // 8, 1)), word)
        given = np.full(lanes.size, width) if size is None else size[lanes]
        if (given > width).any():
            raise EmulatorError(f"cp.async of {int(given.max())} bytes into {width}")
        if int(np.bitwise_or.reduce(source[lanes])) & (width - 1):
            raise EmulatorError(f"cp.async of {width} bytes from an address that is not aligned")
        for part in np.unique(given[given > 0]):
            chosen = np.flatnonzero(given == part)
            rows[chosen] = _padded(block, source[lanes[chosen]], int(part), width).view(word)
        block.copies.issue(lanes, target[lanes], width, rows)

    return step


def _padded(block: Block, addresses: Array, part: int, width: int) -> Array:
    """``[n, width]`` bytes of which the first ``part`` are read, the others 0."""
    result = np.zeros((addresses.size, width), np.uint8)
    unit = part & -part
    for first in range(0, part, unit):
        rows = block.memory.load(addresses + np.uint64(first), unit)
        result[:, first : first + unit] = rows.view(np.uint8)
    return result


def _ldmatrix(block: Block, modifiers: list[str], kind: str, operands: tuple[str, ...]) -> Step:
    """8 by 8 matrices of 16-bit elements: lane 8i + r points at row r of matrix i, and gets two elements of row lane / 4."""
    given = only(modifiers, "sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared::cta")
    targets = [block.registers.write(name, "b32") for name in vector(operands[0])]
    if kind != "b16" or f"x{len(targets)}" not in given or "m8n8" not in given:
        raise EmulatorError("unknown form of ldmatrix")
    addresses = _addresses(block, operands[1], "shared")
    meter = block.bank_meter(16)
    count = 8 * len(targets)
    asked = np.arange(block.threads) % 32 < count

    def step(where: Where) -> None:
        warps = block.whole_warps(where, "ldmatrix")
        at = addresses()
        meter(at, asked if where is True else asked & where)
        lanes = (warps[:, None] * 32 + np.arange(count)).reshape(-1)
        rows = block.shared.read(lanes, at[lanes], 16)
        tiles = rows.view(np.uint16).reshape(warps.size, len(targets), 8, 8)
        if "trans" in given:
            tiles = np.ascontiguousarray(tiles.swapaxes(2, 3))
        words = tiles.view(np.uint32).reshape(warps.size, len(targets), 32)
        for i, target in enumerate(targets):
            target.reshape(-1, 32)[warps] = words[:, i]

    return step


_ATOMIC: dict[str, Callable[..., np.generic]] = {
    "add": lambda old, x: old + x,
    "min": min,
    "max": max,
    "and": lambda old, x: old & x,
    "or": lambda old, x: old | x,
    "xor": lambda old, x: old ^ x,
    "exch": lambda old, x: x,
    "inc": lambda old, x: old.dtype.type(0) if old >= x else old + old.dtype.type(1),
    "cas": lambda old, expected, x: x if old == expected else old,
}


def _atomic(returns: bool):
    """atom and red on global memory: one lane after the other, in random order."""

    def bind(block: Block, modifiers: list[str], kind: str, operands: tuple[str, ...]) -> Step:
        names = [name for name in modifiers if name in _ATOMIC]
        if _space(modifiers, *_ATOMIC) != "global" or len(names) != 1 or kind not in _ATOMIC_KINDS:
            raise EmulatorError("unknown form of an atomic instruction")
        if kind[0] == "f" and names[0] not in ("add", "exch"):
            raise EmulatorError(f"no atomic .{names[0]} of .{kind}")
        change = _ATOMIC[names[0]]
        sources = operands[1:] if returns else operands
        expect_operands(sources, 3 if names[0] == "cas" else 2)
        addresses = _addresses(block, sources[0], "global")
        values = [block.registers.read(operand, kind) for operand in sources[1:]]
        target = block.registers.write(operands[0], kind) if returns else None
        width = bits(kind) // 8

        def step(where: Where) -> None:
            at = addresses()
            for lane in block.rng.permutation(block.lanes(where)):
                place = at[lane : lane + 1]
                old = block.memory.load(place, width).reshape(-1).view(values[0].dtype)
                new = np.array([change(old[0], *(value[lane] for value in values))], old.dtype)
                block.memory.store(place, width, new.view(f"u{width}").reshape(1, 1))
                if target is not None:
                    target[lane] = old[0]

        return step

    return bind


_ATOMIC_KINDS = ("u32", "s32", "b32", "u64", "s64", "b64", "f32")


def _policy(block: Block, modifiers: list[str], kind: str, operands: tuple[str, ...]) -> Step:
    """createpolicy: a hint for the cache, which no result may depend on."""
    target = block.registers.write(operands[0], kind)
    return lambda where: np.copyto(target, np.uint64(0), where=where)


TRANSFERS = {
    "ld": _load,
    "st": _store,
    "cp": _copy,
    "ldmatrix": _ldmatrix,
    "atom": _atomic(returns=True),
    "red": _atomic(returns=False),
    "createpolicy": _policy,
}
