"""Which backend serves an op: one table, one choice, and the choice can be printed.

A backend of a GPU has kernels for some architectures and shapes only, and one of several configurations fits best. So it registers a
plan beside its function: from the device and the op's arguments, the configuration to launch, or why there is none.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pyquant.errors import BackendError, DTypeError
from pyquant.ops import cuda_driver
from pyquant.ops.triton_guard import guarded

BACKENDS = ("reference", "cpu", "triton", "cuda")
# What `auto` tries, best first, on each kind of device.
ORDER = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}

# The kinds of device that a backend's kernels read; the reference reads any.
_READS = {"cpu": ("cpu",), "triton": ("cuda",), "cuda": ("cuda",)}

_kernels: dict[tuple[str, str], Callable] = {}
_plans: dict[tuple[str, str], Callable] = {}
_orders: dict[str, Callable[..., Sequence[str]]] = {}


class Unserved(Exception):
    """A plan has no kernel for an architecture or a shape; the message is the reason, as a part of a sentence."""


@dataclass(frozen=True)
class Choice:
    """The backend that serves an op, and why; ``str(choice)`` is one line.

    Attributes:
        op, backend: names.
        kernel: takes the op's arguments.
        why: what spoke for it.
        configuration: what the kernel is launched with, printable; None where there is nothing to choose, or no arguments to
            choose by.
    """

    op: str
    backend: str
    kernel: Callable
    why: str
    configuration: Any = None

    def using(self, configuration: Any, why: str) -> Choice:
        """The same kernel with another configuration of its."""
        assert isinstance(self.kernel, partial), "there is nothing to choose"
        kernel = partial(self.kernel.func, configuration)
        return replace(self, kernel=kernel, why=why, configuration=configuration)

    def __str__(self) -> str:
        with_what = "" if self.configuration is None else f" with {self.configuration}"
        return f"{self.op} -> {self.backend}{with_what} ({self.why})"


def register(op: str, backend: str, plan: Callable | None = None) -> Callable[[Callable], Callable]:
    """Decorate the function that serves ``op`` on ``backend``.

    Args:
        op, backend: names.
        plan: from a device and the op's arguments, a printable configuration, which the function then takes before them. It raises
            :class:`Unserved` where there is none.
    """

    def enter(kernel: Callable) -> Callable:
        _kernels[op, backend] = kernel
        if plan is not None:
            _plans[op, backend] = plan
            if backend == "triton":
                _kernels[op, backend] = guarded(op, kernel)
        return kernel

    return enter


def prefer(op: str) -> Callable[[Callable], Callable]:
    """Decorate the function that, from an op's arguments, gives the order in which ``auto`` tries backends on a GPU."""

    def enter(order: Callable) -> Callable:
        _orders[op] = order
        return order

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
def architecture(device: torch.device) -> str:
    """A device's architecture: ``"sm_90"`` of NVIDIA's, ``"gfx942"`` of AMD's, ``"cpu"``."""
    if device.type != "cuda":
        return device.type
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.partition(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on CPU tensors: by Triton's own setting, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


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
    if backend == "triton" and importlib.util.find_spec("triton") is None:
        return "Triton is not installed; run `pip install 'pyquant-engine[gpu]'`"
    if backend == "triton" and interpreted():
        return None
    if not torch.cuda.is_available():
        return "no CUDA device is visible to torch"
    if backend == "triton":
        return None
    if torch.version.hip:
        return "it is for NVIDIA's devices, and torch sees AMD's; use triton"
    if not cuda_driver.IMAGE.is_file():
        return "the CUDA kernels are not built; reinstall pyquant-engine with nvcc on PATH"
    try:
        cuda_driver.driver()
    except BackendError as error:
        return str(error).rstrip(".")
    return None


def choose(
    op: str, device: torch.device | str, backend: str = "auto", arguments: Sequence[Any] | None = None
) -> Choice:
    """Choose what serves ``op`` on tensors of ``device``.

    Args:
        op: the op's name, such as ``"fake_quantize"``.
        device: where the tensors are.
        backend: one of :data:`BACKENDS`, or ``"auto"``, which alone may move on to the next best.
        arguments: the op's arguments, for backends that serve some shapes only; None chooses without them.

    Raises:
        BackendError: the name is unknown, or the pinned backend cannot serve the op here.
    """
    device = torch.device(device)
    if backend == "auto":
        whys, order = [], ORDER.get(device.type, ("reference",))
        if device.type == "cuda" and op in _orders and arguments is not None:
            order = tuple(_orders[op](*arguments))
        for name in order:
            found = _serve(op, device, name, arguments)
            if isinstance(found, Choice):
                return found
            whys.append(f"{name}: {found}")
        if not any(served == op for served, _ in _kernels):
            raise BackendError(f"{op} has no backend for {device.type} tensors; it has no backend.")
        raise BackendError(f"{op} has no backend for {device.type} tensors ({'; '.join(whys)}).")
    if backend not in BACKENDS:
        raise BackendError(f"backend={backend!r} is unknown; use auto, {', '.join(BACKENDS)}.")
    found = _serve(op, device, backend, arguments, "pinned")
    if isinstance(found, Choice):
        return found
    others = [
        name
        for name in BACKENDS
        if name != backend and isinstance(_serve(op, device, name, arguments), Choice)
    ]
    instead = f"; use {' or '.join(others)}" if others else ""
    raise BackendError(f"backend={backend!r} {found}{instead}.")


def run(op: str, backend: str, *arguments: Any) -> Any:
    """Choose by the first argument's device and by all arguments, and run.

    Raises:
        DTypeError: tensors among the arguments are on different devices.
        BackendError: as of :func:`choose`.
    """
    device = arguments[0].device
    for argument in arguments:
        if isinstance(argument, Tensor) and argument.device != device:
            raise DTypeError(
                f"{op} was given tensors on {device} and on {argument.device}; move them to one device."
            )
    return choose(op, device, backend, arguments).kernel(*arguments)


def call(op: str, backend: str, *arguments: Any) -> Any:
    """Run an op: through torch, which compiles and traces it, where any backend will do, and else on the one that is named."""
    return getattr(torch.ops.pyquant, op)(*arguments) if backend == "auto" else run(op, backend, *arguments)


def _serve(
    op: str, device: torch.device, backend: str, arguments: Sequence[Any] | None, why: str | None = None
) -> Choice | str:
    """The choice of a backend, or why it cannot be."""
    reason = missing(backend)
    if reason is not None:
        return f"cannot serve {op}: {reason}"
    kernel, plan = _kernels.get((op, backend)), _plans.get((op, backend))
    if kernel is None:
        return f"does not serve {op}"
    if device.type not in _READS.get(backend, (device.type,)) and not (
        backend == "triton" and interpreted() and device.type == "cpu"
    ):
        return f"cannot serve {op} on {device.type} tensors"
    why = why or f"best of those available for {device.type} tensors"
    if plan is None:
        return Choice(op, backend, kernel, why)
    if arguments is None:
        return Choice(op, backend, partial(_planned, plan, kernel, device), why)
    try:
        configuration = plan(device, *arguments)
    except Unserved as unserved:
        return f"cannot serve {op} on {architecture(device)}: {unserved}"
    return Choice(op, backend, partial(kernel, configuration), why, configuration)


def _planned(plan: Callable, kernel: Callable, device: torch.device, *arguments: Any) -> Any:
    """Plan and run at once."""
    try:
        configuration = plan(device, *arguments)
    except Unserved as unserved:
        raise BackendError(
            f"the chosen backend cannot serve this call on {architecture(device)}: {unserved}."
        ) from None
    return kernel(configuration, *arguments)
