"""Calibration inputs from files: a folder of images, or tensors in .npz, .pt or .safetensors; and files written whole."""

from __future__ import annotations

import os
import pickle
import secrets
import zipfile
import zlib
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pyquant.errors import DataError, MissingPackageError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

# What numpy, torch and safetensors raise on files that are truncated, altered or of another kind.
UNREADABLE = (
    OSError, ValueError, TypeError, AttributeError, EOFError, LookupError, RuntimeError, SafetensorError, zipfile.BadZipFile,
    zlib.error, pickle.UnpicklingError,
)  # fmt: skip


def read_batches(path: Path) -> list[Tensor]:
    """Read unlabelled inputs.

    Args:
        path: a folder of images (each becomes ``[1, 3, 224, 224]``, centre-cropped, ``(x - 127) / 128``), or a file whose
            tensors, in the file's order, are batches of inputs.

    Raises:
        DataError: nothing there, an unknown kind of file, or a file that cannot be read.
    """
    if path.is_dir():
        return _read_images(path)
    if not path.is_file():
        raise DataError(
            f"{str(path)!r} does not exist; give a folder of images or a .npz, .pt or .safetensors file."
        )
    readers = {".npz": _read_npz, ".pt": _read_pt, ".safetensors": _read_safetensors}
    if path.suffix not in readers:
        raise DataError(
            f"{str(path)!r} is not a kind of data pyquant reads; give a folder of images or {', '.join(readers)}."
        )
    try:
        tensors = readers[path.suffix](path)
    except UNREADABLE as error:
        reason = str(error).partition("\n")[0][:200].rstrip(".") or type(error).__name__
        raise DataError(f"{str(path)!r} could not be read as {path.suffix}: {reason}.") from error
    if not tensors:
        raise DataError(f"{str(path)!r} holds no tensors.")
    return tensors


def write_whole(path: Path, data: bytes) -> None:
    """Write aside, then rename: a reader sees the old file or the new one, never a part.

    Raises:
        OSError: it cannot be written; the folder is as it was.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(aside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read_images(folder: Path) -> list[Tensor]:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise DataError(
            f"the folder {str(folder)!r} has no images; it needs files ending in {', '.join(IMAGE_SUFFIXES)}."
        )
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingPackageError("reading images needs pillow; run: pip install pillow") from error
    from pyquant.zoo.images import preprocess

    images = []
    for file in files:
        try:
            with Image.open(file) as image:
                images.append(preprocess(image)[None])
        except (
            UnidentifiedImageError,
            Image.DecompressionBombError,
            OSError,
            ValueError,
            SyntaxError,
        ) as error:
            raise DataError(
                f"{str(file)!r} is not a readable image; remove it or convert it to PNG."
            ) from error
    return images


def _read_npz(path: Path) -> list[Tensor]:
    # numpy takes any other file for a pickle, and advises to allow that.
    if not zipfile.is_zipfile(path):
        raise ValueError("it is not a .npz of arrays")
    tensors = []
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            try:
                tensors.append(torch.from_numpy(arrays[name]))
            except (TypeError, ValueError) as error:
                raise ValueError(f"its {name!r} is no array of numbers that torch has") from error
    return tensors


def _read_pt(path: Path) -> list[Tensor]:
    try:
        item = torch.load(path, weights_only=True)
    except OSError:
        raise
    except UNREADABLE as error:
        # torch advises to load it with weights_only=False, which would run whatever is in it.
        raise ValueError("it is not a .pt of tensors alone") from error
    items = (
        list(item.values()) if isinstance(item, dict) else item if isinstance(item, list | tuple) else [item]
    )
    return [value for value in items if isinstance(value, Tensor)]


def _read_safetensors(path: Path) -> list[Tensor]:
    return list(safetensors.torch.load_file(path).values())
