"""From an op to the Triton kernels: the target that serves a device, or why none does."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch

from pyquant.ops.backend import Unserved

# How the Triton kernels name the types.
FLOATS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def target_of(device: torch.device) -> str:
    """Name of the target that kernels are chosen by.

    Raises:
        Unserved: the Triton kernels are not for this device's architecture.
    """
    from pyquant.kernels import targets

    try:
        return targets.of(device)
    except ValueError as error:
        raise Unserved(str(error).rstrip(".")) from None


@dataclass(frozen=True)
class Planned:
    """A Triton kernel chosen for a call; ``str`` is one line.

    Attributes:
        name: of the kernel's module in ``pyquant.kernels``.
        description: of the call, as that module has it.
        configuration: what is launched.
    """

    name: str
    description: Any
    configuration: Any

    def __str__(self) -> str:
        return str(self.configuration)


def planned(name: str, device: torch.device, **description: Any) -> Planned:
    """A kernel's own choice for a call.

    Args:
        name: of its module in ``pyquant.kernels``.
        device: where it will run.
        description: fields of the module's ``Description``.

    Raises:
        Unserved: as of :func:`target_of`.
    """
    target = target_of(device)
    kernel = importlib.import_module(f"pyquant.kernels.{name}")
    about = kernel.Description(**description)
    return Planned(name, about, kernel.choose(about, target))
