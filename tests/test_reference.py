"""The oracle itself, against values worked out by hand, exact rational arithmetic and plain integer loops."""

import itertools
import math
from fractions import Fraction

import pytest
import torch

from pyquant import reference
from pyquant.errors import ShapeError

NAN, INF = math.nan, math.inf


def scalar(value):
    return torch.tensor(value, dtype=torch.float32)


# --------------------------------------------------------------------------------------------------- the grid
def test_ties_go_to_even():
    x = torch.tensor([0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5]) * 0.25
    codes = reference.quantize(x, scalar(0.25), scalar(0.0), -8, 7)
    assert codes.tolist() == [0, 2, 2, 4, 0, -2, -2]


def test_the_zero_point_is_added_after_rounding():
    # round(0.5) + 1 = 1, whereas round(0.5 + 1) would be 2.
    assert reference.quantize(scalar(0.5), scalar(1.0), scalar(1.0), 0, 15).item() == 1


def test_codes_clamp_and_a_nan_becomes_the_zero_point():
    x = torch.tensor([1e30, -1e30, INF, -INF, NAN, 7.4, -8.6])
    assert reference.quantize(x, scalar(1.0), scalar(-3.0), -8, 7).tolist() == [7, -8, 7, -8, -3, 4, -8]


def test_fake_quantize_keeps_a_nan_and_bounds_infinities():
    y = reference.fake_quantize(torch.tensor([NAN, INF, -INF]), scalar(0.5), scalar(-3.0), -8, 7)
    assert math.isnan(y[0]) and y[1:].tolist() == [5.0, -2.5]


def test_division_is_true_division():
    """A reciprocal rounds twice: find a quotient where that shows, and check it against exact fractions."""
    scale = scalar(0.3)
    x = scale * (torch.arange(2000, dtype=torch.float32) + 0.5)
    codes = reference.quantize(x, scale, scalar(0.0), -(2**20), 2**20)
    exact = []
    for value in x.tolist():
        ratio = Fraction(value) / Fraction(scale.item())
        exact.append(round(torch.tensor(float(ratio), dtype=torch.float32).item()))
    assert codes.tolist() == exact
    assert codes.tolist() != torch.round(x * (1.0 / scale)).int().tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_rounded_once_at_the_end(dtype):
    x = torch.linspace(-3, 3, 101).to(dtype)
    y = reference.fake_quantize(x, scalar(0.1), scalar(1.0), -8, 7)
    assert y.dtype == dtype
    assert torch.equal(y, reference.fake_quantize(x.float(), scalar(0.1), scalar(1.0), -8, 7).to(dtype))


def test_backward_formulas():
    """Inside, below, above, at both bounds, and a NaN; scale 0.5, zero point 1, codes -8..7."""
    x = torch.tensor([0.3, -4.6, 3.2, -4.5, 3.0, NAN])
    dy = torch.tensor([2.0, 3.0, 5.0, 7.0, 11.0, 13.0])
    dx, dscale, dzero = reference.fake_quantize_backward(dy, x, scalar(0.5), scalar(1.0), -8, 7)
    assert dx.tolist() == [2.0, 3.0, 5.0, 7.0, 11.0, 0.0]
    ratio = (x / 0.5).tolist()
    inside = [2.0 * (1 - ratio[0]), 3.0 * (-9 - ratio[1]), 5.0 * (6 - ratio[2]), 0.0, 0.0]
    assert dscale[:5].tolist() == pytest.approx(inside, rel=2**-22)
    assert dzero.tolist() == [0.0, 0.0, 0.0, 0.0, 0.0, -6.5]
    x = torch.tensor([-5.0, 3.5])
    dx, dscale, dzero = reference.fake_quantize_backward(
        torch.tensor([2.0, 3.0]), x, scalar(0.5), scalar(1.0), -8, 7
    )
    assert dx.tolist() == [0.0, 0.0]
    assert dscale.tolist() == [2.0 * (-8 - 1), 3.0 * (7 - 1)]
    assert dzero.tolist() == [-1.0, -1.5]


def test_spread():
    shape = (2, 3, 2)
    assert reference.spread(scalar(4.0), shape, None, None).shape == ()
    assert reference.spread(torch.tensor([1.0, 2.0, 3.0]), shape, 1, None).shape == (1, 3, 1)
    groups = reference.spread(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), shape, 0, 3)
    assert groups.flatten().tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]


# --------------------------------------------------------------------------------------------------- integers
@pytest.mark.parametrize(
    ("groups", "stride", "padding", "dilation"),
    [(1, (1, 1), (0, 0, 0, 0), (1, 1)), (2, (2, 1), (1, 0, 2, 1), (1, 2)), (4, (1, 2), (1, 1, 1, 1), (2, 1))],
)
def test_accumulate_conv_is_a_plain_integer_loop(groups, stride, padding, dilation):
    generator = torch.Generator().manual_seed(3)
    b, h, w, c, n, kh, kw = 2, 7, 6, 4, 8, 3, 2
    x = torch.randint(0, 256, (b, h, w, c), generator=generator, dtype=torch.uint8)
    weight = torch.randint(-128, 128, (n, c // groups, kh, kw), generator=generator, dtype=torch.int8)
    weight_zero = torch.randint(-3, 4, (n,), generator=generator)
    acc = reference.accumulate_conv(x, 77, weight, weight_zero, stride, padding, dilation, groups)
    top, left, bottom, right = padding
    oh = (h + top + bottom - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    ow = (w + left + right - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    assert acc.shape == (b, oh, ow, n)
    codes, kernel, zeros = x.tolist(), weight.tolist(), weight_zero.tolist()
    per = c // groups
    for image, i, j, o in itertools.product(range(b), range(oh), range(ow), range(n)):
        total = 0
        for ci, u, v in itertools.product(range(per), range(kh), range(kw)):
            y, z = i * stride[0] - top + u * dilation[0], j * stride[1] - left + v * dilation[1]
            if 0 <= y < h and 0 <= z < w:
                total += (codes[image][y][z][o // (n // groups) * per + ci] - 77) * (
                    kernel[o][ci][u][v] - zeros[o]
                )
        assert acc[image, i, j, o].item() == total


def round32(value: Fraction) -> Fraction:
    """The float32 nearest to a product or sum of two; passing through float64 is harmless there."""
    return Fraction(torch.tensor(float(value), dtype=torch.float32).item())


def test_requantize_rounds_every_operation_by_itself():
    generator = torch.Generator().manual_seed(5)
    acc = torch.randint(-(2**20), 2**20, (211, 3), generator=generator).double()
    multiplier = torch.tensor([1e-4, 3.3e-5, 7.7e-4])
    bias = torch.tensor([0.1, -3.7, 1e-3])
    residual = torch.randint(0, 256, (211, 3), generator=generator, dtype=torch.uint8)
    y = reference.requantize(acc, multiplier, bias, 100, 3, 250, (residual, 9, 0.37))
    factor = Fraction(torch.tensor(0.37, dtype=torch.float32).item())
    for row, column in itertools.product(range(211), range(3)):
        value = round32(Fraction(int(acc[row, column])) * Fraction(multiplier[column].item()))
        value = round32(value + Fraction(bias[column].item()))
        value = round32(value + round32((int(residual[row, column]) - 9) * factor))
        assert y[row, column].item() == min(max(round(value) + 100, 3), 250)


def test_the_zero_point_is_added_after_rounding_in_every_epilogue():
    """Sums of 0.5 and 1.5 round to 0 and 2; moved by an odd zero point first, they would round to 2 and 2 less 1."""
    one, zeros = torch.ones(1), torch.zeros(1)
    acc = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    assert reference.requantize(acc, one, zeros + 0.5, 11, 0, 255).tolist() == [[11], [13]]
    a = torch.tensor([1, 3], dtype=torch.uint8)
    assert reference.add(a, 0, 0.5, a, 0, 0.0, 11, 0, 255).tolist() == [11, 13]
    x = a.reshape(2, 1, 1, 1)
    assert reference.avg_pool(x, 0, 0.5, 11, 0, 255, (1, 1), (1, 1)).flatten().tolist() == [11, 13]


def test_taps_sum_to_what_a_convolution_gives():
    generator = torch.Generator().manual_seed(3)
    for groups, stride, dilation in ((1, (1, 1), (1, 1)), (2, (2, 1), (1, 3)), (6, (3, 2), (2, 1))):
        x = torch.randint(-255, 256, (2, 6, 11, 13), generator=generator).double()
        weight = torch.randint(-128, 128, (12, 6 // groups, 3, 2), generator=generator).double()
        want = torch.nn.functional.conv2d(x, weight, None, stride, 0, dilation, groups)
        assert torch.equal(reference.sum_taps(x, weight, stride, dilation, groups), want.permute(0, 2, 3, 1))


def test_add_rounds_each_product():
    a, b = torch.meshgrid(torch.arange(0, 256, 5), torch.arange(0, 256, 7), indexing="ij")
    y = reference.add(a.to(torch.uint8), 128, 0.613, b.to(torch.uint8), 3, 1.27, 11, 0, 255)
    left, right = (Fraction(torch.tensor(v, dtype=torch.float32).item()) for v in (0.613, 1.27))
    for i, j in itertools.product(range(a.shape[0]), range(a.shape[1])):
        total = round32(round32((int(a[i, j]) - 128) * left) + round32((int(b[i, j]) - 3) * right))
        assert y[i, j].item() == min(max(round(total) + 11, 0), 255)


def test_pools():
    x = torch.arange(2 * 4 * 6 * 3).remainder(251).to(torch.uint8).reshape(2, 4, 6, 3)
    y = reference.max_pool(x, (3, 3), (2, 2), (1, 1, 1, 1))
    assert y.shape == (2, 2, 3, 3)
    assert y[1, 0, 0, 2] == x[1, 0:2, 0:2, 2].max() and y[0, 1, 2, 1] == x[0, 1:4, 3:6, 1].max()
    mean = reference.avg_pool(x, 7, 1 / 24, 7, 0, 255, (4, 6), (1, 1))
    assert mean.shape == (2, 1, 1, 3)
    assert (mean.flatten(0, 2) - x.float().mean((1, 2))).abs().max() <= 0.5 + 1e-4
    with pytest.raises(ShapeError, match=r"outputs that see padding only; use less padding"):
        reference.max_pool(x, (1, 1), (1, 1), (1, 1, 1, 1))


def test_lookup():
    table = torch.arange(255, -1, -1, dtype=torch.uint8)
    x = torch.tensor([[0, 1], [254, 255]], dtype=torch.uint8)
    assert reference.lookup(x, table).tolist() == [[255, 254], [1, 0]]
