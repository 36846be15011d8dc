import gzip

import pytest
import torch

from pyquant.errors import DataError, MissingPackageError
from pyquant.zoo.fashion_mnist import DEVIATION, FOLDER, MEAN, fashion_mnist, read_idx


def idx(*shape: int, kind: int = 8) -> bytes:
    count = torch.tensor(shape).prod().item()
    header = bytes([0, 0, kind, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
    return header + bytes(value % 251 for value in range(count))


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / FOLDER
    folder.mkdir(parents=True)
    for prefix, count in (("train", 5), ("t10k", 3)):
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(count, 28, 28)))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(count)))
    return tmp_path


def test_pixels_are_normalised_and_labels_read(data):
    (images, labels), (test_images, test_labels) = fashion_mnist(data)
    assert images.shape == (5, 1, 28, 28)
    assert images.dtype == torch.float32
    assert labels.tolist() == [0, 1, 2, 3, 4]
    assert labels.dtype == torch.int64
    assert test_images.shape == (3, 1, 28, 28)
    assert test_labels.tolist() == [0, 1, 2]
    # Pixel 30 of image 1 is byte 784 + 30 of the data.
    exact = ((784 + 30) % 251 / 255 - MEAN) / DEVIATION
    assert images[1, 0, 1, 2].item() == pytest.approx(exact, rel=1e-6)


def test_read_idx_keeps_every_byte(tmp_path):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(idx(3, 5, 7)))
    assert torch.equal(read_idx(path), torch.arange(105, dtype=torch.uint8).reshape(3, 5, 7))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"not gzip", "cannot be read as gzip"),
        (gzip.compress(idx(3, 5))[:-9], "cannot be read as gzip"),
        (gzip.compress(b""), "not an idx file"),
        (gzip.compress(idx(3, 5, kind=13)), "not an idx file"),
        (gzip.compress(idx(3, 5)[:10]), "10 bytes, not what its header states"),
        (gzip.compress(idx(3, 5)[:-1]), "26 bytes, not what its header states"),
        (gzip.compress(idx(3, 5) + b"x"), "28 bytes, not what its header states"),
    ],
    ids=["not-gzip", "truncated-gzip", "empty", "other-type", "no-sizes", "short", "long"],
)
def test_damaged_files_are_named(tmp_path, raw, message):
    path = tmp_path / "x.gz"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


def test_missing_package_names_both_commands(nothing_installed):
    with pytest.raises(MissingPackageError, match="make data, or: apt-get install dataset-fashion-mnist"):
        fashion_mnist()


def test_the_real_data(installed):
    for (images, labels), count in zip(installed(fashion_mnist), (60_000, 10_000), strict=True):
        assert images.shape == (count, 1, 28, 28)
        assert labels.bincount().tolist() == [count // 10] * 10
        # The constants are rounded to four digits, and the test images are another sample.
        assert abs(images.mean().item()) < 0.01
        assert abs(images.std().item() - 1) < 0.01
