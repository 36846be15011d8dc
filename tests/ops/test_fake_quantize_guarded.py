"""The fake-quantize kernels between guard pages, every layout of small sizes: they touch no byte that is not the caller's."""

import os

import numpy as np
import pytest
import torch

from pyquant.grid import Grid
from pyquant.ops import backend
from pyquant.ops.adaquant_step import LearnedWeight, _cpu
from pyquant.ops.fake_quantize import FLOATS
from tests.ops.guarded import PLACES, Guarded, bytes_of, walk
from tests.ops.test_adaquant_step import state
from tests.ops.test_fake_quantize_cpu import SETS, needs_extension

pytestmark = [needs_extension, pytest.mark.skipif(not hasattr(os, "fork"), reason="the walk needs a child")]
QMIN, QMAX = -8, 7
SIZE = 1 << 16
INPUTS = ("x", "dy", "scale", "zero")
RESULTS = ("y", "dx", "dscale", "dzero", "codes", "inside", "y_masked", "dx_masked")
# (outer, channels, inner): lone rows, short rows of every width, long rows about the steps of the vectors.
LAYOUTS = [
    *((1, 1, n) for n in range(1, 100)),
    *((2, channels, inner) for channels in (2, 3, 5) for inner in range(1, 71)),
    *((outer, channels, 1) for outer in (1, 3) for channels in range(1, 140, 3)),
    *((7, 40, 3), (3, 200, 7), (2, 3, 577), (1, 70, 32), (1, 37, 64), (131, 2, 9)),
]


def kernels(x, dy, scale, zero, layout, isa, at):
    """Run all that serve the layout; ``at(name, like)`` says where a tensor lies or goes."""
    native, dtype = backend.extension(), FLOATS[x.dtype]
    grid = (at("scale", scale), at("zero", zero), *layout, QMIN, QMAX, 1, isa)
    sources = at("x", x), at("dy", dy)
    native.fake_quantize(dtype, sources[0], at("y", x), *grid)
    native.fake_quantize_backward(
        dtype, sources[1], sources[0], at("dx", x), at("dscale", scale), at("dzero", scale), *grid
    )
    native.quantize(dtype, sources[0], at("codes", x.to(torch.int8)), *grid)
    if native.fake_quantize_masks(*layout):
        words = torch.empty((x.numel() + 31) // 32, dtype=torch.int32)
        inside = at("inside", words)
        native.fake_quantize_masked(dtype, sources[0], at("y_masked", x), inside, *grid)
        native.keep_inside(dtype, sources[1], inside, at("dx_masked", x), x.numel(), 1, isa)


def layouts(dtype, report):
    generator = torch.Generator().manual_seed(0)
    rooms = {(name, place): Guarded(SIZE) for name in (*INPUTS, *RESULTS) for place in PLACES}
    for layout in LAYOUTS:
        x = (torch.randn(layout, generator=generator) * 3).to(dtype)
        dy = torch.randn(layout, generator=generator).to(dtype)
        scale = torch.rand(layout[1], generator=generator) + 0.1
        zero = torch.randint(-3, 4, (layout[1],), generator=generator).float()
        plain = {}

        def fresh(name, like, plain=plain, inputs=(("x", x), ("dy", dy), ("scale", scale), ("zero", zero))):
            plain[name] = dict(inputs).get(name, torch.empty_like(like))
            return plain[name].data_ptr()

        kernels(x, dy, scale, zero, layout, "portable", fresh)
        right = {name: bytes_of(tensor.view(torch.int8).numpy()) for name, tensor in plain.items()}
        for isa in SETS:
            for place in PLACES:
                report.at(isa, layout, str(dtype), place)

                def guarded(name, _, right=right, place=place):
                    room = rooms[name, place]
                    if name in INPUTS:
                        return room.put(right[name], place)
                    return room.expect(right[name], place)

                kernels(x, dy, scale, zero, layout, isa, guarded)
                for name in right.keys() - INPUTS:
                    assert rooms[name, place].holds(right[name], place), (isa, layout, name, place)


@pytest.mark.parametrize("dtype", FLOATS, ids=FLOATS.values())
def test_every_small_layout(dtype):
    assert walk(lambda report: layouts(dtype, report)) is None


def adaquant_rows(report):
    generator = torch.Generator().manual_seed(1)
    rates = (0.1, 0.01, 1.0, 0.2, 0.01)
    for n in range(1, 100):
        rows = 1 + n % 3
        weight = torch.randn(rows, n, generator=generator)
        gradient = torch.randn(rows, n, generator=generator)
        entries = torch.rand(rows, generator=generator) + 0.1, torch.zeros(rows)
        plain = LearnedWeight.of(weight, *entries)
        out = torch.empty(rows, n)
        _cpu(plain, gradient, Grid(4, axis=0), rates, out, isa="portable", threads=1)
        right = [bytes_of(t.numpy()) for t in (*state(plain), out)]
        for isa in SETS:
            for place in PLACES:
                report.at(isa, rows, n, place)
                rooms = [Guarded(t.nbytes) for t in (*state(plain), out, gradient)]
                tensors = []
                for room, tensor in zip(
                    rooms, (*state(LearnedWeight.of(weight, *entries)), out, gradient), strict=True
                ):
                    room.put(tensor.numpy(), place)
                    _, span = room.span(tensor.nbytes, place)
                    tensors.append(torch.from_numpy(span.view(np.float32)).reshape(tensor.shape))
                *learned, result, given = tensors
                _cpu(LearnedWeight(*learned), given, Grid(4, axis=0), rates, result, isa=isa, threads=1)
                for tensor, wanted in zip((*learned, result), right, strict=True):
                    assert np.array_equal(bytes_of(tensor.numpy()), wanted), (isa, rows, n, place)


def test_adaquant_s_rows():
    assert walk(adaquant_rows) is None
