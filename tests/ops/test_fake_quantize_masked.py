"""Fake-quantize that leaves a bit an element for its gradient: the bytes of the other form, and less to keep."""

import math

import pytest
import torch

from pyquant import reference
from pyquant.grid import Grid
from pyquant.ops import backend
from pyquant.ops.fake_quantize import FLOATS, fake_quantize
from pyquant.ops.grid_layout import layout_of
from tests.ops.fake_quantize_cases import DTYPES, make, same_bytes, spread
from tests.ops.test_fake_quantize_cpu import SETS, needs_extension

pytestmark = needs_extension
# Lone rows with every tail, whole words, blocks; rows of whole words beside each other.
CASES = [
    *(((n,), Grid(4)) for n in (1, 15, 16, 17, 31, 32, 33, 63, 64, 8191, 8193, 16411)),
    ((3, 5, 7), Grid(8, signed=False)),
    ((1, 77), Grid(3, axis=0)),
    ((5, 32), Grid(4, axis=0)),
    ((2, 31, 64), Grid(8, signed=False, axis=1)),
    ((3, 7, 8224), Grid(2, axis=1)),
    ((13, 96), Grid(4, axis=0, group_size=32)),
]
IDS = [f"{'x'.join(map(str, s))}-{g.bits}-axis{g.axis}-g{g.group_size}" for s, g in CASES]


def masked(x, scale, zero_point, grid, isa, threads=1):
    y = torch.full_like(x, math.nan)
    inside = torch.full(((x.numel() + 31) // 32,), 0x5A5A5A5A, dtype=torch.int32)
    layout = layout_of(x.shape, grid.axis, grid.group_size)
    pointers = (t.data_ptr() for t in (x, y, inside, scale, zero_point))
    native = backend.extension()
    native.fake_quantize_masked(FLOATS[x.dtype], *pointers, *layout, grid.qmin, grid.qmax, threads, isa)
    return y, inside


def kept(dy, inside, isa, threads=1):
    dx = torch.full_like(dy, math.nan)
    pointers = (t.data_ptr() for t in (dy, inside, dx))
    backend.extension().keep_inside(FLOATS[dy.dtype], *pointers, dy.numel(), threads, isa)
    return dx


@pytest.mark.parametrize("dtype", DTYPES, ids=FLOATS.values())
@pytest.mark.parametrize(("shape", "grid"), CASES, ids=IDS)
def test_the_bytes_are_those_of_the_reference(shape, grid, dtype):
    x, scale, zero_point, dy = make(shape, grid, dtype)
    params = spread(x, scale, zero_point, grid)
    y = reference.fake_quantize(x, *params, grid.qmin, grid.qmax)
    dx = reference.fake_quantize_backward(dy, x, *params, grid.qmin, grid.qmax)[0]
    first = masked(x, scale, zero_point, grid, SETS[0])[1]
    for isa in SETS:
        for threads in (1, 3):
            got, inside = masked(x, scale, zero_point, grid, isa, threads)
            assert same_bytes(got, y), isa
            assert torch.equal(inside, first), isa
            assert same_bytes(kept(dy, inside, isa, threads), dx), isa


@pytest.mark.parametrize("isa", SETS[1:])
@pytest.mark.parametrize(("scale", "zero"), [(0.03, 120.0), (2.0**-70, 3.0), (1e6, -5.0), (0.5, 2.0**22)])
def test_values_about_both_ends_of_the_range(isa, scale, zero):
    """Every float within some steps of where a code leaves the range, through quick kernels and those that divide."""
    grid = Grid(8, signed=False)
    ends = [(q - zero + tie) * scale for q in (grid.qmin, grid.qmax) for tie in (-0.5, 0.0, 0.5)]
    near = torch.tensor(ends, dtype=torch.float32).view(torch.int32)[:, None] + torch.arange(-40, 41)
    x = torch.cat([near.to(torch.int32).view(torch.float32).flatten(), torch.tensor([math.inf, -math.inf])])
    one, offset = torch.tensor(scale), torch.tensor(zero)
    y, inside = masked(x, one, offset, grid, isa)
    assert same_bytes(y, reference.fake_quantize(x, one, offset, grid.qmin, grid.qmax))
    dy = torch.ones_like(x)
    right = reference.fake_quantize_backward(dy, x, one, offset, grid.qmin, grid.qmax)[0]
    assert torch.equal(kept(dy, inside, isa), right)


@pytest.mark.parametrize("isa", SETS[1:])
@pytest.mark.parametrize("offset", [0, 3])
def test_results_too_big_for_the_cache_are_streamed_right(isa, offset):
    grid = Grid(8)
    x, scale, zero_point, dy = make(((9 << 20) // 4 + 21 + offset,), grid, seed=4)
    x, dy = x[offset:], dy[offset:]
    y, inside = masked(x, scale, zero_point, grid, isa)
    assert same_bytes(y, reference.fake_quantize(x, scale, zero_point, grid.qmin, grid.qmax))
    right = reference.fake_quantize_backward(dy, x, scale, zero_point, grid.qmin, grid.qmax)[0]
    assert same_bytes(kept(dy, inside, isa), right)


def kept_bytes_of(run):
    """Bytes that autograd keeps for the backward pass of ``run()``, storages once."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(storages.values())


@pytest.mark.parametrize(
    ("shape", "grid", "learned", "words"),
    [
        ((7, 33), Grid(4), False, True),
        ((7, 64), Grid(4, axis=0), False, True),
        ((7, 33), Grid(4, axis=0), False, False),
        ((7, 33), Grid(4), True, False),
    ],
    ids=["tensor", "rows of whole words", "other rows", "a scale that learns"],
)
def test_a_bit_an_element_is_kept_where_the_scale_does_not_learn(shape, grid, learned, words):
    x, scale, zero_point, dy = make(shape, grid, finite=True, seed=5)
    leaves = [
        t.clone().requires_grad_(wanted) for t, wanted in ((x, True), (scale, learned), (zero_point, learned))
    ]
    keeps = kept_bytes_of(lambda: fake_quantize(*leaves, grid))
    assert keeps == (-(-x.numel() // 32) * 4 if words else x.nbytes + scale.nbytes + zero_point.nbytes)
    results = []
    for pinned in ("auto", "reference"):
        y = fake_quantize(*leaves, grid, pinned)
        results.append((y.detach(), *torch.autograd.grad(y, leaves[:1], dy)))
    assert all(same_bytes(a, b) for a, b in zip(*results, strict=True))


def test_no_bits_are_made_where_no_gradient_is_wanted(monkeypatch):
    x, scale, zero_point, _ = make((64,), Grid(4), finite=True)
    right = fake_quantize(x, scale, zero_point, Grid(4))
    monkeypatch.setattr(torch.ops.pyquant, "fake_quantize_masked", None)
    with torch.no_grad():
        assert same_bytes(fake_quantize(x.requires_grad_(), scale, zero_point, Grid(4)), right)


def test_opcheck():
    grid = Grid(4, axis=0)
    x, scale, zero_point, dy = make((3, 64), grid, finite=True, seed=9)
    ops, where = torch.ops.pyquant, (grid.qmin, grid.qmax, grid.axis, grid.group_size)
    torch.library.opcheck(
        ops.fake_quantize_masked.default, (x.clone().requires_grad_(), scale, zero_point, *where)
    )
    inside = ops.fake_quantize_masked(x, scale, zero_point, *where)[1]
    torch.library.opcheck(ops.keep_inside.default, (dy, inside))
