"""Learned rounding: better than nearest, never worse, on the grid, the same bytes every time."""

from dataclasses import replace

import pytest
import torch

from pyquant.steps.rounding.adaquant import learn
from pyquant.steps.rounding.objective import nearest
from tests.steps.rounding.problems import GRIDS, grouped_scales, on_grid, problem


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_better_than_nearest_on_correlated_inputs(grid):
    objective, scale, zero = problem(grid, columns=20)
    found, plain = learn(objective, scale, zero, grid), nearest(objective.weight, scale, zero, grid)
    assert on_grid(found, grid)
    now, before = objective.value(found.real()), objective.value(plain.real())
    assert (now <= before).all()
    least = objective.value(objective.optimum()).sum()
    assert now.sum() - least < 0.7 * (before.sum() - least)


@pytest.mark.parametrize("steps", [1, 3, 26])
def test_no_row_is_ever_worse(steps):
    objective, scale, zero = problem(GRIDS[1])
    found, plain = learn(objective, scale, zero, GRIDS[1], steps), nearest(objective.weight, scale, zero, GRIDS[1])
    assert (objective.value(found.real()) <= objective.value(plain.real())).all()


def test_a_weight_may_move_by_more_than_one_code():
    objective, scale, zero = problem(GRIDS[3], columns=6)
    far = replace(objective, t=(objective.weight + 3 * scale.double()) @ objective.h)
    found, plain = learn(far, scale, zero, GRIDS[3]), nearest(far.weight, scale, zero, GRIDS[3])
    inside = (plain.codes - GRIDS[3].qmax).abs() > 4
    moved = (found.codes - plain.codes)[inside]
    assert moved.min() >= 0 and moved.median() >= 2


def test_scales_move_with_rows_and_stay_with_groups():
    grid = GRIDS[0]
    objective, scale, zero = problem(grid, columns=18)
    assert not torch.equal(learn(objective, scale, zero, grid).scale, scale.double())
    scale, zero = grouped_scales(18, objective, grid)
    found = learn(objective, scale, zero, grid)
    assert on_grid(found, grid) and torch.equal(found.scale, scale.double())
    plain = nearest(objective.weight, scale, zero, grid)
    assert objective.value(found.real()).sum() < objective.value(plain.real()).sum()


@pytest.mark.parametrize("dead", [{"dead": (0, 4)}, {"dead_groups": (1,)}, {"dead_groups": (0, 1)}])
def test_dead_inputs(dead):
    objective, scale, zero = problem(GRIDS[0], **dead)
    found = learn(objective, scale, zero, GRIDS[0])
    assert on_grid(found, GRIDS[0])
    assert (objective.value(found.real()) <= objective.value(nearest(objective.weight, scale, zero, GRIDS[0]).real())).all()


def test_the_magnitude_of_the_data_does_not_matter():
    """Rates are relative: data a thousand times as large gives the same codes."""
    objective, scale, zero = problem(GRIDS[0])
    larger = replace(objective, h=objective.h * 2.0**20, t=objective.t * 2.0**20)
    assert torch.equal(learn(larger, scale, zero, GRIDS[0]).codes, learn(objective, scale, zero, GRIDS[0]).codes)


def test_twice_the_same_bytes_and_no_gradient_left():
    objective, scale, zero = problem(GRIDS[0])
    with torch.no_grad():
        first = learn(objective, scale, zero, GRIDS[0])
    second = learn(objective, scale, zero, GRIDS[0])
    assert torch.equal(first.codes, second.codes) and torch.equal(first.scale, second.scale)
    assert not second.scale.requires_grad and not second.codes.requires_grad
