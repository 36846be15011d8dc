"""PTX text, read into instructions: what an assembler's first pass knows.

Every statement keeps the number of its line, so that a report points into the text that the compiler wrote. Anything that is not
understood is refused: a form skipped here would be arithmetic lost.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from .errors import EmulatorError

_WIDTHS = {"pred": 1, "f16": 16, "bf16": 16, "f16x2": 32, "bf16x2": 32}
# A label, a bracket of a block, or a statement up to its semicolon (whose own braces hold operands).
_STATEMENT = re.compile(r"\s*(?:([$%\w]+)\s*:(?!:)|(\{)|(\})|((?:[^;{}]|\{[^;{}]*\})+);)")
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")
_SHARED = re.compile(r"(\.extern\s+)?\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d*)\]")
_PARAMETER = re.compile(r"\.param\s+\.(\w+)\s+(?:\.ptr\s+(?:\.\w+\s+)?(?:\.align\s+\d+\s+)?)?([\w$]+)$")
_IGNORED = (".pragma",)


@lru_cache(maxsize=64)
def bits(kind: str) -> int:
    """Width of a PTX type: ``s32`` 32, ``f16x2`` 32, ``pred`` 1."""
    if kind in _WIDTHS:
        return _WIDTHS[kind]
    match = re.fullmatch(r"[usbf](8|16|32|64|128)", kind)
    if match is None:
        raise EmulatorError(f"unknown type .{kind}")
    return int(match[1])


@dataclass(frozen=True)
class Instruction:
    """One instruction: ``@guard op operands;``.

    Attributes:
        line: its line in the text, from 1.
        text: as written, on one line.
        guard: the predicate register that switches it on, or None.
        negated: it runs where the guard is false.
        op: opcode with all its modifiers, ``add.s32``.
        operands: as written; registers of nested blocks carry the block's number.
    """

    line: int
    text: str
    guard: str | None
    negated: bool
    op: str
    operands: tuple[str, ...]


@dataclass(frozen=True)
class Kernel:
    """An entry point, read but not yet bound to a block's threads.

    Attributes:
        parameters: (name, type) in order.
        registers: name -> declared type.
        shared: name of a shared array -> offset; the dynamic one lies behind the static ones.
        static_shared: bytes of the static arrays.
        threads: the block that the kernel demands (``.reqntid``), or None.
    """

    entry: str
    parameters: tuple[tuple[str, str], ...]
    registers: dict[str, str]
    shared: dict[str, int]
    static_shared: int
    threads: int | None
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]


def _blank(match: re.Match[str]) -> str:
    return "\n" * match[0].count("\n")


def _without_comments(text: str) -> str:
    text = re.sub(r"/\*.*?\*/|//[^\n]*", _blank, text, flags=re.S)
    return re.sub(r"(?m)^[ \t]*\.(?:loc|file)\b[^\n]*", "", text)


def _body_end(text: str, start: int) -> int:
    depth, at = 1, start
    while depth:
        bracket = re.compile(r"[{}]").search(text, at)
        if bracket is None:
            raise EmulatorError("the kernel's last brace is missing")
        depth += 1 if bracket[0] == "{" else -1
        at = bracket.end()
    return at - 1


class _Scopes:
    """Register names as nested blocks see them: the innermost declaration of a name is meant."""

    def __init__(self) -> None:
        self.registers: dict[str, str] = {}
        self.open: list[dict[str, str]] = [{}]
        self.blocks = 0

    def enter(self) -> None:
        self.blocks += 1
        self.open.append({})

    def leave(self) -> None:
        self.open.pop()

    def declare(self, statement: str) -> None:
        kind, names = re.fullmatch(r"\.reg\s+\.(\w+)\s+(.*)", statement, re.S).groups()  # type: ignore[union-attr]
        bits(kind)
        for given in names.split(","):
            spread = re.fullmatch(r"([%$\w.]+)<(\d+)>", given.strip())
            plain = [f"{spread[1]}{i}" for i in range(int(spread[2]))] if spread else [given.strip()]
            for name in plain:
                unique = name if len(self.open) == 1 else f"{name}@{self.blocks}"
                self.open[-1][name] = unique
                self.registers[unique] = kind

    def rename(self, operand: str) -> str:
        if len(self.open) == 1:
            return operand
        return re.sub(r"[%$\w.]+", lambda m: self._meant(m[0]), operand)

    def _meant(self, name: str) -> str:
        for scope in reversed(self.open):
            if name in scope:
                return scope[name]
        return name


def _instruction(statement: str, line: int, scopes: _Scopes) -> Instruction:
    text = " ".join(statement.split())
    guard, negated, rest = None, False, text
    match = re.match(r"@(!?)\s*([%\w.$]+)\s+", text)
    if match:
        guard, negated, rest = scopes.rename(match[2]), bool(match[1]), text[match.end() :]
    op, _, tail = rest.partition(" ")
    operands = tuple(scopes.rename(part.strip()) for part in _OPERAND.findall(tail))
    return Instruction(line, text, guard, negated, op, operands)


def _statements(text: str, start: int, end: int, line: int, scopes: _Scopes):
    """The instructions of a body and where its labels point."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    at, end = start, start + len(text[start:end].rstrip())
    while at < end:
        match = _STATEMENT.match(text, at, end)
        if match is None:
            raise EmulatorError(f"cannot read {text[at : at + 40].strip()!r}")
        label, opening, closing, statement = match.groups()
        begin = next(match.start(group) for group in range(1, 5) if match[group] is not None)
        line += text.count("\n", at, begin)
        if label is not None:
            labels[label] = len(instructions)
        elif opening:
            scopes.enter()
        elif closing:
            scopes.leave()
        else:
            statement = statement.strip()
            if statement.startswith(".reg"):
                scopes.declare(statement)
            elif not statement.startswith("."):
                instructions.append(_instruction(statement, line, scopes))
            elif not statement.startswith((*_IGNORED, ".shared")):
                raise EmulatorError(f"line {line}: unknown directive {statement!r}")
        line += text.count("\n", begin, match.end())
        at = match.end()
    return tuple(instructions), labels


def _shared_arrays(text: str) -> tuple[dict[str, int], int]:
    arrays: dict[str, int] = {}
    size, dynamic = 0, []
    for extern, align, name, length in _SHARED.findall(text):
        if extern:
            dynamic.append(name)
            continue
        size = -(-size // int(align)) * int(align)
        arrays[name] = size
        size += int(length)
    # The driver puts dynamic memory right behind the static arrays; 16 bytes is all that it promises.
    size = -(-size // 16) * 16 if dynamic else size
    return arrays | dict.fromkeys(dynamic, size), size


def alone(ptx: str, entry: str) -> str:
    """The text without its other entry points, every line where it was: quicker to read, and what concerns this one only."""
    kept, at = [], 0
    for head in re.finditer(r"(?:\.visible\s+)?\.entry\s+([$%\w]+)\s*\([^)]*\)[^{]*\{", ptx):
        if head[1] == entry:
            continue
        end = _body_end(ptx, head.end()) + 1
        kept += [ptx[at : head.start()], "\n" * ptx.count("\n", head.start(), end)]
        at = end
    return "".join([*kept, ptx[at:]])


@lru_cache(maxsize=16)
def read(ptx: str, entry: str) -> Kernel:
    """Read one entry point of a PTX text.

    Raises:
        EmulatorError: no such entry, or a statement that is not understood.
    """
    text = _without_comments(ptx)
    head = re.search(r"\.entry\s+" + re.escape(entry) + r"\s*\(([^)]*)\)([^{]*)\{", text)
    if head is None:
        raise EmulatorError(
            f"no entry {entry!r}; there are {re.findall(r'[.]entry +([$%A-Za-z0-9_]+)', text)}"
        )
    parameters = []
    for given in filter(None, (part.strip() for part in head[1].split(","))):
        match = _PARAMETER.fullmatch(given)
        if match is None:
            raise EmulatorError(f"unknown form of parameter {given!r}")
        parameters.append((match[2], match[1]))
    end = _body_end(text, head.end())
    scopes = _Scopes()
    line = 1 + text.count("\n", 0, head.end())
    instructions, labels = _statements(text, head.end(), end, line, scopes)
    preamble = re.sub(r"\.entry.*?(?=\.visible|\.extern|\Z)", "", text[: head.start()], flags=re.S)
    shared, size = _shared_arrays(preamble + text[head.end() : end])
    demanded = re.search(r"\.reqntid\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", head[2])
    threads = None
    if demanded:
        threads = int(demanded[1]) * int(demanded[2] or 1) * int(demanded[3] or 1)
    return Kernel(entry, tuple(parameters), scopes.registers, shared, size, threads, instructions, labels)
