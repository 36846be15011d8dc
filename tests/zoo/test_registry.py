import subprocess
import sys

import pytest
import torch

from pyquant import zoo
from pyquant.errors import DataError, PyquantError
from pyquant.zoo.fashion_mnist import fashion_mnist


@pytest.mark.parametrize("function", [zoo.load, zoo.calibration, zoo.evaluation])
def test_unknown_name_lists_the_names(function):
    with pytest.raises(
        DataError, match="no model 'vgg'; it has efficientnet_lite0, resnet20, mobilenet_v2_small"
    ):
        function("vgg")


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2_small"])
def test_fashion_mnist_networks(installed, name):
    calibration, (images, accepted) = installed(zoo.calibration, name), installed(zoo.evaluation, name)
    (train_images, _), (test_images, test_labels) = fashion_mnist()
    assert torch.equal(calibration, train_images[:512])
    # A view would keep all 60,000 images in memory.
    kept_bytes = calibration.untyped_storage().nbytes()
    assert kept_bytes == 512 * 28 * 28 * 4
    assert torch.equal(images, test_images)
    assert accepted == [[label] for label in test_labels.tolist()]
    model = zoo.load(name)
    assert not model.training
    with torch.no_grad():
        assert zoo.accuracy(model(images[:200]), accepted[:200]) > 0.85


def test_efficientnet_lite0(installed):
    calibration = installed(zoo.calibration, "efficientnet_lite0")
    images, accepted = installed(zoo.evaluation, "efficientnet_lite0")
    assert calibration.shape == (160, 3, 224, 224)
    assert len(images) == len(accepted) in (89, 20)
    assert all(isinstance(right, list) and right for right in accepted)
    known = {image.numpy().tobytes() for image in calibration}
    assert not any(image.numpy().tobytes() in known for image in images)


@pytest.mark.slow
def test_efficientnet_lite0_on_the_split(installed):
    images, accepted = installed(zoo.evaluation, "efficientnet_lite0")
    model = installed(zoo.load, "efficientnet_lite0")
    if len(images) != 89:
        pytest.skip("Debian package tuxpaint-stamps-default is not installed; run: make data")
    with torch.no_grad():
        logits = torch.cat([model(x) for x in images.split(16)])
    # One image either way: other machines may turn one whose two best classes are level.
    assert zoo.accuracy(logits, accepted) == pytest.approx(73 / 89, abs=1.01 / 89)


def test_everything_is_missing(nothing_installed):
    for name in zoo.names():
        for function in (zoo.calibration, zoo.evaluation):
            with pytest.raises(PyquantError, match="run: "):
                function(name)


def test_the_zoo_imports_without_pillow():
    code = "import sys; sys.modules['PIL'] = None; from pyquant import zoo; zoo.load('resnet20')"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = code.replace("load('resnet20')", "evaluation('efficientnet_lite0')")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingPackageError: pillow is not installed; run: pip install 'pillow>=10'" in result.stderr
