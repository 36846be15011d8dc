"""The zoo's networks for Fashion-MNIST: their weights are what was recorded, and the script that made them works."""

import json
from math import sqrt

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from pyquant import zoo
from pyquant.errors import DataError
from pyquant.zoo.checkpoints import recorded_accuracy
from pyquant.zoo.fashion_mnist import fashion_mnist
from pyquant.zoo.mobilenet_v2_small import mobilenet_v2_small
from pyquant.zoo.resnet20 import ResNet20, resnet20
from pyquant.zoo.train_fashion_mnist import NETWORKS, TrainingRecipe, augment, save, share_correct, train

IMAGES = torch.rand(64, 1, 28, 28, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(64) % 10
LOADED = {"resnet20": resnet20, "mobilenet_v2_small": mobilenet_v2_small}


def correct(name, images, labels):
    model = zoo.load(name)
    with torch.no_grad():
        logits = torch.cat([model(x) for x in images.split(500)])
    return zoo.accuracy(logits, [[label] for label in labels.tolist()])


def test_twenty_layers_and_two_shortcuts():
    modules = list(resnet20().modules())
    convolutions = [module for module in modules if isinstance(module, nn.Conv2d)]
    assert len([c for c in convolutions if c.kernel_size == (3, 3)]) == 19
    assert [c.stride for c in convolutions if c.kernel_size == (1, 1)] == [(2, 2), (2, 2)]
    assert not resnet20().training


def test_eight_inverted_residuals():
    model = mobilenet_v2_small()
    depthwise = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert [(c.groups, c.in_channels, c.stride[0]) for c in depthwise] == [
        (16, 16, 2),
        (96, 96, 1),
        (96, 96, 1),
        (96, 96, 2),
        (160, 160, 1),
        (160, 160, 1),
        (160, 160, 1),
        (256, 256, 1),
    ]
    assert [block.residual for block in model.blocks] == [False, True, True, False, True, True, False, True]
    x = torch.rand(2, 24, 14, 14)
    block = model.blocks[1]
    assert torch.equal(block(x), x + block.project(block.depthwise(block.expand(x))))
    assert not model.training


@pytest.mark.parametrize("name", NETWORKS)
def test_first_test_images_are_recognised(installed, name):
    _, (images, labels) = installed(fashion_mnist)
    share, recorded = correct(name, images[:2000], labels[:2000]), recorded_accuracy(NETWORKS[name][2])
    assert share >= 0.90
    # Three standard errors of a share of 2,000 images.
    assert abs(share - recorded) <= 3 * sqrt(recorded * (1 - recorded) / 2000)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_recorded_accuracy_is_the_accuracy(installed, name):
    _, (images, labels) = installed(fashion_mnist)
    # Other machines add in another order, which may turn a few images whose two best classes are level.
    assert abs(correct(name, images, labels) - recorded_accuracy(NETWORKS[name][2])) <= 5 / 10_000


@pytest.mark.parametrize("name", NETWORKS)
def test_checkpoint_is_small_and_says_how_it_was_made(name):
    _, recipe, path = NETWORKS[name]
    assert path.stat().st_size < 1.2e6
    assert recorded_accuracy(path) >= 0.91
    with safe_open(path, "pt") as file:
        assert TrainingRecipe(**json.loads(file.metadata()["recipe"])) == recipe


@pytest.mark.parametrize("name", LOADED)
@pytest.mark.parametrize("content", [None, b"garbage", "other model"], ids=["absent", "garbage", "other"])
def test_bad_weights_are_named(tmp_path, name, content):
    path = tmp_path / "weights.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        save_file({"fc.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(DataError, match=r"not a (ResNet20|MobileNetV2Small) checkpoint") as caught:
        LOADED[name](path)
    assert str(path) in str(caught.value)


def test_augment_shifts_and_mirrors():
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(augment(IMAGES, TrainingRecipe(shift=0, mirror=0.0), generator), IMAGES)
    assert torch.equal(augment(IMAGES, TrainingRecipe(shift=0, mirror=1.0), generator), IMAGES.flip(3))
    shifted = augment(IMAGES, TrainingRecipe(shift=2, mirror=0.0), generator)
    seen = set()
    for before, after in zip(IMAGES[:, 0], shifted[:, 0], strict=True):
        # The middle of the shifted image is somewhere in the original, at most 2 pixels away.
        found = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if torch.equal(after[2:26, 2:26], before[2 + down : 26 + down, 2 + right : 26 + right])
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) > 12


def test_training_is_reproducible_and_leaves_global_randomness_alone():
    state = torch.get_rng_state()
    recipe = TrainingRecipe(epochs=1, batch=32)
    first, second = (train(ResNet20, IMAGES, LABELS, recipe).state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["bn.num_batches_tracked"].item() == 2
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        start = ResNet20().state_dict()
    assert not torch.equal(first["conv.weight"], start["conv.weight"])


def test_save_then_load(tmp_path):
    path = tmp_path / "weights.safetensors"
    model = ResNet20().eval()
    share = share_correct(model, IMAGES, LABELS)
    assert share == pytest.approx((model(IMAGES).argmax(1) == LABELS).float().mean().item())
    save(model, path, TrainingRecipe(), share)
    assert torch.equal(resnet20(path)(IMAGES[:3]), model(IMAGES[:3]))
    assert recorded_accuracy(path) == round(share, 4)
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.safetensors"]
