"""Grid: what it accepts, its bounds, and the shapes of its scales."""

import pytest
import torch

from pyquant.errors import GridError, PyquantError
from pyquant.grid import Grid, Plan, SiteGrids


@pytest.mark.parametrize("bits", [1, 0, 9, -4, 4.0, "8", True, None])
def test_width_outside_2_to_8_is_refused(bits):
    with pytest.raises(
        GridError, match=r"bits=.* is not a width pyquant has; use a whole number from 2 to 8\."
    ):
        Grid(bits)


@pytest.mark.parametrize("group_size", [0, -1, 1.5, True])
def test_group_size_below_one_is_refused(group_size):
    with pytest.raises(
        GridError, match=r"group_size=.* is not a group; use a positive whole number or None\."
    ):
        Grid(8, axis=0, group_size=group_size)


@pytest.mark.parametrize("axis", [None, 1, -1])
def test_groups_need_axis_0(axis):
    with pytest.raises(GridError, match=rf"group_size=32 with axis={axis} has no meaning; use axis=0\."):
        Grid(4, axis=axis, group_size=32)


def test_errors_are_pyquant_and_value_errors():
    with pytest.raises(PyquantError):
        Grid(1)
    with pytest.raises(ValueError, match="bits=1"):
        Grid(1)


@pytest.mark.parametrize("bits", range(2, 9))
def test_bounds(bits):
    signed, unsigned = Grid(bits, signed=True), Grid(bits, signed=False)
    assert (signed.qmin, signed.qmax) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert (unsigned.qmin, unsigned.qmax) == (0, 2**bits - 1)
    assert (signed.code_dtype, unsigned.code_dtype) == (torch.int8, torch.uint8)
    assert torch.iinfo(signed.code_dtype).min <= signed.qmin and unsigned.qmax <= torch.iinfo(torch.uint8).max


def test_symmetric_follows_signed_unless_said():
    assert Grid(8, signed=True).symmetric is True
    assert Grid(8, signed=False).symmetric is False
    assert Grid(8, signed=False, symmetric=True).symmetric is True
    assert Grid(8, signed=True, symmetric=False).symmetric is False


def test_with_bits_keeps_everything_else():
    grid = Grid(8, signed=False, axis=0, group_size=16, symmetric=True)
    assert grid.with_bits(3) == Grid(3, signed=False, axis=0, group_size=16, symmetric=True)
    with pytest.raises(GridError):
        grid.with_bits(16)


@pytest.mark.parametrize(
    ("grid", "shape", "right"),
    [
        (Grid(8), (), ()),
        (Grid(8), (3, 5, 7), ()),
        (Grid(8, axis=0), (3, 5, 7), (3,)),
        (Grid(8, axis=1), (3, 5, 7), (5,)),
        (Grid(8, axis=-1), (3, 5, 7), (7,)),
        (Grid(4, axis=0, group_size=5), (3, 5, 7), (3, 7)),
        (Grid(4, axis=0, group_size=35), (3, 5, 7), (3, 1)),
        (Grid(4, axis=0, group_size=1), (13,), (13, 1)),
        (Grid(4, axis=0, group_size=4), (3, 0), (3, 0)),
    ],
)
def test_scale_shape(grid, shape, right):
    assert grid.scale_shape(shape) == right


def test_scale_shape_refuses_an_axis_that_is_not_there():
    for axis, shape in ((2, (3, 5)), (-3, (3, 5)), (0, ())):
        with pytest.raises(GridError, match=rf"axis={axis} does not exist in a tensor of shape"):
            Grid(8, axis=axis).scale_shape(shape)


def test_scale_shape_refuses_groups_that_do_not_divide_the_row():
    with pytest.raises(
        GridError,
        match=r"group_size=4 does not divide the row of 35 elements .* use a divisor of 35, or None\.",
    ):
        Grid(4, axis=0, group_size=4).scale_shape((3, 5, 7))


def test_plan_is_replaced_never_changed():
    eight = SiteGrids(Grid(8, axis=0), Grid(8, signed=False))
    four = SiteGrids(Grid(4, axis=0), Grid(8, signed=False))
    plan = Plan({"a": eight, "b": eight})
    changed = plan.replace({"b": four, "c": four})
    assert dict(plan) == {"a": eight, "b": eight}
    assert dict(changed) == {"a": eight, "b": four, "c": four}
    assert len(changed) == 3 and list(changed) == ["a", "b", "c"]
