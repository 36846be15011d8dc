"""Ranges: real 0 always has a code, scales are always usable, and the search never does worse than the extremes."""

from dataclasses import replace

import pytest
import torch

from pyquant.errors import DataError
from pyquant.grid import Grid
from pyquant.quantizer import (
    RANGE_METHODS,
    affine_qparams,
    choose_range,
    merge,
    observe,
    spread_qparams,
    weight_qparams,
)
from pyquant.reference import fake_quantize, quantize

TINY = torch.finfo(torch.float32).tiny
ACTIVATIONS = [Grid(8, signed=False), Grid(4, signed=False), Grid(2, signed=False)]
WEIGHTS = [
    Grid(8, axis=0),
    Grid(4, axis=0),
    Grid(2, axis=0),
    Grid(3, axis=0, symmetric=False),
    Grid(4, axis=0, signed=False),
    Grid(4, axis=0, group_size=6),
    Grid(4),
]


def skewed(rows, *shape, seed=0):
    """Rows of very different height with a long tail."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, *shape, generator=generator) ** 3
    return x * torch.logspace(-2, 1, rows).reshape(-1, *([1] * len(shape)))


def error(x, qparams, grid):
    scale, zero = spread_qparams(qparams, grid, tuple(x.shape))
    return (fake_quantize(x, scale, zero, grid.qmin, grid.qmax) - x).double().square()


VALUES = {
    "positive": torch.linspace(2.0, 3.1, 120).reshape(3, 40),
    "negative": torch.linspace(-3.3, -2.0, 120).reshape(3, 40),
    "mixed": skewed(3, 40),
    "zero": torch.zeros(3, 40),
    "constant": torch.full((3, 40), 0.7),
    "negative_constant": torch.full((3, 40), -0.7),
    "denormal": torch.full((3, 40), 1e-42),
    "huge": torch.tensor([[-3e38, 3e38]]),
}


@pytest.mark.parametrize("method", RANGE_METHODS)
@pytest.mark.parametrize("grid", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("value", VALUES)
def test_real_zero_has_a_code_and_the_scale_is_usable(value, grid, method):
    qparams = choose_range(observe(VALUES[value], value), grid, method)
    assert qparams.scale.shape == qparams.zero_point.shape == ()
    assert qparams.scale.dtype == qparams.zero_point.dtype == torch.float32
    assert TINY <= qparams.scale.item() < float("inf")
    zero = qparams.zero_point.item()
    assert zero == round(zero) and grid.qmin <= zero <= grid.qmax
    at_zero = fake_quantize(torch.zeros(1), qparams.scale, qparams.zero_point, grid.qmin, grid.qmax)
    assert at_zero.item() == 0.0


@pytest.mark.parametrize("grid", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("value", ["positive", "negative", "mixed"])
def test_minmax_covers_all_it_saw(value, grid):
    x = VALUES[value]
    qparams = choose_range(observe(x, "x"), grid, "minmax")
    shown = fake_quantize(x, qparams.scale, qparams.zero_point, grid.qmin, grid.qmax)
    # Rounding half a step, and half a step more by which the rounded zero point may move the ends.
    assert (shown - x).abs().max() <= qparams.scale * 1.0001


@pytest.mark.parametrize("grid", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("value", ["positive", "negative", "mixed"])
def test_squared_error_search_is_never_worse_than_the_extremes(value, grid):
    seen = observe(VALUES[value], value)
    searched, extremes = (
        error(seen.sample, choose_range(seen, grid, m), grid).sum() for m in ("mse", "minmax")
    )
    assert searched <= extremes


def test_squared_error_search_cuts_a_tail_at_few_bits():
    seen = observe(skewed(1, 4096), "x")
    searched, extremes = (
        error(seen.sample, choose_range(seen, Grid(4, signed=False), m), Grid(4, signed=False)).sum()
        for m in ("mse", "minmax")
    )
    assert searched < 0.75 * extremes


def test_mean_of_per_image_extremes_by_hand():
    x = torch.tensor([[-1.0, 0.0, 3.0], [-3.0, 1.0, 5.0], [-2.0, 0.5, 10.0]])
    grid = Grid(8, signed=False)
    qparams = choose_range(merge(observe(x[:1], "x"), observe(x[1:], "x")), grid, "mean_minmax")
    # Lows -1, -3, -2 average to -2; highs 3, 5, 10 to 6: a range of 8 on 255 steps.
    assert qparams.scale.item() == torch.tensor(8 / 255).item()
    assert qparams.zero_point.item() == round(2 / (8 / 255))


@pytest.mark.parametrize("cut", [1, 4, 6])
def test_merged_observations_are_those_of_the_whole(cut):
    x = skewed(7, 5)
    whole, parts = observe(x, "x"), merge(observe(x[:cut], "x"), observe(x[cut:], "x"))
    assert (parts.low, parts.high, parts.images) == (whole.low, whole.high, 7)
    assert parts.mean_low == pytest.approx(whole.mean_low, rel=8 * 2.0**-23)
    assert parts.mean_high == pytest.approx(whole.mean_high, rel=8 * 2.0**-23)
    assert torch.equal(parts.sample, whole.sample)


@pytest.mark.parametrize(
    "shape", [(1, 1), (3, 5, 7, 9), (2, 64, 8, 8), (1, 4097), (16, 16, 32, 32), (4096, 64)]
)
def test_the_sample_is_small_and_sees_every_channel(shape):
    x = torch.arange(shape[1]).reshape(1, -1, *[1] * (len(shape) - 2)).expand(shape).float()
    sample = observe(x, "x").sample
    assert min(x.numel(), 1366) <= len(sample) <= 4096
    if shape[1] <= 64:
        assert set(sample.tolist()) == set(range(shape[1]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_named(bad):
    x = torch.zeros(2, 3)
    x[1, 2] = bad
    with pytest.raises(DataError, match=r"'block\.conv1'.*NaN or infinite"):
        observe(x, "block.conv1")


def test_unknown_method():
    with pytest.raises(DataError, match=r"percentile.*minmax, mean_minmax, mse"):
        choose_range(observe(torch.ones(1, 2), "x"), Grid(8, signed=False), "percentile")


# ---------------------------------------------------------------------------------------------------------- weights
@pytest.mark.parametrize("grid", WEIGHTS, ids=str)
def test_weight_search_is_never_worse_than_the_extremes(grid):
    weight = skewed(5, 4, 3, 3)
    qparams = weight_qparams(weight, grid)
    assert qparams.scale.shape == grid.scale_shape(tuple(weight.shape))
    rows = weight.reshape(1, -1) if grid.axis is None else weight.reshape(-1, grid.group_size or 36)
    extremes = affine_qparams(rows.amin(1), rows.amax(1), grid)
    scale, zero = extremes.scale[:, None], extremes.zero_point[:, None]
    plain = (fake_quantize(rows, scale, zero, grid.qmin, grid.qmax) - rows).double().square().sum(1)
    searched = error(weight, qparams, grid).reshape(rows.shape).sum(1)
    assert (searched <= plain * (1 + 40 * 2.0**-24)).all()
    if grid.bits <= 4:
        assert searched.sum() < plain.sum()


@pytest.mark.parametrize("grid", WEIGHTS, ids=str)
def test_dead_and_constant_channels(grid):
    weight = skewed(4, 36)
    weight[0], weight[1], weight[2] = 0.0, 0.3, -1e-41
    qparams = weight_qparams(weight, grid)
    assert torch.isfinite(qparams.scale).all() and (qparams.scale >= TINY).all()
    assert (qparams.zero_point == qparams.zero_point.round()).all()
    assert (qparams.zero_point >= grid.qmin).all() and (qparams.zero_point <= grid.qmax).all()
    scale, zero = spread_qparams(qparams, grid, (4, 36))
    codes = quantize(weight, scale, zero, grid.qmin, grid.qmax)
    assert torch.equal(codes[0].float(), zero.expand(4, 36)[0])
    if grid.axis is not None:
        assert error(weight, qparams, grid)[1].max() <= (qparams.scale.reshape(4, -1)[1].max() / 2) ** 2
        assert qparams.scale.reshape(4, -1)[1].max() <= 0.3


def test_symmetric_zero_points():
    weight = skewed(3, 8)
    assert (weight_qparams(weight, Grid(4, axis=0)).zero_point == 0).all()
    assert (weight_qparams(weight, Grid(4, axis=0, signed=False, symmetric=True)).zero_point == 8).all()


@pytest.mark.parametrize("signed", [True, False])
def test_eight_bits_have_no_room_for_a_zero_point(signed):
    """Kernels multiply code minus zero point as int8; seven bits and fewer always fit."""
    w = skewed(5, 12).abs() + 0.1
    wide = Grid(8, signed, axis=0, symmetric=False)
    assert weight_qparams(w, wide).zero_point.tolist() == [0.0 if signed else 128.0] * 5
    assert torch.equal(weight_qparams(w, wide).scale, weight_qparams(w, replace(wide, symmetric=True)).scale)
    narrow = wide.with_bits(7)
    found = weight_qparams(w, narrow)
    assert (found.zero_point != (0 if signed else 64)).all()
    assert ((narrow.qmax - found.zero_point) <= 127).all() and (
        (narrow.qmin - found.zero_point) >= -128
    ).all()


def test_importance_moves_the_range_to_what_matters():
    weight = torch.tensor([[0.11, 0.09, 0.1, 0.08, 1.0, 0.12]])
    matters = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1e-6, 1.0]])
    grid = Grid(3, axis=0)
    plain, weighed = weight_qparams(weight, grid), weight_qparams(weight, grid, matters)
    assert weighed.scale < plain.scale
    assert (error(weight, weighed, grid) * matters).sum() < (error(weight, plain, grid) * matters).sum()


def test_weights_take_no_other_axis():
    with pytest.raises(DataError, match="axis=1"):
        weight_qparams(torch.ones(3, 4), Grid(4, axis=1))
