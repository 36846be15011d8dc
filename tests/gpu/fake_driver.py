"""The fake libcuda built and opened, and stand-ins for what lies on a GPU."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyquant.ops.cuda_driver import Driver

SOURCE = Path(__file__).with_name("fake_libcuda.c")
COMPILER = shutil.which("gcc") or shutil.which("cc")
# Kernel -> bytes of each of its parameters.
ENTRIES = {"scale_rows": (8, 8, 4, 4), "other": (8,)}


def image(entries: dict[str, tuple[int, ...]] = ENTRIES) -> bytes:
    """A fatbin's head, and behind it what the fake driver reads."""
    text = "".join(f"{name} {','.join(map(str, sizes))};" for name, sizes in entries.items()).encode()
    return b"\x50\xed\x55\xba\x01\x00\x10\x00" + len(text).to_bytes(8, "little") + text


def headers() -> Path | None:
    """The folder of NVIDIA's own cuda.h, where the machine has one."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    folder = Path(nvcc).parent.parent / "include"
    return folder if (folder / "cuda.h").is_file() else None


@cache
def built() -> Path:
    """The library, compiled once."""
    target = Path(tempfile.mkdtemp()) / "libcuda.so.1"
    flags = ["-std=c11", "-O1", "-Wall", "-Werror", "-Wno-enum-conversion", "-shared", "-fPIC", "-pthread"]
    assert COMPILER is not None
    if headers() is not None:
        flags += ["-DWITH_CUDA_H", f"-I{headers()}"]
    subprocess.run([COMPILER, *flags, str(SOURCE), "-o", str(target)], check=True)
    return target


class FakeDriver:
    """A driver on the fake library, which starts anew.

    Args:
        folder: where to write the image.
        devices: how many there are, of sm_80.
        version: what the driver says its CUDA is, thousand times.
    """

    def __init__(self, folder: Path, devices: int = 1, version: int = 13000) -> None:
        self.library = ctypes.CDLL(str(built()))
        self.library.fake_lines.restype = ctypes.c_char_p
        self.library.fake_reset(devices, version)
        self.path = folder / "pyquant_cuda.fatbin"
        self.path.write_bytes(image())

    def open(self) -> Driver:
        return Driver(built(), self.path)

    def fail(self, call: str, result: int, after: int = 0) -> None:
        """Have a call fail from the one after so many good ones on."""
        self.library.fake_fail(call.encode(), result, after)

    @property
    def calls(self) -> list[dict[str, Any]]:
        """Every call so far, in order."""
        return [json.loads(line) for line in self.library.fake_lines().decode().splitlines()]

    def named(self, call: str) -> list[dict[str, Any]]:
        return [line for line in self.calls if line["call"] == call]


class OnDevice:
    """A tensor that says it lies on a GPU."""

    def __init__(self, tensor: Tensor, device: int = 0) -> None:
        self.tensor, self.device = tensor, torch.device("cuda", device)

    def data_ptr(self) -> int:
        return self.tensor.data_ptr()
