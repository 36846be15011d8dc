"""Labelled images for ImageNet networks, and the protocol that splits them.

First the 20 ImageNet images of PyPI ``foolbox`` (MIT), then 149 photo cut-outs of Debian
``tuxpaint-stamps-default`` (GPL-2) in the order of ``tux_labels.json``. The labels of the cut-outs are our
own and some are lenient, so a result on them is never ImageNet accuracy.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from pyquant.errors import DataError, MissingPackageError
from pyquant.zoo.photographs import CALIBRATION_PHOTOGRAPHS, photo_crops
from pyquant.zoo.pixels import Image, on_white, preprocess
from pyquant.zoo.sources import debian_path, package_folder

FOOLBOX_MODULE, FOOLBOX = "foolbox", "foolbox==3.3.4"
STAMPS, STAMPS_FOLDER = "tuxpaint-stamps-default", "usr/share/tuxpaint/stamps"
STAMP_LABELS = Path(__file__).with_name("tux_labels.json")
CALIBRATION_COUNT = 80


@dataclass(frozen=True)
class LabelledImages:
    """Images with the classes that count as right.

    Attributes:
        images: ``[n, 3, 224, 224]`` float32, input of EfficientNet-Lite0.
        accepted: n tuples of ImageNet classes, 0 to 999.
        names: n file names.
    """

    images: torch.Tensor
    accepted: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]

    def select(self, indices: torch.Tensor) -> "LabelledImages":
        """Take the images at ``indices``, ``[m]`` int64."""
        chosen = indices.tolist()
        return LabelledImages(
            self.images[indices],
            tuple(self.accepted[i] for i in chosen),
            tuple(self.names[i] for i in chosen),
        )


@dataclass(frozen=True)
class ImageSplit:
    """Calibration images, ``[m, 3, 224, 224]`` float32, and evaluation images that are none of them.

    ``protocol`` says in one sentence what is in both; it belongs beside every figure.
    """

    calibration: torch.Tensor
    evaluation: LabelledImages
    protocol: str


def foolbox_images() -> LabelledImages:
    """Read the 20 ImageNet images of the installed foolbox; names end in the class: ``imagenet_00_243.jpg``.

    Raises:
        MissingPackageError: foolbox is not installed; the message is the pip command.
        DataError: the installed foolbox holds no such images.
    """
    folder = package_folder(FOOLBOX_MODULE, FOOLBOX) / "data"
    paths = sorted(folder.glob("imagenet_*.jpg"))
    if not paths:
        raise DataError(f"'{folder}' holds no imagenet_*.jpg; install {FOOLBOX}.")
    return LabelledImages(
        torch.stack([preprocess(Image.open(path)) for path in paths]),
        tuple((int(path.stem.rsplit("_", 1)[1]),) for path in paths),
        tuple(path.name for path in paths),
    )


def stamp_images(data: str | Path | None = None) -> LabelledImages:
    """Read the 149 cut-outs, each whole and on white.

    Raises:
        MissingPackageError: the stamps are not installed; the message says how to get them.
    """
    labels = json.loads(STAMP_LABELS.read_text())
    paths = [debian_path(STAMPS, f"{STAMPS_FOLDER}/{name}", data) for name, _ in labels]
    return LabelledImages(
        torch.stack([preprocess(on_white(Image.open(path))) for path in paths]),
        tuple(tuple(accepted) for _, accepted in labels),
        tuple(name for name, _ in labels),
    )


def labelled_images(data: str | Path | None = None) -> LabelledImages:
    """Read foolbox's 20 images, then the 149 cut-outs; only the 20 where the stamps are not installed.

    Args:
        data: folder that `make data` filled; None searches ``.data`` here, then the system.

    Raises:
        MissingPackageError: foolbox is not installed; the message is the pip command.
    """
    photographs = foolbox_images()
    try:
        stamps = stamp_images(data)
    except MissingPackageError:
        return photographs
    return LabelledImages(
        torch.cat([photographs.images, stamps.images]),
        photographs.accepted + stamps.accepted,
        photographs.names + stamps.names,
    )


def split_protocol(data: str | Path | None = None, *, flips: bool = False) -> ImageSplit:
    """Split the labelled images: of ``randperm(169, seed 0)`` the first 80 calibrate, the last 89 evaluate.

    Where the stamps are not installed, all 20 images evaluate and 80 crops of other photographs calibrate;
    ``protocol`` then says n = 20.

    Args:
        data: folder that `make data` filled; None searches ``.data`` here, then the system.
        flips: also give the calibration images mirrored, after the others.

    Raises:
        MissingPackageError: foolbox, or both the stamps and the photographs, are not installed.
    """
    labelled = labelled_images(data)
    total = len(labelled.names)
    if total > CALIBRATION_COUNT:
        order = torch.randperm(total, generator=torch.Generator().manual_seed(0))
        calibration = labelled.images[order[:CALIBRATION_COUNT]]
        evaluation = labelled.select(order[CALIBRATION_COUNT:])
        source = f"calibrated on {CALIBRATION_COUNT} other images of the same {total}"
    else:
        calibration = photo_crops(data, CALIBRATION_COUNT, seed=0, photographs=CALIBRATION_PHOTOGRAPHS)
        evaluation = labelled
        source = f"{STAMPS} is not installed; calibrated on {CALIBRATION_COUNT} crops of other photographs"
    if flips:
        calibration = torch.cat([calibration, calibration.flip(3)])
    return ImageSplit(calibration, evaluation, f"n = {len(evaluation.names)} labelled images; {source}")
