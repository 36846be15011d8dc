"""Coordinate descent: never up, on the grid, and at a point where no single code does better."""

import pytest
import torch

from pyquant.steps.rounding import coordinate
from pyquant.steps.rounding.coordinate import descend
from pyquant.steps.rounding.objective import Rounded, nearest
from tests.steps.rounding.problems import GRIDS, grouped_scales, on_grid, problem

# Engines work in float64 with the scale of float32 codes: a relative slack for its rounding.
SLACK = 1e-9


def value(objective, rounded):
    return objective.value((rounded.codes - rounded.zero) * rounded.scale)


@pytest.mark.parametrize("columns", [1, 9, 63, 65, 130])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_objective_never_rises(grid, columns):
    objective, scale, zero = problem(grid, columns=columns, seed=columns)
    start = nearest(objective.weight, scale, zero, grid)
    last = value(objective, start)
    for sweeps in (1, 2, 4):
        found = descend(objective, start, grid, sweeps)
        now = value(objective, found)
        assert on_grid(found, grid)
        assert (now <= last + SLACK * (1 + last.abs())).all()
        last = now
    if columns > 1:
        assert last.sum() < value(objective, start).sum()


@pytest.mark.parametrize("columns", [9, 70])
def test_no_single_code_does_better_afterwards(columns):
    grid = GRIDS[0]
    objective, scale, zero = problem(grid, groups=1, outputs=3, columns=columns)
    found = descend(objective, nearest(objective.weight, *grouped_or(scale, zero, objective), grid), grid, 50)
    best = value(objective, found)
    for column in range(columns):
        for step in (-1, 1):
            codes = found.codes.clone()
            codes[..., column] = (codes[..., column] + step).clamp(grid.qmin, grid.qmax)
            other = value(objective, Rounded(codes, found.scale, found.zero))
            assert (other >= best - SLACK * (1 + best.abs())).all()


def grouped_or(scale, zero, objective):
    """Scales of every element, which are not refitted, so that only codes move."""
    return scale.expand_as(objective.weight), zero.expand_as(objective.weight)


def test_the_block_size_changes_nothing(monkeypatch):
    grid = GRIDS[0]
    objective, scale, zero = problem(grid, columns=33)
    start = nearest(objective.weight, scale, zero, grid)
    whole = descend(objective, start, grid)
    monkeypatch.setattr(coordinate, "BLOCK", 7)
    assert torch.equal(descend(objective, start, grid).codes, whole.codes)


def test_groups_inside_a_row():
    grid = GRIDS[0]
    objective, _, _ = problem(grid)
    start = nearest(objective.weight, *grouped_scales(9, objective, grid), grid)
    found = descend(objective, start, grid)
    assert on_grid(found, grid) and torch.equal(found.scale, start.scale)
    assert value(objective, found).sum() < value(objective, start).sum()


@pytest.mark.parametrize("dead", [{"dead": (0, 4)}, {"dead_groups": (1,)}, {"dead_groups": (0, 1)}])
def test_dead_inputs_stay_at_nearest(dead):
    grid = GRIDS[0]
    objective, scale, zero = problem(grid, **dead)
    start = nearest(objective.weight, *grouped_or(scale, zero, objective), grid)
    found = descend(objective, start, grid)
    assert on_grid(found, grid) and torch.isfinite(value(objective, found)).all()
    columns = list(dead.get("dead", ()))
    assert torch.equal(found.codes[..., columns], start.codes[..., columns])
    for g in dead.get("dead_groups", ()):
        assert torch.equal(found.codes[g], start.codes[g])


def test_the_start_is_left_alone_and_results_repeat():
    grid = GRIDS[0]
    objective, scale, zero = problem(grid)
    start = nearest(objective.weight, scale, zero, grid)
    before = start.codes.clone()
    first, second = descend(objective, start, grid), descend(objective, start, grid)
    assert torch.equal(start.codes, before)
    assert torch.equal(first.codes, second.codes) and torch.equal(first.scale, second.scale)
