"""What describe -> choose -> launch passes on: a kernel's compile-time constants, printable before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from .targets import Target

# torch's dtypes in Triton's words.
FLOATS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Tile:
    """One program's share of a product, and what computes it.

    Attributes:
        m, n, k: rows, columns and products a step.
        warps, stages: Triton's ``num_warps`` and ``num_stages``.
    """

    m: int
    n: int
    k: int
    warps: int
    stages: int

    @property
    def constants(self) -> dict[str, int]:
        """As the kernels name them."""
        return {"BLOCK_M": self.m, "BLOCK_N": self.n, "BLOCK_K": self.k}

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k}"


@dataclass(frozen=True)
class Box:
    """One program's elements, where the work is no product: the kernel's sizes by name."""

    sizes: tuple[tuple[str, int], ...]
    warps: int = 4
    stages: int = 1

    @property
    def constants(self) -> dict[str, int]:
        """As the kernels name them."""
        return dict(self.sizes)

    def __str__(self) -> str:
        return "x".join(str(size) for _, size in self.sizes)


class Share(Protocol):
    """One program's share of the work: a :class:`Tile` or a :class:`Box`."""

    @property
    def warps(self) -> int: ...
    @property
    def stages(self) -> int: ...
    @property
    def constants(self) -> dict[str, int]: ...


@dataclass(frozen=True)
class Configuration:
    """How one kernel is compiled; ``str`` is one line.

    Attributes:
        kernel: the kernel's name.
        target: name of the architecture.
        tile: a program's share.
        flags: every other ``tl.constexpr`` of the kernel with its value.
    """

    kernel: str
    target: str
    tile: Share
    flags: tuple[tuple[str, Any], ...]

    @property
    def constants(self) -> dict[str, Any]:
        """Every ``tl.constexpr`` of the kernel with its value."""
        return {**dict(self.flags), **self.tile.constants}

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of the launch. Nothing is ever fused: bytes have to equal those of the reference."""
        return {
            **self.constants,
            "num_warps": self.tile.warps,
            "num_stages": self.tile.stages,
            "enable_fp_fusion": False,
        }

    def __str__(self) -> str:
        flags = " ".join(f"{name.lower()}={value}" for name, value in self.flags)
        how = f"{self.tile.warps} warps, {self.tile.stages} stages"
        return f"{self.kernel} on {self.target}: {self.tile}, {flags}, {how}"


def largest_that_fills(tiles: Sequence[Tile], m: int, n: int, target: Target) -> Tile:
    """The first tile, largest first, of which an ``[m, n]`` result needs enough for the multiprocessors; else the last.

    Few rows: one for each, as what bounds is how much of the weight is on its way at once. Many: one for more than half of
    them, as tiles of half the size would be more than there are multiprocessors, some would have two in turn, and the result
    would be ready no earlier. Tiles of which rows are half empty are left out.
    """
    fitting = [tile for tile in tiles if tile.m < 2 * m or tile.m == tiles[-1].m]
    enough = target.processors if m < 128 else target.processors // 2 + 1
    for tile in fitting:
        if -(-m // tile.m) * -(-n // tile.n) >= enough:
            return tile
    return fitting[-1]


def size_type(size: int) -> str:
    """How Triton's launch types an integer: it compiles anew for multiples of 16."""
    return "i32:16" if size % 16 == 0 else "i32"
