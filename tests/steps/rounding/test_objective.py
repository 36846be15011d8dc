"""The objective: the layer's squared error, damped; and the pieces engines share."""

import pytest
import torch

from pyquant.graph import Node
from pyquant.grid import Grid
from pyquant.moments import gather
from pyquant.steps.rounding.gptq import feed_back
from pyquant.steps.rounding.objective import DAMPING, DAMPINGS, Objective, Rounded, nearest, refit_scale
from tests.steps.rounding.problems import GRIDS, grouped_scales, moments, on_grid, problem


def test_differences_are_those_of_the_error_with_the_best_bias():
    found, weight = moments(2, 3, 6)
    objective = Objective.of(found, weight.float())
    other = weight + torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)) * 0.1
    change = objective.value(other) - objective.value(weight.float())
    # The damping adds its own term, a pull of 1 % of the mean curvature towards the float weight.
    power = torch.diagonal(found.centred()[0], dim1=-2, dim2=-1).mean(-1)[:, None]
    pulled = DAMPING * power * (other - weight.float().double()).square().sum(-1)
    error = [found.error(w, found.best_bias(w)) for w in (other, weight.float())]
    assert torch.allclose(change, error[0] - error[1] + pulled, rtol=1e-9, atol=1e-9)


def test_the_optimum_is_one():
    objective, _, _ = problem(GRIDS[0])
    best = objective.optimum()
    for seed in range(3):
        step = torch.randn(best.shape, generator=torch.Generator().manual_seed(seed)) * 0.01
        assert (objective.value(best + step) > objective.value(best)).all()


@pytest.mark.parametrize("dead_groups", [(1,), (0, 1)])
def test_dead_groups_keep_their_weights(dead_groups):
    objective, _, _ = problem(GRIDS[0], dead_groups=dead_groups)
    assert torch.isfinite(objective.h).all() and (torch.linalg.eigvalsh(objective.h) > 0).all()
    for g in dead_groups:
        assert torch.allclose(objective.optimum()[g], objective.weight[g], rtol=0, atol=1e-12)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_nearest(grid):
    objective, scale, zero = problem(grid)
    found = nearest(objective.weight, scale, zero, grid)
    assert on_grid(found, grid)
    inside = (found.codes > grid.qmin) & (found.codes < grid.qmax)
    distance = (found.real() - objective.weight).abs()
    assert (distance[inside] <= scale.double().expand_as(distance)[inside] * (0.5 + 2.0**-18)).all()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_refitting_the_scale_lowers_the_objective(grid):
    objective, scale, zero = problem(grid)
    start = nearest(objective.weight, scale * 1.2, zero, grid)
    after = refit_scale(objective, start)
    assert torch.equal(after.codes, start.codes)

    def value(r):
        return objective.value((r.codes - r.zero) * r.scale)

    assert (value(after) <= value(start)).all() and value(after).sum() < value(start).sum()
    for factor in (0.999, 1.001):
        off = Rounded(after.codes, after.scale * factor, after.zero)
        moved = after.scale != start.scale
        assert (value(off)[moved[..., 0]] >= value(after)[moved[..., 0]]).all()


def test_scales_of_groups_and_of_rows_of_zeros_are_left_alone():
    grid = GRIDS[0]
    objective, scale, zero = problem(grid)
    start = nearest(objective.weight, *grouped_scales(9, objective, grid), grid)
    assert refit_scale(objective, start) is start
    zeros = Rounded(torch.zeros_like(objective.weight), scale.double(), zero.double())
    assert torch.equal(refit_scale(objective, zeros).scale, scale.double())


def test_a_scale_moves_by_less_than_a_factor_of_two():
    objective, scale, zero = problem(Grid(2, axis=0))
    for factor in (0.1, 10.0):
        start = nearest(objective.weight, scale * factor, zero, Grid(2, axis=0))
        ratio = refit_scale(objective, start).scale / start.scale
        assert (ratio > 0.5).all() and (ratio < 2.0).all()


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_fewer_rows_than_inputs_leave_it_solvable(rows):
    """Float32 sums of a few rows have covariances that are rounding noise, of either sign."""
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        x, weight = torch.rand(rows, 24, generator=generator) * 3, torch.randn(4, 24, generator=generator)
        found = gather(Node("fc", "linear", ("x",)), x, x @ weight.T, (1, 1))
        objective = Objective.of(found, weight)
        assert (torch.linalg.eigvalsh(objective.h) > 0).all()
        scale, zero = torch.full((1, 4, 1), 0.4), torch.zeros(1, 4, 1)
        assert on_grid(feed_back(objective, scale, zero, GRIDS[0]), GRIDS[0])


@pytest.mark.parametrize(("value", "seed"), [(0.0, 0), (0.1, 0), (1.0, 0), (1.0, 1), (1e-20, 0)])
def test_rows_that_are_all_alike_leave_it_solvable(value, seed):
    """Their covariance is rounding noise, of either sign."""
    node = Node("site", "linear", ("x",))
    generator = torch.Generator().manual_seed(seed)
    x = value * torch.rand(72, generator=generator).expand(3000, 72)
    weight = torch.randn(8, 72, generator=generator)
    found = gather(node, x, x @ weight.T, (1, 1))
    for damping in DAMPINGS:
        objective = Objective.of(found, weight, damping)
        assert (torch.linalg.eigvalsh(objective.h) > 0).all()
        scale = objective.weight.abs().amax(-1, keepdim=True) / 7
        rounded = feed_back(objective, scale, torch.zeros_like(scale), Grid(4, axis=0))
        assert torch.isfinite(rounded.codes).all()
