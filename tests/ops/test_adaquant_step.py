"""AdaQuant's fused step: all backends give the bytes of plain torch, and the step is that of autograd and Adam."""

from dataclasses import fields

import pytest
import torch

from pyquant.errors import BackendError, DTypeError, GridError, ShapeError
from pyquant.grid import Grid
from pyquant.ops import backend
from pyquant.ops.adaquant_step import BETAS, LearnedWeight, _cpu, adaquant_step
from pyquant.ops.fake_quantize import fake_quantize
from tests.ops.fake_quantize_cases import same_bytes
from tests.ops.test_fake_quantize_cpu import SETS, needs_extension

GRIDS = {"s4": Grid(4, axis=0), "u3": Grid(3, signed=False, axis=0), "s8": Grid(8, axis=0)}


def start(rows, n, grid, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, n, generator=generator) * 0.3
    scale = torch.rand(rows, generator=generator) * 0.1 + 0.02
    zero_point = torch.randint(grid.qmin, grid.qmax + 1, (rows,), generator=generator).float()
    return LearnedWeight.of(weight, scale, zero_point)


def state(learned):
    return [getattr(learned, field.name) for field in fields(learned)]


def gradients(rows, n, count=4):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(rows, n, generator=generator) for _ in range(count)]


def steps(rows, n, grid, step):
    """The state and the weight after some steps of ``step(learned, gradient, number, out)``."""
    learned = start(rows, n, grid)
    for number, gradient in enumerate(gradients(rows, n)):
        out = torch.full((rows, n), torch.nan)
        step(learned, gradient, number, out)
    return [*state(learned), out]


@needs_extension
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize(
    ("rows", "n"), [(1, 1), (3, 15), (5, 16), (2, 33), (7, 63), (4, 96), (3, 577), (131, 300)]
)
def test_every_instruction_set_gives_the_bytes_of_the_reference(rows, n, grid, monkeypatch):
    def reference(learned, gradient, number, out):
        adaquant_step(learned, gradient, grid, number, 0.3, 0.05, out=out, backend="reference")

    right = steps(rows, n, grid, reference)
    for isa in SETS:
        for threads in (1, 3):

            def native(learned, gradient, number, out, isa=isa, threads=threads):
                kernel = lambda *args: _cpu(*args, isa=isa, threads=threads)  # noqa: E731
                monkeypatch.setitem(backend._kernels, ("adaquant_step", "cpu"), kernel)
                adaquant_step(learned, gradient, grid, number, 0.3, 0.05, out=out, backend="cpu")

            for a, b in zip(steps(rows, n, grid, native), right, strict=True):
                assert same_bytes(a, b), (isa, threads)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_a_step_is_autograd_through_the_rounding_and_then_adam(grid):
    """In float64 from the op's own state of before, within what float32 loses in some ten roundings of what is added up."""
    rows, n, rates = 6, 50, (0.3, 0.05)
    learned = start(rows, n, grid)
    for number, gradient in enumerate(gradients(rows, n)):
        position = learned.position.clone().requires_grad_()
        log_scale = learned.log_scale.clone().requires_grad_()
        scale = learned.start * torch.exp(log_scale)
        fake_quantize(position * learned.start[:, None], scale, learned.zero_point, grid).backward(gradient)
        kept = [t.double() for t in state(learned)]
        out = adaquant_step(learned, gradient, grid, number, *rates, out=torch.empty(rows, n))
        for leaf, name, rate in ((position, "position", rates[0]), (log_scale, "log_scale", rates[1])):
            before = dict(zip([f.name for f in fields(learned)], kept, strict=True))
            prefix = "scale_" if name == "log_scale" else ""
            d, first, second = leaf.grad.double(), before[prefix + "first"], before[prefix + "second"]
            first = first + (d - first) * (1 - BETAS[0])
            second = second + (d * d - second) * (1 - BETAS[1])
            unbiased = second / (1 - BETAS[1] ** (number + 1))
            moved = rate * first / (1 - BETAS[0] ** (number + 1)) / (unbiased.sqrt() + 1e-12)
            # The gradient of a scale is a float32 sum of terms that cancel: what it loses, its square root gains in sign only.
            loss = 32 * torch.finfo(torch.float32).eps
            size = (
                before[name].abs()
                + moved.abs()
                + rate * (d.abs() + before[prefix + "first"].abs()) / (unbiased.sqrt() + 1e-12)
            )
            assert (getattr(learned, name) - (before[name] - moved)).abs().le(loss * size).all()
        right = fake_quantize(
            learned.position * learned.start[:, None], learned.scale(), learned.zero_point, grid
        )
        assert same_bytes(out, right)
    assert (learned.scale() / (learned.start * learned.log_scale.exp()) - 1).abs().max() < 2.0**-21


def test_a_rate_of_0_keeps_the_scales_and_the_result_may_take_the_gradient_s_place():
    grid = GRIDS["s4"]
    learned, other = start(4, 40, grid), start(4, 40, grid)
    gradient = gradients(4, 40)[0]
    right = adaquant_step(other, gradient, grid, 0, 0.1, 0.0, out=torch.empty(4, 40))
    assert adaquant_step(learned, gradient, grid, 0, 0.1, 0.0, out=gradient) is gradient
    assert same_bytes(gradient, right) and torch.equal(learned.scale(), learned.start)
    assert not torch.equal(learned.position, start(4, 40, grid).position)


def test_bad_input_is_refused():
    grid, learned, good = GRIDS["s4"], start(3, 8, GRIDS["s4"]), torch.zeros(3, 8)

    def refused(error, message, gradient=good, grid=grid, step=0, out=None, backend="auto"):
        place = torch.empty(3, 8) if out is None else out
        with pytest.raises(error, match=message):
            adaquant_step(learned, gradient, grid, step, 0.1, 0.1, out=place, backend=backend)

    refused(GridError, r"is not one scale a row; use axis=0 without groups\.", grid=Grid(4))
    refused(GridError, r"step=-1 makes no sense; count from 0\.", step=-1)
    refused(ShapeError, r"gradient has shape \(8, 3\) and position \(3, 8\)", gradient=good.t())
    refused(DTypeError, r"out is torch.float64 on cpu and position torch.float32", out=good.double())
    refused(DTypeError, r"gradient has strides \(1, 3\)", gradient=torch.zeros(8, 3).t())
    refused(DTypeError, r"out overlaps position; use memory of its own\.", out=learned.position)
    refused(
        BackendError,
        r"adaquant_step has no gradient, but gradient requires one",
        torch.zeros(3, 8, requires_grad=True),
    )
    refused(BackendError, r"backend='triton' cannot serve|does not serve", backend="triton")
    with pytest.raises(GridError, match=r"scale runs from 0.0 to 0.0"):
        LearnedWeight.of(good, torch.zeros(3), torch.zeros(3))
