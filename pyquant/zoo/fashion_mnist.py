"""Fashion-MNIST (MIT licence), read from the Debian package ``dataset-fashion-mnist``."""

import gzip
from pathlib import Path

import numpy as np
import torch

from pyquant.errors import DataError
from pyquant.zoo.sources import debian_path

PACKAGE, FOLDER = "dataset-fashion-mnist", "usr/share/datasets/fashion-mnist"
# Mean and standard deviation of the training pixels, as a share of 255.
MEAN, DEVIATION = 0.2860, 0.3530

Split = tuple[torch.Tensor, torch.Tensor]


def fashion_mnist(data: str | Path | None = None) -> tuple[Split, Split]:
    """Read all images and labels.

    Args:
        data: folder that `make data` filled; None searches ``.data`` here, then the system.

    Returns:
        ``(images, labels)`` of the 60,000 training and of the 10,000 test images: ``[n, 1, 28, 28]`` float32,
        ``(pixel / 255 - MEAN) / DEVIATION``, and ``[n]`` int64, 0 to 9.

    Raises:
        MissingPackageError: the package is not there; the message says how to get it.
        DataError: a file is truncated or not an idx file.
    """
    folder = debian_path(PACKAGE, FOLDER, data)
    return _split(folder, "train"), _split(folder, "t10k")


def _split(folder: Path, prefix: str) -> Split:
    pixels = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
    images = pixels.unsqueeze(1).float().div_(255).sub_(MEAN).div_(DEVIATION)
    return images, labels.long()


def read_idx(path: Path) -> torch.Tensor:
    """Read a gzipped idx file of bytes: zero, zero, type 8, rank, then big-endian sizes, then the data.

    Returns:
        uint8 tensor of the shape the file states.

    Raises:
        DataError: the file is truncated, altered or of another type.
    """
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise DataError(f"'{path}' cannot be read as gzip ({error}); install {PACKAGE} again.") from error
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise DataError(
            f"'{path}' starts with {raw[:4].hex()}, not an idx file of bytes; install {PACKAGE} again."
        )
    rank = raw[3]
    shape = np.frombuffer(raw, ">u4", rank, offset=4).astype(int) if len(raw) >= 4 + 4 * rank else None
    if shape is None or len(raw) != 4 + 4 * rank + shape.prod():
        raise DataError(
            f"'{path}' holds {len(raw)} bytes, not what its header states; install {PACKAGE} again."
        )
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape).copy())
