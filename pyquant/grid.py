"""What a grid, its parameters and a plan are: plain values, no tensor arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from pyquant.errors import GridError

MIN_BITS, MAX_BITS = 2, 8


@dataclass(frozen=True)
class Grid:
    """An integer grid: how many codes there are and which elements share a scale.

    Args:
        bits: width of a code, 2 to 8.
        signed: two's-complement codes ``[-2^(bits-1), 2^(bits-1) - 1]`` if true, else ``[0, 2^bits - 1]``.
        axis: the dimension whose every index has a scale of its own; None shares one scale.
        group_size: consecutive elements of a row (all dimensions after ``axis``, flattened) that share a scale; None
            means the whole row. Needs ``axis=0``.
        symmetric: the zero point is 0 (signed) or the middle code (unsigned); None means ``signed``.

    Raises:
        GridError: a width outside 2..8, a group size below 1, or groups without ``axis=0``.
    """

    bits: int = 8
    signed: bool = True
    axis: int | None = None
    group_size: int | None = None
    symmetric: bool | None = None

    def __post_init__(self) -> None:
        if (
            isinstance(self.bits, bool)
            or not isinstance(self.bits, int)
            or not MIN_BITS <= self.bits <= MAX_BITS
        ):
            raise GridError(
                f"bits={self.bits!r} is not a width pyquant has; use a whole number from {MIN_BITS} to {MAX_BITS}."
            )
        if self.group_size is not None:
            if (
                isinstance(self.group_size, bool)
                or not isinstance(self.group_size, int)
                or self.group_size < 1
            ):
                raise GridError(
                    f"group_size={self.group_size!r} is not a group; use a positive whole number or None."
                )
            if self.axis != 0:
                raise GridError(
                    f"group_size={self.group_size} with axis={self.axis} has no meaning; use axis=0."
                )
        if self.symmetric is None:
            object.__setattr__(self, "symmetric", self.signed)

    @property
    def qmin(self) -> int:
        """The smallest code."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> int:
        """The largest code."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def code_dtype(self) -> torch.dtype:
        """The smallest torch dtype that holds every code."""
        return torch.int8 if self.signed else torch.uint8

    def with_bits(self, bits: int) -> Grid:
        """Return the same grid at another width."""
        return Grid(bits, self.signed, self.axis, self.group_size, self.symmetric)

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of scale and zero point for a tensor of ``shape``: ``()``, ``(C,)`` or ``(C, G)``."""
        if self.axis is None:
            return ()
        if not -len(shape) <= self.axis < len(shape):
            raise GridError(f"axis={self.axis} does not exist in a tensor of shape {tuple(shape)}.")
        channels = shape[self.axis]
        if self.group_size is None:
            return (channels,)
        row = 1
        for size in shape[1:]:
            row *= size
        if row % self.group_size:
            raise GridError(
                f"group_size={self.group_size} does not divide the row of {row} elements of shape {tuple(shape)}; "
                f"use a divisor of {row}, or None."
            )
        return (channels, row // self.group_size)


@dataclass(frozen=True)
class QParams:
    """Where a grid lies on the real line.

    Args:
        scale: float32, real units a step, positive normal numbers; shape ``Grid.scale_shape``.
        zero_point: float32 holding whole numbers, the code of real 0; same shape.
    """

    scale: torch.Tensor
    zero_point: torch.Tensor


@dataclass(frozen=True)
class SiteGrids:
    """The two grids of one site."""

    weight: Grid
    input: Grid


@dataclass(frozen=True)
class Plan(Mapping[str, SiteGrids]):
    """Which grids each site has: an immutable mapping from site name to :class:`SiteGrids`."""

    sites: Mapping[str, SiteGrids] = field(default_factory=dict)

    def __getitem__(self, site: str) -> SiteGrids:
        return self.sites[site]

    def __iter__(self):
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def replace(self, changes: Mapping[str, SiteGrids]) -> Plan:
        """Return a plan in which ``changes`` override the present grids."""
        return Plan({**self.sites, **changes})
