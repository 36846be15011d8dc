"""Which backend serves an op: one table, one choice, and the choice can be printed."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch

from pyquant.errors import BackendError

BACKENDS = ("reference", "cpu", "triton", "cuda")
# What `auto` tries, best first, on each kind of device.
ORDER = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}

_kernels: dict[tuple[str, str], Callable] = {}


@dataclass(frozen=True)
class Choice:
    """The backend that serves an op, and why; ``str(choice)`` is one line."""

    op: str
    backend: str
    kernel: Callable
    why: str

    def __str__(self) -> str:
        return f"{self.op} -> {self.backend} ({self.why})"


def register(op: str, backend: str) -> Callable[[Callable], Callable]:
    """Decorate the function that serves ``op`` on ``backend``."""

    def enter(kernel: Callable) -> Callable:
        _kernels[op, backend] = kernel
        return kernel

    return enter


@cache
def extension() -> ModuleType | None:
    """The compiled extension ``pyquant._C``, or None where it was not built."""
    try:
        return importlib.import_module("pyquant._C")
    except ImportError:
        return None


def native() -> ModuleType:
    """The compiled extension, for kernels of the cpu backend, which is chosen only where there is one."""
    module = extension()
    assert module is not None, "the cpu backend was chosen without the extension"
    return module


@cache
def missing(backend: str) -> str | None:
    """Say in one sentence why ``backend`` cannot run here; None if it can."""
    if backend == "reference":
        return None
    if backend == "cpu":
        if extension() is not None:
            return None
        compiler = next((c for c in ("c++", "g++", "clang++") if shutil.which(c)), None)
        if compiler is None:
            return "the extension pyquant._C is not built and no C++ compiler is on PATH; install g++ and reinstall pyquant-engine"
        return f"the extension pyquant._C is not built although {compiler} is on PATH; run `pip install -v .` to see the error"
    if not torch.cuda.is_available():
        return "no CUDA device is visible to torch"
    return "this version has no kernels for it yet"


def choose(op: str, device: torch.device | str, backend: str = "auto") -> Choice:
    """Choose what serves ``op`` on tensors of ``device``.

    Args:
        op: the op's name, such as ``"fake_quantize"``.
        device: where the tensors are.
        backend: one of :data:`BACKENDS`, or ``"auto"``, which alone may move on to the next best.

    Raises:
        BackendError: the name is unknown, or the pinned backend cannot serve the op here.
    """
    kind = torch.device(device).type
    if backend == "auto":
        for name in ORDER.get(kind, ("reference",)):
            if (op, name) in _kernels and missing(name) is None:
                return Choice(op, name, _kernels[op, name], f"best of those available for {kind} tensors")
        raise BackendError(f"{op} has no backend for {kind} tensors; it has {_served(op)}.")
    if backend not in BACKENDS:
        raise BackendError(f"backend={backend!r} is unknown; use auto, {', '.join(BACKENDS)}.")
    why = missing(backend)
    if why is not None:
        raise BackendError(f"backend={backend!r} cannot serve {op}: {why}.")
    if (op, backend) not in _kernels:
        raise BackendError(f"backend={backend!r} does not serve {op}; use {_served(op)}.")
    if kind not in {"reference": (kind,), "cpu": ("cpu",)}.get(backend, ("cuda",)):
        raise BackendError(f"backend={backend!r} cannot serve {op} on {kind} tensors; use {_served(op)}.")
    return Choice(op, backend, _kernels[op, backend], "pinned")


def _served(op: str) -> str:
    return " or ".join(sorted(b for o, b in _kernels if o == op)) or "no backend"
