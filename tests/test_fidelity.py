"""Fidelity: the divergence by hand for every shape of output, and its mean over rows however batched."""

import math

import pytest
import torch

from pyquant.data import load_batches
from pyquant.fidelity import divergence, float_outputs, network_loss
from pyquant.graph import FloatView, run
from pyquant.model import QuantView, prepare
from pyquant.steps.calibrate import calibrate
from tests.networks import InvertedBottleneck, build, images, inputs, settle

EPS = torch.finfo(torch.float32).eps
# A number a row without a dimension of its own is a shape like any other.
SHAPES = [(3, 1), (3, 4, 5), (3, 2, 3, 4), (3,)]


@pytest.fixture(scope="module")
def coarse():
    """An inverted bottleneck at 3 bits, calibrated: its output is visibly off."""
    model, data = settle(InvertedBottleneck()), images(8)
    names = ("reduce", "expand", "depthwise", "project", "head")
    return calibrate(prepare(model, data[:1], bits=dict.fromkeys(names, (3, 8))), data)


def by_hand(target, output):
    """Kullback-Leibler divergence of two rows of scores in Python's own floats."""
    rows = []
    for t, o in zip(target.tolist(), output.tolist(), strict=True):
        p, q = ([math.exp(s - max(row)) for s in row] for row in (t, o))
        p, q = ([e / sum(row) for e in row] for row in (p, q))
        rows.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return rows


# ------------------------------------------------------------------------------------- divergence
def test_scores_by_hand():
    """Scores ``ln 1, ln 3`` against ``ln 1, ln 1``: 1/4 ln(1/2) + 3/4 ln(3/2)."""
    target, output = torch.tensor([[1.0, 3.0]]).log() + 7.0, torch.zeros(1, 2) - 2.0
    want = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    # Each log-softmax of scores up to 7 is off by a few units of their last place; p sums to 1.
    assert divergence(target, output).tolist() == pytest.approx([want], abs=8 * EPS * 8)
    backwards = 0.5 * math.log(2.0) + 0.5 * math.log(2 / 3)
    assert divergence(output, target).tolist() == pytest.approx([backwards], abs=8 * EPS * 8)


@pytest.mark.parametrize("classes", [2, 5, 63])
def test_scores_of_every_row_are_compared_on_their_own(seed, classes):
    target, output = (torch.randn(7, classes, generator=seed) * 3 for _ in range(2))
    largest = max(target.abs().max().item(), output.abs().max().item()) + math.log(classes)
    # The sum of p (log p - log q) has errors of a few last places of log p and log q, and p sums to 1.
    bound = 2 * largest * (classes + 8) * EPS
    assert divergence(target, output).tolist() == pytest.approx(by_hand(target, output), abs=bound)
    both = divergence(target, output)
    assert torch.equal(divergence(target[3:4], output[3:4]), both[3:4])


def test_scores_are_compared_up_to_a_constant(seed):
    """Softmax does not see a shift of a row; powers of two shift small whole numbers without rounding."""
    target, output = (torch.randint(-9, 10, (5, 4), generator=seed).float() for _ in range(2))
    assert torch.equal(divergence(target, output), divergence(target + 64, output - 32))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_other_shapes_by_hand(seed, shape):
    """Whole numbers: every sum is exact."""
    target = torch.randint(-8, 9, shape, generator=seed).float()
    step = torch.zeros(3, target[0].numel())
    step[0] = 2.0
    step[2, 0] = -4.0
    power = target.double().square().mean().item()
    want = [4.0 / power, 0.0, 16.0 / target[0].numel() / power]
    # One rounding each of two means and of the quotient.
    assert divergence(target, target + step.reshape(shape)).tolist() == pytest.approx(want, rel=4 * EPS)


def test_other_shapes_do_not_depend_on_the_unit(seed):
    target, output = (torch.randn(4, 3, 5, generator=seed) for _ in range(2))
    assert torch.equal(divergence(target * 1024, output * 1024), divergence(target, output))


@pytest.mark.parametrize("shape", [(4, 6), (4, 1), (4, 3, 2)], ids=str)
def test_equal_outputs_have_none(seed, shape):
    x = torch.randn(shape, generator=seed)
    assert torch.equal(divergence(x, x.clone()), torch.zeros(4))


def test_a_target_of_zeros_gives_a_finite_number():
    zeros = torch.zeros(2, 3, 4)
    assert torch.equal(divergence(zeros, zeros), torch.zeros(2))
    moved = divergence(zeros, zeros + 1e-6)
    assert torch.isfinite(moved).all() and (moved > 0).all()


@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 2)], ids=str)
def test_a_step_against_the_gradient_lowers_it(seed, shape):
    target, output = (torch.randn(shape, generator=seed) for _ in range(2))
    output.requires_grad_()
    loss = divergence(target, output).mean()
    (gradient,) = torch.autograd.grad(loss, output)
    step = 1e-2 / gradient.norm().item()
    lower = divergence(target, output.detach() - step * gradient).mean()
    # To first order the loss falls by step * |g|^2; half of it leaves room for the curvature.
    assert loss.item() - lower.item() > 0.5 * step * gradient.square().sum().item() > 0


# -------------------------------------------------------------------------------- whole networks
def test_float_outputs_are_the_networks(coarse):
    batches = load_batches(images(5), coarse.graph, 2)
    for batch, (output,) in zip(batches, float_outputs(coarse, batches), strict=True):
        assert torch.equal(output, run(coarse.graph, FloatView(coarse.state), batch)[coarse.graph.outputs[0]])
        assert not output.requires_grad


@pytest.mark.parametrize("sizes", [(7,), (1, 6), (4, 2, 1), (1,) * 7], ids=str)
def test_network_loss_is_a_mean_over_rows_for_uneven_batches(coarse, sizes):
    batches = [(part,) for part in images(7, seed=3).split(list(sizes))]
    outputs = [run(coarse.graph, QuantView(coarse), batch)[coarse.graph.outputs[0]] for batch in batches]
    # Targets that leave the outputs further and further behind, so that no two rows weigh the same.
    factor = torch.linspace(1.0, 2.0, 7)[:, None].split(list(sizes))
    targets = [output * f for output, f in zip(outputs, factor, strict=True)]
    parts = [by_hand(t, o) for t, o in zip(targets, outputs, strict=True)]
    want = sum(map(sum, parts)) / 7
    # As for scores by hand: five classes, scores below 8.
    bound = 2 * 8 * (5 + 8) * EPS
    assert network_loss(coarse, batches, [(t,) for t in targets]) == pytest.approx(want, abs=bound)
    mean_of_means = sum(sum(part) / len(part) for part in parts) / len(parts)
    if len(set(sizes)) > 1:
        assert abs(mean_of_means - want) > 100 * bound


def test_network_loss_is_zero_for_the_outputs_of_the_quantised_network(coarse):
    batches = load_batches(images(5), coarse.graph, 2)
    outputs = [run(coarse.graph, QuantView(coarse), batch)[coarse.graph.outputs[0]] for batch in batches]
    assert network_loss(coarse, batches, [(output,) for output in outputs]) == 0.0


def test_network_loss_needs_a_target_for_every_batch(coarse):
    batches = load_batches(images(5), coarse.graph, 2)
    with pytest.raises(ValueError, match="zip"):
        network_loss(coarse, batches, float_outputs(coarse, batches[:-1]))


def test_several_outputs_add_up():
    q = calibrate(prepare(build("two_outputs"), inputs("two_outputs", 1)), [inputs("two_outputs", 4)])
    batches = load_batches([inputs("two_outputs", 3)], q.graph)
    targets = float_outputs(q, batches)
    values = run(q.graph, QuantView(q), batches[0])
    parts = [
        divergence(target, values[name]) for target, name in zip(targets[0], q.graph.outputs, strict=True)
    ]
    assert network_loss(q, batches, targets) == pytest.approx(
        sum(part.double().mean().item() for part in parts), rel=1e-14
    )
    assert all(part.max() > 0 for part in parts)
