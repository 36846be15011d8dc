"""Error feedback: better than nearest where inputs are alike, and the same as nearest where they are not."""

import pytest
import torch

from pyquant.steps.rounding import gptq
from pyquant.steps.rounding.gptq import feed_back
from pyquant.steps.rounding.objective import Objective, nearest
from tests.steps.rounding.problems import GRIDS, grouped_scales, on_grid, problem


@pytest.mark.parametrize("columns", [9, 63, 65, 130])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_better_than_nearest_on_correlated_inputs(grid, columns):
    objective, scale, zero = problem(grid, columns=columns, seed=columns)
    found, plain = feed_back(objective, scale, zero, grid), nearest(objective.weight, scale, zero, grid)
    assert on_grid(found, grid)
    least = objective.value(objective.optimum()).sum()
    excess, nearest_excess = (objective.value(r.real()).sum() - least for r in (found, plain))
    assert 0 < excess < 0.7 * nearest_excess


def test_independent_inputs_round_to_nearest():
    weight = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h = torch.diag_embed(torch.linspace(1, 2, 8, dtype=torch.float64))[None]
    objective = Objective(weight, h, weight @ h)
    scale, zero = torch.full((1, 4, 1), 0.3), torch.zeros(1, 4, 1)
    found = feed_back(objective, scale, zero, GRIDS[0])
    assert torch.equal(found.codes, nearest(weight, scale, zero, GRIDS[0]).codes)


def test_feedback_column_by_column_as_the_source_states_it():
    """Round the column of most curvature; shift the others by the inverse of what is left of H; drop it; repeat."""
    grid = GRIDS[0]
    objective, scale, zero = problem(grid, groups=1, outputs=2, columns=6)
    found = feed_back(objective, scale, zero, grid)
    h, w, s = objective.h[0], objective.optimum()[0].clone(), scale[0].double()
    codes = torch.zeros_like(w)
    left = h.diagonal().argsort(descending=True).tolist()
    while left:
        j = left[0]
        inverse = torch.linalg.inv(h[left][:, left])
        codes[:, j] = torch.round(w[:, j] / s[:, 0]).clamp(grid.qmin, grid.qmax)
        error = (w[:, j] - codes[:, j] * s[:, 0]) / inverse[0, 0]
        w[:, left] -= error[:, None] * inverse[0]
        left = left[1:]
    assert torch.equal(found.codes[0], codes)


def test_the_block_size_changes_nothing(monkeypatch):
    objective, scale, zero = problem(GRIDS[0], columns=33)
    whole = feed_back(objective, scale, zero, GRIDS[0])
    monkeypatch.setattr(gptq, "BLOCK", 7)
    assert torch.equal(feed_back(objective, scale, zero, GRIDS[0]).codes, whole.codes)


@pytest.mark.parametrize("dead", [{"dead": (0, 4)}, {"dead_groups": (1,)}, {"dead_groups": (0, 1)}])
def test_dead_inputs(dead):
    grid = GRIDS[0]
    objective, scale, zero = problem(grid, **dead)
    found, plain = feed_back(objective, scale, zero, grid), nearest(objective.weight, scale, zero, grid)
    assert on_grid(found, grid)
    for g in dead.get("dead_groups", ()):
        assert torch.equal(found.codes[g], plain.codes[g])


def test_groups_inside_a_row():
    grid = GRIDS[0]
    objective, _, _ = problem(grid)
    scale, zero = grouped_scales(9, objective, grid)
    found, plain = feed_back(objective, scale, zero, grid), nearest(objective.weight, scale, zero, grid)
    assert on_grid(found, grid)
    assert objective.value(found.real()).sum() < objective.value(plain.real()).sum()
