"""Buffers of the caller for the gradients, and the memory that big results leave to each other."""

import math

import pytest
import torch

from pyquant.errors import BackendError, DTypeError, ShapeError
from pyquant.grid import Grid
from pyquant.ops import backend, results
from pyquant.ops.fake_quantize import fake_quantize, fake_quantize_backward
from tests.ops.fake_quantize_cases import CASES, IDS, PINNED, make, needs_extension, same_bytes


@pytest.mark.parametrize("pinned", PINNED)
@pytest.mark.parametrize(("shape", "grid"), CASES, ids=IDS)
def test_the_gradients_are_those_of_autograd_wherever_they_are_written(shape, grid, pinned):
    x, scale, zero_point, dy = make(shape, grid, finite=True, seed=11)
    leaves = [t.clone().requires_grad_() for t in (x, scale, zero_point)]
    fake_quantize(*leaves, grid, pinned).backward(dy)
    right = [leaf.grad for leaf in leaves]
    args = dy, x, scale, zero_point, grid, pinned
    for a, b in zip(fake_quantize_backward(*args), right, strict=True):
        assert same_bytes(a, b)
    out = tuple(torch.full_like(t, math.nan) for t in right)
    assert fake_quantize_backward(*args, out=out) is out
    for a, b in zip(out, right, strict=True):
        assert same_bytes(a, b)
    alone = torch.full_like(x, math.nan)
    assert fake_quantize_backward(*args, out=(alone, None, None)) == (alone, None, None)
    assert same_bytes(alone, right[0])


@pytest.mark.parametrize("pinned", PINNED)
@pytest.mark.parametrize("which", ["dy", "x"])
def test_dx_may_take_the_place_of_what_it_is_made_of(which, pinned):
    grid = Grid(4, axis=0)
    x, scale, zero_point, dy = make((5, 67), grid, finite=True, seed=12)
    dx, dscale, dzero = fake_quantize_backward(dy, x, scale, zero_point, grid, pinned)
    place = dy if which == "dy" else x
    fake_quantize_backward(
        dy, x, scale, zero_point, grid, pinned, (place, torch.ones(5), found := torch.ones(5))
    )
    assert same_bytes(place, dx) and same_bytes(found, dzero) and not torch.equal(dscale, torch.ones(5))


@pytest.mark.parametrize("pinned", PINNED)
def test_an_empty_tensor_has_sums_of_0(pinned):
    grid, ones = Grid(8, axis=0), torch.ones(3)
    x = torch.empty(3, 0)
    out = (torch.empty(3, 0), torch.ones(3), torch.ones(3))
    fake_quantize_backward(x, x, ones, torch.zeros(3), grid, pinned, out)
    assert out[1].tolist() == out[2].tolist() == [0.0, 0.0, 0.0]


def test_gradients_that_do_not_fit_are_refused():
    grid, x, ones, zeros = Grid(8, axis=0), torch.zeros(3, 4), torch.ones(3), torch.zeros(3)

    def refused(error, message, dy=x, scale=ones, out=None):
        with pytest.raises(error, match=message):
            fake_quantize_backward(dy, x, scale, zeros, grid, out=out)

    dx, sums = torch.empty(3, 4), torch.empty(3)
    refused(ShapeError, r"dy has shape \(4, 3\) and x \(3, 4\); make them equal\.", dy=torch.zeros(4, 3))
    refused(DTypeError, r"dy is torch.float16 on cpu and x torch.float32", dy=x.half())
    refused(ShapeError, r"dscale has shape \(4,\) and scale \(3,\)", out=(dx, torch.empty(4), sums))
    refused(DTypeError, r"dzero is torch.float64 on cpu and zero_point", out=(dx, sums, sums.double()))
    refused(ShapeError, r"out has one of dscale and dzero; give both", out=(dx, sums, None))
    refused(DTypeError, r"dx has strides \(1, 3\)", out=(torch.empty(4, 3).t(), None, None))
    refused(DTypeError, r"dscale overlaps dzero; use memory of its own\.", out=(dx, sums, sums))
    refused(DTypeError, r"dscale overlaps scale; use memory of its own\.", out=(dx, ones, sums))
    refused(DTypeError, r"dzero overlaps dx; use memory of its own\.", out=(dx, sums, dx[0, :3]))
    refused(BackendError, r"the gradient has no gradient", scale=ones.clone().requires_grad_())
    room = torch.zeros(13)
    with pytest.raises(DTypeError, match=r"dx overlaps x in part; use x itself, or memory of its own\."):
        fake_quantize_backward(
            x, room[:12].view(3, 4), ones, zeros, grid, out=(room[1:].view(3, 4), None, None)
        )


def test_opcheck_of_the_out_form():
    grid = Grid(4, axis=0)
    x, scale, zero_point, dy = make((3, 4), grid, finite=True, seed=9)
    where = (grid.qmin, grid.qmax, grid.axis, grid.group_size, "auto")
    op = torch.ops.pyquant.fake_quantize_backward_out.default
    for sums in ((torch.empty(3), torch.empty(3)), (None, None)):
        torch.library.opcheck(op, (dy, x, scale, zero_point, *where, torch.empty_like(x), *sums))


@needs_extension
def test_a_big_result_takes_the_memory_that_another_left_and_none_that_is_in_use():
    native, grid = backend.extension(), Grid(8)
    x = torch.randn(results.KEPT_FROM // 4, generator=torch.Generator().manual_seed(0))
    one, none = torch.tensor(0.01), torch.tensor(0.0)
    first = fake_quantize(x, one, none, grid)
    part, right = first[:1000], first[:1000].clone()
    second = fake_quantize(x, one * 2, none, grid)
    assert second.data_ptr() != first.data_ptr()
    del first
    third = fake_quantize(x, one * 3, none, grid)
    assert third.data_ptr() not in (part.data_ptr(), second.data_ptr()) and torch.equal(part, right)
    place, before = second.data_ptr(), native.kept_bytes()
    del second
    assert native.kept_bytes() == before + x.nbytes
    fourth = fake_quantize(x, one * 4, none, grid)
    assert fourth.data_ptr() == place and native.kept_bytes() == before
    assert same_bytes(fourth, fake_quantize(x, one * 4, none, grid, "reference"))


@needs_extension
def test_what_is_kept_for_later_is_bounded():
    native = backend.extension()
    blocks = [native.ResultMemory(48 << 20) for _ in range(8)]
    del blocks
    assert 0 < native.kept_bytes() <= 256 << 20


@needs_extension
def test_small_results_and_those_of_autograd_are_ordinary_tensors():
    x = torch.randn(results.KEPT_FROM // 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = fake_quantize(x, torch.tensor(0.01), torch.tensor(0.0), Grid(8))
    y.backward(torch.ones_like(y))
    assert x.grad.is_contiguous() and x.grad.shape == x.shape and x.grad.add_(1).max() == 2
    small = fake_quantize(x.detach()[:10], torch.tensor(0.01), torch.tensor(0.0), Grid(8))
    assert small.resize_(20).shape == (20,)
