import json

import pytest
import torch

pytest.importorskip("PIL")
from PIL import Image

from pyquant.errors import DataError, MissingPackageError
from pyquant.zoo import images
from pyquant.zoo.images import (
    STAMP_LABELS,
    STAMPS_FOLDER,
    foolbox_images,
    labelled_images,
    split_protocol,
    stamp_images,
)
from pyquant.zoo.pixels import on_white, preprocess

LABELS = json.loads(STAMP_LABELS.read_text())


@pytest.fixture
def foolbox(nothing_installed, monkeypatch, tmp_path):
    """Twenty plain pictures where foolbox keeps its images; picture i is grey i and of class 3 i."""
    folder = tmp_path / "foolbox/data"
    folder.mkdir(parents=True)
    for index in range(20):
        Image.new("L", (20, 30), index).save(folder / f"imagenet_{index:02}_{3 * index}.jpg")
    monkeypatch.setattr(images, "package_folder", lambda module, requirement: folder.parent)
    return folder


@pytest.fixture
def stamps(tmp_path):
    """149 plain pictures where the Debian package keeps the stamps; picture i is grey 20 + i."""
    for index, (name, _) in enumerate(LABELS):
        path = tmp_path / STAMPS_FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 20 + index).save(path)
    return tmp_path


def greys(tensor):
    """The grey in the middle of each image, which says which picture it is."""
    return (tensor[:, 0, 112, 112] * 128 + 127).round().int().tolist()


def test_labels_parse_and_are_in_range():
    assert len(LABELS) == len({name for name, _ in LABELS}) == 149
    for name, accepted in LABELS:
        assert name.endswith(".png")
        assert accepted
        assert all(isinstance(label, int) and 0 <= label < 1000 for label in accepted)


def test_foolbox_first_then_the_stamps_in_order(foolbox, stamps):
    labelled = labelled_images(stamps)
    assert greys(labelled.images) == list(range(169))
    assert labelled.accepted[:20] == tuple((3 * index,) for index in range(20))
    assert [list(accepted) for accepted in labelled.accepted[20:]] == [accepted for _, accepted in LABELS]
    assert labelled.names[19:21] == ("imagenet_19_57.jpg", LABELS[0][0])


def test_split_is_fixed_and_disjoint(foolbox, stamps):
    split = split_protocol(stamps)
    calibrates, evaluates = greys(split.calibration), greys(split.evaluation.images)
    assert (len(calibrates), len(evaluates)) == (80, 89)
    assert sorted(calibrates + evaluates) == list(range(169))
    # torch.randperm(169) of a generator seeded with 0, written down once.
    assert calibrates[:5] == [94, 88, 101, 55, 122]
    assert evaluates[:5] == [31, 1, 54, 25, 75]
    assert split.protocol.startswith("n = 89 ")
    labelled = labelled_images(stamps)
    assert split.evaluation.accepted == tuple(labelled.accepted[index] for index in evaluates)
    assert split.evaluation.names == tuple(labelled.names[index] for index in evaluates)


def test_flips_follow_the_images(foolbox, stamps):
    path = stamps / STAMPS_FOLDER
    for name, _ in LABELS:
        half = Image.new("L", (8, 8), 0)
        half.paste(255, (0, 0, 4, 8))
        half.save(path / name)
    plain, both = split_protocol(stamps).calibration, split_protocol(stamps, flips=True).calibration
    assert torch.equal(both[:80], plain)
    assert torch.equal(both[80:], plain.flip(3))
    assert not torch.equal(both[80:], plain)


def test_without_stamps_all_twenty_evaluate(foolbox, tmp_path):
    nature = tmp_path / "usr/share/backgrounds/mate/nature"
    nature.mkdir(parents=True)
    for index, name in enumerate(images.CALIBRATION_PHOTOGRAPHS.files):
        Image.new("L", (300, 250), 200 + index).save(nature / name)
    split = split_protocol(tmp_path)
    assert greys(split.evaluation.images) == list(range(20))
    assert set(greys(split.calibration)) == set(range(200, 212))
    assert len(split.calibration) == 80
    assert split.protocol.startswith("n = 20 ")
    assert "tuxpaint-stamps-default is not installed" in split.protocol


def test_nothing_installed_names_the_commands(nothing_installed):
    with pytest.raises(MissingPackageError, match=r"pip install --no-deps foolbox==3\.3\.4"):
        split_protocol()
    with pytest.raises(MissingPackageError, match="make data, or: apt-get install tuxpaint-stamps-default"):
        stamp_images()


def test_neither_stamps_nor_photographs(foolbox):
    with pytest.raises(MissingPackageError, match="make data, or: apt-get install mate-backgrounds"):
        split_protocol()


def test_another_foolbox_is_named(foolbox):
    for path in foolbox.iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"install foolbox==3\.3\.4"):
        foolbox_images()


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (1, 1), (17, 63)])
def test_preprocess_cuts_the_centre(size):
    picture = Image.new("RGB", size, (255, 0, 0))
    width, height = size
    side = max(int(min(size) * 0.875), 1)
    left, top = (width - side) // 2, (height - side) // 2
    picture.paste((10, 127, 255), (left, top, left + side, top + side))
    expected = torch.tensor([(10 - 127) / 128, 0.0, 1.0]).reshape(3, 1, 1).expand(3, 224, 224)
    assert torch.equal(preprocess(picture), expected)


def test_cut_outs_stay_whole_on_white():
    cut_out = Image.new("RGBA", (200, 100), (0, 0, 0, 0))
    cut_out.paste((127, 127, 127, 255), (0, 0, 200, 50))
    image = preprocess(on_white(cut_out))
    # 200 pixels wide become 224: the opaque half fills rows 56 to 112, but for soft edges.
    assert torch.equal(image[:, 60:108], torch.zeros(3, 48, 224))
    assert torch.equal(image[:, :50], torch.ones(3, 50, 224))
    assert torch.equal(image[:, 118:], torch.ones(3, 106, 224))


def test_the_real_images(installed):
    photographs, stamps = installed(foolbox_images), installed(stamp_images)
    assert photographs.images.shape == (20, 3, 224, 224)
    assert photographs.names[0] == "imagenet_00_243.jpg"
    assert photographs.accepted[0] == (243,)
    assert stamps.images.shape == (149, 3, 224, 224)
    for tensor in (photographs.images, stamps.images):
        assert tensor.dtype == torch.float32
        assert tensor.min() >= -127 / 128
        assert tensor.max() <= 1
    # Cut-outs stand on white: all four corners of most of them are white.
    corners = stamps.images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 1).all(dim=(1, 2)).float().mean() > 0.7
