"""Calibration inputs from files: what is read, and what every damaged or foreign file says."""

import io
import zipfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import safetensors.torch
import torch

from pyquant.errors import DataError
from pyquant.files import read_batches

BATCHES = {"b": torch.arange(24.0).reshape(2, 3, 2, 2), "a": -torch.arange(12.0).reshape(1, 3, 2, 2)}


def write_npz(path: Path) -> None:
    np.savez(path, **{name: tensor.numpy() for name, tensor in BATCHES.items()})


def write_pt(path: Path) -> None:
    torch.save(list(BATCHES.values()), path)


def write_safetensors(path: Path) -> None:
    safetensors.torch.save_file(BATCHES, path)


FOREIGN = {".npz": "not a .npz of arrays", ".pt": "not a .pt of tensors alone", ".safetensors": "header"}
WRITERS = {".npz": write_npz, ".pt": write_pt, ".safetensors": write_safetensors}


def refused(path: Path, *words: str) -> None:
    """Reading fails with one sentence that names the file and says ``words``."""
    with pytest.raises(DataError) as caught:
        read_batches(path)
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text and path.name in text, text
    assert not text.endswith("..") and "allow_pickle" not in text and "weights_only" not in text, text
    assert all(word in text for word in words), text


@pytest.mark.parametrize("suffix", WRITERS)
def test_tensors_come_back_whole(tmp_path, suffix):
    WRITERS[suffix](tmp_path / f"data{suffix}")
    found = read_batches(tmp_path / f"data{suffix}")
    assert len(found) == 2
    for tensor in found:
        assert torch.equal(tensor, BATCHES["b" if len(tensor) == 2 else "a"])


def test_a_pt_of_one_tensor_and_of_a_dict(tmp_path):
    torch.save(BATCHES["b"], tmp_path / "one.pt")
    torch.save({**BATCHES, "name": "not a tensor"}, tmp_path / "dict.pt")
    assert torch.equal(read_batches(tmp_path / "one.pt")[0], BATCHES["b"])
    assert [len(t) for t in read_batches(tmp_path / "dict.pt")] == [2, 1]


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("keep", [0, 1, 9, 100, -1])
def test_truncated_files(tmp_path, suffix, keep):
    path = tmp_path / f"data{suffix}"
    WRITERS[suffix](path)
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, f"could not be read as {suffix}")


@pytest.mark.parametrize("suffix", WRITERS)
def test_files_of_another_kind(tmp_path, suffix):
    path = tmp_path / f"data{suffix}"
    path.write_text("a shopping list: milk, eggs")
    refused(path, f"could not be read as {suffix}", FOREIGN[suffix])


def test_an_array_under_the_name_of_an_archive(tmp_path):
    stream = io.BytesIO()
    np.save(stream, np.zeros(3))
    (tmp_path / "data.npz").write_bytes(stream.getvalue())
    refused(tmp_path / "data.npz", "could not be read")


def test_arrays_that_are_no_numbers(tmp_path):
    np.savez(tmp_path / "words.npz", x=np.array(["one", "two"]))
    refused(tmp_path / "words.npz", "could not be read", "its 'x' is no array of numbers")
    np.savez(tmp_path / "objects.npz", x=np.array([{1: 2}], dtype=object))
    refused(tmp_path / "objects.npz", "could not be read", "its 'x' is no array of numbers")


def test_altered_bytes_of_a_compressed_archive(tmp_path):
    path = tmp_path / "data.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).normal(size=1000))
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        header = archive.infolist()[0].header_offset
    name, extra = (int.from_bytes(data[header + at : header + at + 2], "little") for at in (26, 28))
    start = header + 30 + name + extra
    data[start] = 0xFF  # no such kind of deflate block
    path.write_bytes(data)
    refused(path, "could not be read")


def test_a_reason_that_ends_in_a_dot_gets_no_second(tmp_path, monkeypatch):
    write_safetensors(tmp_path / "data.safetensors")
    monkeypatch.setattr(safetensors.torch, "load_file", Mock(side_effect=OSError("It is gone.")))
    refused(tmp_path / "data.safetensors", "could not be read as .safetensors: It is gone.")


def test_code_in_a_pt_is_never_run(tmp_path):
    flag = tmp_path / "flag"

    class Trap:
        def __reduce__(self):
            return Path.touch, (flag,)

    torch.save([Trap()], tmp_path / "trap.pt")
    refused(tmp_path / "trap.pt", "not a .pt of tensors alone")
    assert not flag.exists()


def test_files_without_tensors(tmp_path):
    np.savez(tmp_path / "empty.npz")
    refused(tmp_path / "empty.npz", "holds no tensors")
    torch.save({"name": "text"}, tmp_path / "text.pt")
    refused(tmp_path / "text.pt", "holds no tensors")


def test_what_is_not_there_and_what_is_not_known(tmp_path):
    refused(tmp_path / "gone.npz", "does not exist")
    (tmp_path / "data.csv").write_text("1,2")
    refused(tmp_path / "data.csv", ".npz", ".pt", ".safetensors")


# ---------------------------------------------------------------------------------------------------- folders
def test_a_folder_of_images(tmp_path):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "inner").mkdir()
    image.new("RGB", (300, 240), (255, 127, 0)).save(tmp_path / "b.png")
    image.new("L", (16, 20), 191).save(tmp_path / "inner" / "a.PNG")
    (tmp_path / "notes.txt").write_text("not an image")
    found = read_batches(tmp_path)
    assert [tuple(x.shape) for x in found] == [(1, 3, 224, 224)] * 2
    want = torch.tensor([1.0, 0.0, -127 / 128])[None, :, None, None].expand(1, 3, 224, 224)
    assert torch.equal(found[0], want)
    assert torch.equal(found[1], torch.full((1, 3, 224, 224), 0.5))


def test_folders_without_images(tmp_path):
    refused(tmp_path, "has no images", ".png")
    (tmp_path / "notes.txt").write_text("not an image")
    refused(tmp_path, "has no images")


@pytest.mark.parametrize("damage", ["text", "truncated"])
def test_an_image_that_cannot_be_read_is_named(tmp_path, damage):
    image = pytest.importorskip("PIL.Image")
    image.effect_noise((64, 64), 50).save(tmp_path / "broken.png")
    data = (tmp_path / "broken.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(b"hello" if damage == "text" else data[: len(data) // 2])
    with pytest.raises(DataError, match=r"broken\.png"):
        read_batches(tmp_path)
