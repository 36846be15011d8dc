"""Trains the zoo's small networks on Fashion-MNIST: ``python -m pyquant.zoo.train_fashion_mnist resnet20 --data .data``.

One thread and fixed seeds, so a run on the same machine gives the same weights. The last epoch is what is
saved: the test set chooses nothing, it is only reported.
"""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from pyquant.zoo import mobilenet_v2_small, resnet20
from pyquant.zoo.fashion_mnist import DEVIATION, MEAN, fashion_mnist
from pyquant.zoo.mobilenet_v2_small import MobileNetV2Small
from pyquant.zoo.resnet20 import ResNet20

LOG = logging.getLogger("pyquant.zoo.train_fashion_mnist")


@dataclass(frozen=True)
class TrainingRecipe:
    """SGD with Nesterov momentum 0.9 under a one-cycle rate; the forward pass runs in bfloat16 autocast."""

    epochs: int = 16
    batch: int = 128
    peak_rate: float = 0.2
    warm_share: float = 0.2  # of all steps, in which the rate rises to its peak
    weight_decay: float = 5e-4
    shift: int = 2  # pixels, each way, at random
    mirror: float = 0.5  # share of the images mirrored left to right
    seed: int = 0


# What makes each network of the zoo. A depthwise kernel has nine weights: the less decay, the better for it.
NETWORKS: dict[str, tuple[type[nn.Module], TrainingRecipe, Path]] = {
    "resnet20": (ResNet20, TrainingRecipe(), resnet20.CHECKPOINT),
    "mobilenet_v2_small": (
        MobileNetV2Small,
        TrainingRecipe(epochs=12, peak_rate=0.1, weight_decay=1e-4),
        mobilenet_v2_small.CHECKPOINT,
    ),
}


def augment(images: torch.Tensor, recipe: TrainingRecipe, generator: torch.Generator) -> torch.Tensor:
    """Shift and mirror each image at random: ``[B, 1, H, W]`` in and out."""
    count, _, height, width = images.shape
    black = (0 - MEAN) / DEVIATION
    padded = nn.functional.pad(images[:, 0], (recipe.shift,) * 4, value=black)
    down, right = torch.randint(0, 2 * recipe.shift + 1, (2, count, 1), generator=generator)
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    mirrored = torch.rand(count, 1, generator=generator) < recipe.mirror
    columns = torch.where(mirrored, columns.flip(1), columns)
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]].unsqueeze(1)


@torch.no_grad()
def share_correct(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of ``images`` (``[n, 1, 28, 28]``) whose largest logit is the label, in float32."""
    batches = zip(images.split(500), labels.split(500), strict=True)
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in batches) / len(labels)


def train(
    build: Callable[[], nn.Module], images: torch.Tensor, labels: torch.Tensor, recipe: TrainingRecipe
) -> nn.Module:
    """Train on ``[n, 1, 28, 28]`` float32 images and ``[n]`` int64 labels.

    Args:
        build: makes the network, its weights drawn from torch's global generator.
        images, labels: what to learn.
        recipe: how.

    Returns:
        The model after the last step, in eval mode.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    with torch.random.fork_rng():  # layers draw their first weights from the global generator
        torch.manual_seed(recipe.seed)
        model = build()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's stubs
    optimiser = torch.optim.SGD(
        model.parameters(), recipe.peak_rate, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay
    )
    steps = len(images) // recipe.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser,
        recipe.peak_rate,
        total_steps=recipe.epochs * steps,
        pct_start=recipe.warm_share,
        cycle_momentum=False,
    )
    for epoch in range(recipe.epochs):
        started, loss_sum = time.monotonic(), 0.0
        order = torch.randperm(len(images), generator=generator)[: steps * recipe.batch]
        for chosen in order.split(recipe.batch):
            x = augment(images[chosen], recipe, generator).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(x)
            loss = nn.functional.cross_entropy(logits.float(), labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            loss_sum += loss.item()
        seconds = time.monotonic() - started
        LOG.info("epoch %d of %d: loss %.4f, %.0f s", epoch + 1, recipe.epochs, loss_sum / steps, seconds)
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return model.eval()


def save(model: nn.Module, path: Path, recipe: TrainingRecipe, accuracy: float) -> None:
    """Write the weights, recipe and accuracy; aside first, so that no partial file is ever left."""
    header = {
        "data": "Fashion-MNIST, 60,000 training images",
        "recipe": json.dumps(asdict(recipe)),
        "test_accuracy": f"{accuracy:.4f}",
        "torch": torch.__version__,
    }
    aside = path.with_name(f"{path.name}.partial")
    try:
        save_file(model.state_dict(), aside, header)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def main() -> None:
    """Train, report the accuracy on the 10,000 test images, and write the checkpoint."""
    parser = argparse.ArgumentParser(description="Train a network of the zoo on Fashion-MNIST.")
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--data", type=Path, help="folder that `make data` filled")
    parser.add_argument("--out", type=Path, help="checkpoint to write; the package's own by default")
    parser.add_argument("--epochs", type=int, help="other than the network's own")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    torch.set_num_threads(1)
    build, recipe, path = NETWORKS[arguments.network]
    recipe = replace(recipe, epochs=arguments.epochs or recipe.epochs)
    LOG.info("%s: %s", arguments.network, recipe)
    (images, labels), (test_images, test_labels) = fashion_mnist(arguments.data)
    model = train(build, images, labels, recipe)
    accuracy = share_correct(model, test_images, test_labels)
    LOG.info("test accuracy %.4f", accuracy)
    save(model, arguments.out or path, recipe, accuracy)


if __name__ == "__main__":
    main()
