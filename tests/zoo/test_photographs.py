import pytest
import torch

pytest.importorskip("PIL")
from PIL import Image

from pyquant.errors import DataError, MissingPackageError
from pyquant.zoo.photographs import (
    CALIBRATION_PHOTOGRAPHS,
    EVALUATION_PHOTOGRAPHS,
    Photographs,
    photo_crops,
)

TWO = Photographs("two", "photos", ("dark.png", "light.png"))


@pytest.fixture
def data(tmp_path):
    """Two photographs: grey 0 to 127 from left to right, and 128 to 255."""
    (tmp_path / "photos").mkdir()
    for name, black in (("dark.png", 0), ("light.png", 128)):
        ramp = (
            Image.linear_gradient("L")
            .rotate(90)
            .resize((400, 300))
            .point(lambda v, black=black: black + v // 2)
        )
        ramp.save(tmp_path / "photos" / name)
    return tmp_path


def test_photographs_take_turns(data):
    crops = photo_crops(data, 7, 0, TWO)
    assert crops.shape == (7, 3, 224, 224)
    assert crops.dtype == torch.float32
    assert [bool(crop.mean() > 0) for crop in crops] == [False, True] * 3 + [False]


def test_one_crop_needs_one_photograph(data):
    assert photo_crops(data, 1, 0, TWO).shape == (1, 3, 224, 224)


def test_the_seed_decides(data):
    crops = photo_crops(data, 6, 3, TWO)
    assert torch.equal(crops, photo_crops(data, 6, 3, TWO))
    assert not torch.equal(crops, photo_crops(data, 6, 4, TWO))


def test_sizes_and_directions_vary(data):
    crops = photo_crops(data, 80, 0, TWO)[:, 0]
    # The slope from left to right is the side of the crop, and its sign the direction.
    slope = (crops[:, :, -8:] - crops[:, :, :8]).mean(dim=(1, 2)) * 128
    assert 25 <= (slope < 0).sum() <= 55
    widest = 127 * 300 / 400  # a whole shorter side, of a ramp of 127 over the longer one
    assert slope.abs().max() <= widest + 1
    assert slope.abs().max() >= 0.8 * widest
    assert widest / 4 - 2 <= slope.abs().min() <= 0.27 * widest


@pytest.mark.parametrize("count", [0, -3])
def test_no_crops_is_an_error(data, count):
    with pytest.raises(DataError, match=f"count={count}"):
        photo_crops(data, count, 0, TWO)


def test_missing_package_names_both_commands(nothing_installed):
    with pytest.raises(MissingPackageError, match=r"make data, or: apt-get install lomiri-wallpapers-16\.04"):
        photo_crops(None, 1, 0)


@pytest.mark.parametrize(
    "photographs", [EVALUATION_PHOTOGRAPHS, CALIBRATION_PHOTOGRAPHS], ids=lambda p: p.package
)
def test_the_real_photographs(installed, photographs):
    crops = installed(photo_crops, None, 2 * len(photographs.files), 0, photographs)
    assert crops.min() >= -127 / 128
    assert crops.max() <= 1
    assert len({crop.mean().item() for crop in crops}) == len(crops)
    # A photograph has colours.
    assert ((crops[:, 0] - crops[:, 2]).abs().mean(dim=(1, 2)) > 0.01).float().mean() > 0.8
