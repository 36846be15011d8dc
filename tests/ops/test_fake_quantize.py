"""The public ops: values, gradients, memory, tracing and bad input, on both backends."""

import math

import pytest
import torch

from pyquant import reference
from pyquant.errors import BackendError, DTypeError, GridError, ShapeError
from pyquant.grid import Grid
from pyquant.ops import backend
from pyquant.ops.fake_quantize import dequantize, fake_quantize, quantize
from pyquant.ops.grid_layout import layout_of
from tests.ops.fake_quantize_cases import (
    CASES,
    EPS32,
    EPS64,
    IDS,
    PINNED,
    make,
    needs_extension,
    same_bytes,
    spread,
)


@pytest.mark.parametrize("pinned", PINNED)
@pytest.mark.parametrize(("shape", "grid"), CASES, ids=IDS)
def test_public_op_and_its_gradients(shape, grid, pinned):
    x, scale, zero_point, dy = make(shape, grid, finite=True, seed=4)
    moved = zero_point + 0.3
    leaves = [t.clone().requires_grad_() for t in (x, scale, moved)]
    y = fake_quantize(*leaves, grid, pinned)
    y.backward(dy)
    params = spread(x, scale, zero_point, grid)
    assert same_bytes(y.detach(), reference.fake_quantize(x, *params, grid.qmin, grid.qmax))
    dx, *terms = reference.fake_quantize_backward(dy, x, *params, grid.qmin, grid.qmax)
    assert same_bytes(leaves[0].grad, dx)
    layout = layout_of(x.shape, grid.axis, grid.group_size)
    for leaf, term in zip(leaves[1:], terms, strict=True):
        folded = term.reshape(layout)
        count = layout[0] * layout[2]
        # Two float64 sums in different orders, then one float32 rounding each.
        bound = (
            2 * (count + 1) * EPS64 * folded.abs().sum((0, 2)) + EPS32 * folded.sum((0, 2)).abs() + 2**-149
        )
        assert ((leaf.grad.double().flatten() - folded.sum((0, 2))).abs() <= bound).all()
    codes = quantize(x, scale, zero_point, grid, pinned)
    assert codes.dtype == grid.code_dtype
    assert torch.equal(codes.int(), reference.quantize(x, *params, grid.qmin, grid.qmax))
    assert torch.equal(dequantize(codes, scale, zero_point, grid), reference.dequantize(codes.int(), *params))
    assert same_bytes(dequantize(codes, scale, zero_point, grid), y.detach())


@pytest.mark.parametrize("pinned", PINNED)
@pytest.mark.parametrize("bits", range(2, 9))
def test_ties_at_every_width(bits, pinned):
    grid = Grid(bits, signed=False)
    scale, zero_point = torch.tensor(0.125), torch.tensor(1.0)
    x = (torch.arange(-4, 2**bits + 4) + 0.5) * 0.125
    even = [min(max(2 * math.floor((k + 1) / 2) + 1, 0), 2**bits - 1) for k in range(-4, 2**bits + 4)]
    assert quantize(x, scale, zero_point, grid, pinned).tolist() == even


@pytest.mark.parametrize("pinned", PINNED)
def test_the_zero_point_is_rounded_half_to_even(pinned):
    x = torch.tensor([0.0, 100.0])
    for raw, whole in ((0.5, 0.0), (1.5, 2.0), (-0.5, 0.0), (2.4, 2.0)):
        y = fake_quantize(x, torch.tensor(1.0), torch.tensor(raw), Grid(4), pinned)
        assert y.tolist() == [0.0, 7.0 - whole]


@pytest.mark.parametrize("pinned", PINNED)
def test_a_nan_poisons_the_scale_but_not_its_own_gradient(pinned):
    x = torch.tensor([[0.3, math.nan], [0.2, 9.0]], requires_grad=True)
    scale = torch.tensor([0.1, 0.1], requires_grad=True)
    y = fake_quantize(x, scale, torch.zeros(2), Grid(4, axis=0), pinned)
    y.sum().backward()
    assert y.isnan().tolist() == [[False, True], [False, False]]
    assert x.grad.tolist() == [[1.0, 0.0], [1.0, 0.0]]
    assert scale.grad.isnan().tolist() == [True, False]
    assert quantize(x.detach(), scale.detach(), torch.full((2,), -3.0), Grid(4, axis=0), pinned)[0, 1] == -3


@pytest.mark.parametrize("pinned", PINNED)
def test_gradients_agree_with_a_numerical_argument(pinned):
    """Where it is smooth: outside the range in s and z, inside in z, and across one whole step in x."""
    grid, h = Grid(4), 2.0**-10
    scale, zero_point = torch.tensor(0.25), torch.tensor(2.0)
    for value in (5.0, -5.0):
        s, z = scale.clone().requires_grad_(), zero_point.clone().requires_grad_()
        x = torch.tensor(value)
        fake_quantize(x, s, z, grid, pinned).backward()
        up, down = (fake_quantize(x, scale + d, zero_point, grid, pinned) for d in (h, -h))
        assert s.grad == (up - down) / (2 * h)
        assert z.grad == fake_quantize(x, scale, zero_point + 1, grid, pinned) - fake_quantize(
            x, scale, zero_point, grid, pinned
        )
    x, z = torch.tensor(0.6, requires_grad=True), zero_point.clone().requires_grad_()
    fake_quantize(x, scale, z, grid, pinned).backward()
    one_step = fake_quantize(x + scale, scale, zero_point, grid, pinned) - fake_quantize(
        x, scale, zero_point, grid, pinned
    )
    assert x.grad == one_step / scale == 1.0
    assert z.grad == 0.0
    assert torch.equal(
        fake_quantize(x, scale, zero_point + 1, grid, pinned),
        fake_quantize(x, scale, zero_point, grid, pinned),
    )


@pytest.mark.parametrize("pinned", PINNED)
def test_learning_a_scale_reduces_the_error(pinned):
    x = torch.randn(8, 501, generator=torch.Generator().manual_seed(6))
    grid = Grid(4, axis=0)
    scale = torch.full((8,), 1.0, requires_grad=True)
    zero_point = torch.full((8,), 3.0, requires_grad=True)
    optimizer = torch.optim.Adam([{"params": [scale], "lr": 0.02}, {"params": [zero_point], "lr": 0.05}])
    errors = []
    for _ in range(80):
        error = (fake_quantize(x, scale, zero_point, grid, pinned) - x).square().mean()
        errors.append(error.item())
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert errors[-1] < errors[0] / 3


@needs_extension
def test_unwanted_gradients_are_not_computed(monkeypatch):
    seen = []
    page = backend._kernels["fake_quantize_backward", "cpu"]

    def spy(*args):
        seen.append([t.numel() for t in args[-2:]])
        page(*args)

    monkeypatch.setitem(backend._kernels, ("fake_quantize_backward", "cpu"), spy)
    x, scale, zero_point = torch.ones(3, 4), torch.ones(3), torch.zeros(3)
    for wanted, right in (
        ((True, False, False), [0, 0]),
        ((True, True, False), [3, 3]),
        ((False, False, True), [3, 3]),
    ):
        leaves = [t.clone().requires_grad_(w) for t, w in zip((x, scale, zero_point), wanted, strict=True)]
        fake_quantize(*leaves, Grid(4, axis=0)).sum().backward()
        assert seen.pop() == right
        assert [leaf.grad is not None for leaf in leaves] == list(wanted)


# ------------------------------------------------------------------------------------------ memory and layout
@pytest.mark.parametrize("pinned", PINNED)
def test_strided_tensors_give_contiguous_results(pinned):
    grid = Grid(4, axis=1)
    x, scale, zero_point, dy = make((3, 5, 6, 7), grid, seed=7)
    y = fake_quantize(x, scale, zero_point, grid, pinned)
    strided = x.to(memory_format=torch.channels_last).requires_grad_()
    params = torch.stack([scale, zero_point], dim=1)
    out = fake_quantize(strided, params[:, 0], params[:, 1], grid, pinned)
    assert out.is_contiguous() and same_bytes(out.detach(), y)
    out.backward(dy.to(memory_format=torch.channels_last))
    right = x.clone().requires_grad_()
    fake_quantize(right, scale, zero_point, grid, pinned).backward(dy)
    assert same_bytes(strided.grad, right.grad)
    codes = quantize(strided.detach(), scale, zero_point, grid, pinned)
    assert codes.is_contiguous() and torch.equal(codes, quantize(x, scale, zero_point, grid, pinned))


@pytest.mark.parametrize("pinned", PINNED)
def test_an_empty_tensor_gives_an_empty_result(pinned):
    for shape, grid in (
        ((0,), Grid(8)),
        ((3, 0), Grid(8, axis=0)),
        ((0, 3), Grid(8, axis=0)),
        ((2, 0), Grid(4, axis=0, group_size=4)),
    ):
        params = grid.scale_shape(shape)
        x, scale = torch.empty(shape, requires_grad=True), torch.ones(params, requires_grad=True)
        y = fake_quantize(x, scale, torch.zeros(params), grid, pinned)
        assert y.shape == shape
        y.sum().backward()
        assert x.grad.shape == shape and torch.equal(scale.grad, torch.zeros(params))
        assert quantize(x.detach(), scale.detach(), torch.zeros(params), grid, pinned).shape == shape


@pytest.mark.parametrize("pinned", PINNED)
def test_out_is_written_and_may_be_x(pinned):
    grid = Grid(4, axis=0)
    x, scale, zero_point, _ = make((5, 33), grid, seed=8)
    y = fake_quantize(x, scale, zero_point, grid, pinned)
    out = torch.full_like(x, math.nan)
    assert fake_quantize(x, scale, zero_point, grid, pinned, out=out) is out
    assert same_bytes(out, y)
    fake_quantize(x, scale, zero_point, grid, pinned, out=x)
    assert same_bytes(x, y)


# ---------------------------------------------------------------------------------------------- torch.library
@pytest.mark.parametrize(
    "grid", [Grid(4), Grid(8, axis=1), Grid(4, axis=0, group_size=4)], ids=["tensor", "channel", "group"]
)
def test_opcheck(grid):
    x, scale, zero_point, dy = make((3, 4, 4), grid, finite=True, seed=9)
    where = (grid.qmin, grid.qmax, grid.axis, grid.group_size)
    ops = torch.ops.pyquant
    leaves = [t.clone().requires_grad_() for t in (x, scale, zero_point)]
    torch.library.opcheck(ops.fake_quantize.default, (*leaves, *where, "auto"))
    torch.library.opcheck(
        ops.fake_quantize_out.default, (x, scale, zero_point, *where, "auto", torch.empty_like(x))
    )
    for sums in (True, False):
        torch.library.opcheck(
            ops.fake_quantize_backward.default, (dy, x, scale, zero_point, *where, sums, "auto")
        )
    torch.library.opcheck(ops.quantize.default, (x, scale, zero_point, *where, grid.signed, "auto"))


def test_traces_without_a_break():
    grid = Grid(4, axis=0)
    x, scale, zero_point, _ = make((5, 33), grid, finite=True, seed=10)

    def loss(x, scale):
        return fake_quantize(x, scale, zero_point, grid).square().sum()

    grads = []
    for run in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
        leaves = [x.clone().requires_grad_(), scale.clone().requires_grad_()]
        run(*leaves).backward()
        grads.append([leaf.grad for leaf in leaves])
    for a, b in zip(*grads, strict=True):
        assert same_bytes(a, b)


# -------------------------------------------------------------------------------------------------- bad input
ONE, NONE = torch.tensor(1.0), torch.tensor(0.0)
X = torch.zeros(3, 4)


@pytest.mark.parametrize("op", [fake_quantize, quantize])
@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (
            (X.double(), ONE, NONE, Grid(8)),
            DTypeError,
            r"x is torch.float64; use float32, bfloat16 or float16\.",
        ),
        ((X.int(), ONE, NONE, Grid(8)), DTypeError, r"x is torch.int32"),
        ((X, ONE.half(), NONE, Grid(8)), DTypeError, r"scale is torch.float16; use float32\."),
        ((X, ONE, NONE.int(), Grid(8)), DTypeError, r"zero_point is torch.int32; use float32\."),
        (
            (X, ONE.to("meta"), NONE, Grid(8)),
            DTypeError,
            r"scale is on meta and the tensor on cpu; move one of them\.",
        ),
        (
            (X, torch.ones(1), NONE, Grid(8)),
            ShapeError,
            r"scale has shape \(1,\), but Grid.* on a tensor of shape \(3, 4\) needs \(\)\.",
        ),
        (
            (X, torch.ones(4), torch.zeros(4), Grid(8, axis=0)),
            ShapeError,
            r"scale has shape \(4,\).* needs \(3,\)\.",
        ),
        (
            (X, torch.ones(3), torch.zeros(3, 1), Grid(8, axis=0)),
            ShapeError,
            r"zero_point has shape \(3, 1\).* needs \(3,\)\.",
        ),
        ((X, torch.ones(3), torch.zeros(3), Grid(8, axis=2)), GridError, r"axis=2 does not exist"),
        (
            (X, torch.ones(3, 1), torch.zeros(3, 1), Grid(4, axis=0, group_size=3)),
            GridError,
            r"group_size=3 does not divide the row of 4",
        ),
        (
            (X, torch.tensor([1.0, 0.0, 1.0]), torch.zeros(3), Grid(8, axis=0)),
            GridError,
            r"scale runs from 0.0 to 1.0; use positive",
        ),
        ((X, -ONE, NONE, Grid(8)), GridError, r"scale runs from -1.0 to -1.0"),
        (
            (X, ONE * 1e-39, NONE, Grid(8)),
            GridError,
            r"use positive normal finite numbers, 1.175e-38 or more\.",
        ),
        ((X, ONE * math.inf, NONE, Grid(8)), GridError, r"scale runs from inf to inf"),
        (
            (X, torch.tensor([1.0, math.nan, 1.0]), torch.zeros(3), Grid(8, axis=0)),
            GridError,
            r"scale runs from nan to nan",
        ),
        (
            (X, ONE, NONE * math.nan, Grid(8)),
            GridError,
            r"zero_point runs from nan to nan; use finite numbers\.",
        ),
        ((X, ONE, NONE, Grid(8), "gpu"), BackendError, r"backend='gpu' is unknown"),
    ],
)
def test_bad_input_is_refused(op, args, error, message):
    with pytest.raises(error, match=message):
        op(*args)


def test_codes_need_a_zero_point_on_the_grid():
    with pytest.raises(
        GridError, match=r"zero_point runs from 8.0 to 8.0, outside the grid; codes need it in -8\.\.7\."
    ):
        quantize(X, ONE, torch.tensor(8.0), Grid(4))
    assert fake_quantize(X, ONE, torch.tensor(8.0), Grid(4)).unique().tolist() == [-1.0]


def test_dequantize_takes_the_codes_of_the_grid_only():
    with pytest.raises(DTypeError, match=r"codes are torch.uint8, but Grid.* stores torch.int8; use that\."):
        dequantize(X.to(torch.uint8), ONE, NONE, Grid(8))
    with pytest.raises(ShapeError, match=r"scale has shape \(\)"):
        dequantize(X.to(torch.int8), ONE, NONE, Grid(8, axis=0))


def test_out_that_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match=r"out has shape \(4, 3\) and x \(3, 4\); make them equal\."):
        fake_quantize(X, ONE, NONE, Grid(8), out=torch.empty(4, 3))
    with pytest.raises(DTypeError, match=r"out is torch.float16 on cpu and x torch.float32"):
        fake_quantize(X, ONE, NONE, Grid(8), out=torch.empty(3, 4).half())
    with pytest.raises(DTypeError, match=r"out has strides \(1, 3\); use a contiguous tensor\."):
        fake_quantize(X, ONE, NONE, Grid(8), out=torch.empty(4, 3).t())
    with pytest.raises(BackendError, match=r"out= has no gradient, but an argument requires one"):
        fake_quantize(X, ONE.clone().requires_grad_(), NONE, Grid(8), out=torch.empty(3, 4))
    memory = torch.zeros(13)
    with pytest.raises(DTypeError, match=r"out overlaps x in part"):
        fake_quantize(memory[:12].view(3, 4), ONE, NONE, Grid(8), out=memory[1:].view(3, 4))


def test_a_pinned_backend_that_is_missing_raises(monkeypatch):
    monkeypatch.setattr(backend, "missing", lambda name: "it was not built" if name == "cpu" else None)
    with pytest.raises(
        BackendError, match=r"backend='cpu' cannot serve fake_quantize: it was not built; use reference\."
    ):
        fake_quantize(X, ONE, NONE, Grid(8), "cpu")
    assert fake_quantize(X, ONE, NONE, Grid(8)).shape == (3, 4)
