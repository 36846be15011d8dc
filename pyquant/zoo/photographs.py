"""Crops of photographs without labels, for calibration and for agreement with fp32 on many images.

The backgrounds packages hold drawings too, so the photographs are listed. The two sets share no photograph:
what calibrates on one may be judged on the other.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from pyquant.errors import DataError
from pyquant.zoo.pixels import SIDE, Image, square_input
from pyquant.zoo.sources import debian_path

SHORTER_SIDE = 4 * SIDE  # pixels, of a photograph before it is cut


@dataclass(frozen=True)
class Photographs:
    """Photographs of one Debian package: ``files`` in ``folder``, a path relative to the root."""

    package: str
    folder: str
    files: tuple[str, ...]


EVALUATION_PHOTOGRAPHS = Photographs(
    "lomiri-wallpapers-16.04",
    "usr/share/backgrounds",
    (
        "Bridge_by_Sander_Klootwijk.jpg",
        "Dragonfly_by_Bolly.jpg",
        "Picture_0B_by_freespace.jpg",
        "Picture_1A_by_freespace.jpg",
        "Wine_by_Jakkub_Mede.jpg",
        "aitzgorri_by_Aitzol_Berasategi.jpg",
        "free_by_Peter_Nerlich.jpg",
        "friends_by_Aitzol_Berasategi.jpg",
        "greentock_by_Peter_Nerlich.jpg",
        "life_by_Aitzol_Berasategi.jpg",
        "picosdeeuropa_by_Aitzol_Berasategi.jpg",
        "seeding_by_Clements_Engelhardt.jpg",
        "sunset_by_Aitzol_Berasategi.jpg",
    ),
)
CALIBRATION_PHOTOGRAPHS = Photographs(
    "mate-backgrounds",
    "usr/share/backgrounds/mate/nature",
    (
        "Aqua.jpg",
        "Blinds.jpg",
        "Dune.jpg",
        "FreshFlower.jpg",
        "Garden.jpg",
        "GreenMeadow.jpg",
        "LadyBird.jpg",
        "RainDrops.jpg",
        "Storm.jpg",
        "TwoWings.jpg",
        "Wood.jpg",
        "YellowFlower.jpg",
    ),
)


def photo_crops(
    data: str | Path | None, count: int, seed: int, photographs: Photographs = EVALUATION_PHOTOGRAPHS
) -> torch.Tensor:
    """Cut random squares from photographs, as many from each.

    A square's side is drawn log-uniformly from a quarter of the photograph's shorter side to all of it, so
    details and scenes are equally likely; half of the squares are mirrored.

    Args:
        data: folder that `make data` filled; None searches ``.data`` here, then the system.
        count: crops, 1 or more.
        seed: the same seed gives the same crops.
        photographs: which set to cut from.

    Returns:
        ``[count, 3, 224, 224]`` float32, input of EfficientNet-Lite0.

    Raises:
        DataError: ``count`` is below 1.
        MissingPackageError: the package is not there; the message says how to get it.
    """
    if count < 1:
        raise DataError(f"count={count} crops were asked for; ask for 1 or more.")
    paths = [
        debian_path(photographs.package, f"{photographs.folder}/{name}", data) for name in photographs.files
    ]
    # All numbers are drawn first, so that each photograph is decoded once and only one is in memory.
    draws = torch.rand(count, 4, generator=torch.Generator().manual_seed(seed)).tolist()
    crops = torch.empty(count, 3, SIDE, SIDE)
    for first, path in enumerate(paths[:count]):
        picture = _scaled(Image.open(path))
        width, height = picture.size
        for index in range(first, count, len(paths)):
            size, across, down, mirror = draws[index]
            side = round(SIDE * (SHORTER_SIDE / SIDE) ** size)
            left, top = int(across * (width - side + 1)), int(down * (height - side + 1))
            crop = square_input(picture, left, top, side)
            crops[index] = crop.flip(2) if mirror < 0.5 else crop
    return crops


def _scaled(photograph: Image.Image) -> Image.Image:
    scale = SHORTER_SIDE / min(photograph.size)
    width, height = (round(scale * length) for length in photograph.size)
    return photograph.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
