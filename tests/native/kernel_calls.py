"""Calls of the kernels that pyquant.h does not show, with the reference's results, as replay_calls.cpp reads them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pyquant import reference
from pyquant.grid import Grid
from pyquant.ops.adaquant_step import LearnedWeight, _reference
from pyquant.ops.gemm_w4 import gemm_w4
from pyquant.ops.grid_layout import layout_of
from pyquant.ops.linear_w4 import linear_w4
from pyquant.ops.quantize_rows import FLOATS, quantize_rows
from tests.ops.fake_quantize_cases import CASES, make, spread
from tests.ops.test_fake_quantize_cpu import run_cpu_backward
from tests.ops.w4_cases import rows, weights

LEARNED = ("position", "first", "second", "log_scale", "scale_first", "scale_second")


@dataclass(frozen=True)
class Call:
    """One call: its name of eight letters, numbers and arrays, and the arrays that have to come back."""

    name: str
    numbers: tuple[int, ...]
    arrays: tuple[Tensor, ...]
    results: tuple[Tensor, ...]

    def packed(self) -> bytes:
        """The call as replay_calls.cpp reads it."""
        parts = [
            self.name.encode(),
            struct.pack(f"<{len(self.numbers) + 1}q", len(self.numbers), *self.numbers),
        ]
        parts.append(struct.pack("<q", len(self.arrays)))
        for array in self.arrays:
            data = bytes_of(array)
            parts += [struct.pack("<q", len(data)), data]
        return b"".join(parts)

    def read(self, data: bytes, at: int) -> tuple[list[Tensor], int]:
        """The results that begin at byte ``at``, and where they end."""
        found = []
        for result in self.results:
            size = result.numel() * result.element_size()
            raw = torch.frombuffer(bytearray(data[at : at + size]), dtype=torch.uint8)
            found.append(raw.view(result.dtype).reshape(result.shape))
            at += size
        return found, at


def bytes_of(tensor: Tensor) -> bytes:
    """A tensor's bytes in a row."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def calls() -> Iterator[Call]:
    """Every kernel at odd sizes, all widths and types, and groupings; in ones and threes of threads."""
    yield from _codes_by_low_bit()
    yield from _floats_by_low_bit()
    yield from _rows()
    yield from _grids()
    yield from _learning()


def _low_bit(bits: int, k: int, group: int | None, zeros: str, n: int = 35) -> tuple[dict, tuple, tuple]:
    """Weights as the ops take them, and the numbers and arrays that the kernel takes."""
    w = weights(n, k, group, bits != 3, bits, zeros, bits)
    groups = k // (group or k)
    zero = w.get("zero_point", torch.zeros(n, groups, dtype=torch.int32))
    options = {"group_size": group, "signed": bits != 3, "bits": bits}
    return {**w, **options}, (n, k, group or k, bits, int(bits != 3)), (w["packed"], zero, w["scale"])


def _codes_by_low_bit() -> Iterator[Call]:
    for bits in (2, 3, 4):
        for k, group in ((1, None), (7, None), (45, None), (96, 32), (131, None), (640, 128), (1100, None)):
            for zeros in ("none", "one", "each"):
                w, numbers, arrays = _low_bit(bits, k, group, zeros)
                for m in (1, 4, 5, 17, 130):
                    x = rows(m, k, m % 2 == 0, 8, zeros == "each", seed=m)
                    want = gemm_w4(**x, **w, backend="reference")
                    x_zero = x.get("x_zero", torch.zeros(m, dtype=torch.int32))
                    yield Call(
                        "w4 codes", (*numbers, m, 1 + m % 3, 8, int(m % 2 == 0)), (*arrays, x["x"], x_zero, x["x_scale"]),
                        (want,),
                    )  # fmt: skip


def _floats(m: int, k: int) -> Tensor:
    x = (
        torch.randn(m, k, generator=torch.Generator().manual_seed(m * 1000 + k))
        * torch.logspace(-40, 4, m)[:, None]
    )
    # A row that is not finite, if there are several.
    if m > 2:
        x[m // 2, k // 2] = float("nan") if m % 2 else float("inf")
    return x


def _floats_by_low_bit() -> Iterator[Call]:
    for bits in (2, 3, 4):
        for k, group in ((77, None), (384, 128), (640, None)):
            w, numbers, arrays = _low_bit(bits, k, group, "each")
            for dtype, kind in FLOATS.items():
                for m in (1, 3, 5, 131):
                    x = _floats(m, k).to(dtype)
                    want = linear_w4(x, **w, backend="reference")
                    yield Call("w4 float", (*numbers, m, 1 + m % 3, kind), (*arrays, x), (want,))


def _rows() -> Iterator[Call]:
    for k in (1, 3, 15, 16, 31, 33, 64, 131):
        for dtype, kind in FLOATS.items():
            x = _floats(9, k).to(dtype)
            yield Call("row code", (kind, 9, k, 2), (x,), quantize_rows(x, backend="reference"))


def _grids() -> Iterator[Call]:
    for number, (shape, grid) in enumerate(CASES):
        for dtype, kind in FLOATS.items():
            x, scale, zero, dy = make(shape, grid, dtype)
            entries = spread(x, scale, zero, grid)
            y = reference.fake_quantize(x, *entries, grid.qmin, grid.qmax)
            codes = reference.quantize(x, *entries, grid.qmin, grid.qmax).to(grid.code_dtype)
            # The order of the sums is the kernels' own; they agree with the reference within a bound, tested elsewhere.
            dx, dscale, dzero = run_cpu_backward(dy, x, scale, zero, grid, "portable")
            layout = layout_of(x.shape, grid.axis, grid.group_size)
            numbers = (kind, *layout, grid.qmin, grid.qmax, 1 + number % 3)
            yield Call("the grid", numbers, (scale, zero, x, dy), (y, dx, dscale, dzero, codes))


def _learning() -> Iterator[Call]:
    rates = (0.1, 0.001, 1000.0, 0.3, 0.05)
    for count, n, grid in (
        (1, 1, Grid(4, axis=0)),
        (3, 63, Grid(8, axis=0)),
        (131, 300, Grid(3, signed=False, axis=0)),
    ):
        generator = torch.Generator().manual_seed(n)
        scale = torch.rand(count, generator=generator) * 0.1 + 0.02
        zero = torch.randint(grid.qmin, grid.qmax + 1, (count,), generator=generator).float()
        learned = LearnedWeight.of(torch.randn(count, n, generator=generator) * 0.3, scale, zero)
        for step in range(3):
            gradient = torch.randn(count, n, generator=generator)
            before = tuple(getattr(learned, name).clone() for name in LEARNED)
            weight = torch.empty(count, n)
            _reference(learned, gradient, grid, rates, weight)
            after = tuple(getattr(learned, name).clone() for name in LEARNED)
            arrays = (gradient, *before, learned.start, learned.zero_point, torch.tensor(rates))
            yield Call("adaquant", (count, n, grid.qmin, grid.qmax, 1 + step), arrays, (*after, weight))
