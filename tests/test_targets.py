"""What the project promises, on the real networks and in integer execution. The slow ones run in ``make test-all``."""

import pytest
import torch

from pyquant import zoo
from pyquant.errors import MissingPackageError
from pyquant.model import prepare
from pyquant.pipeline import Recipe, quantize_model
from pyquant.runtime.compare import code_exact, integer_vs_fake_agreement
from pyquant.runtime.net import deploy, load
from pyquant.steps.calibrate import calibrate

NETWORKS = ("efficientnet_lite0", "resnet20")


def real(name):
    """A zoo network, its calibration images, its evaluation images and their accepted classes; or a skip."""
    try:
        return zoo.load(name), zoo.calibration(name), *zoo.evaluation(name)
    except MissingPackageError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=NETWORKS)
def calibrated(request):
    """A calibrated W8A8 network, and three evaluation images."""
    model, images, evaluation, _ = real(request.param)
    return calibrate(prepare(model, images[:1]), images[:16]), evaluation[:3]


def test_every_op_is_an_integer_op(calibrated):
    q, _ = calibrated
    share = deploy(q).share()
    assert share["float"] == 0
    assert share["boundary"] == 1  # quantise the input; the last site's epilogue gives floats itself
    assert share["integer"] >= len(q.graph.sites)


def test_bytes_are_those_of_the_code_exact_simulation(calibrated):
    q, images = calibrated
    assert code_exact(deploy(q).program, [images])


def test_fake_quant_differs_in_under_one_code_in_ten_thousand(calibrated):
    q, images = calibrated
    assert integer_vs_fake_agreement(q, deploy(q).program, [images]) > 1 - 1e-4


def test_a_file_needs_no_model(calibrated, tmp_path):
    q, images = calibrated
    net = deploy(q)
    net.save(tmp_path / "net.pq")
    assert torch.equal(load(tmp_path / "net.pq")(images), net(images))


def top1(net, images, accepted):
    with torch.no_grad():
        scores = torch.cat([net(batch) for batch in images.split(200)])
    return zoo.accuracy(scores, accepted, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "loss"),
    [(Recipe.fixed(8, 8), 0.001), (Recipe.fixed(4, 4), 0.010), (Recipe.advanced(0.13), 0.010)],
    ids=["w8a8", "w4a4", "budget-0.13"],
)
def test_resnet20_on_the_full_test_set(recipe, loss):
    model, images, evaluation, accepted = real("resnet20")
    net = deploy(quantize_model(model, images, recipe))
    assert top1(net, evaluation, accepted) >= top1(model, evaluation, accepted) - loss
    if recipe.budget is not None:
        assert net.sizes["weights"] <= recipe.budget * net.sizes["float_weights"]
        assert net.sizes["total"] <= 0.145 * net.sizes["float_total"]
