"""The GPUs that kernels are compiled for: their names, and what the choice of a tile has to know of each."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Target:
    """One architecture.

    Attributes:
        name: ``"sm_80"``, ..., or AMD's ``"gfx942"``.
        backend: Triton's word for the maker, ``"cuda"`` or ``"hip"``.
        arch: Triton's word for the architecture.
        warp: threads a warp.
        shared: bytes of shared memory that one block may have.
        processors: multiprocessors of the smallest common chip; work is split to fill so many.
    """

    name: str
    backend: str
    arch: int | str
    warp: int
    shared: int
    processors: int


# Shared memory: CUDA programming guide, table of compute capabilities, less the 1 KiB the system keeps.
TARGETS = {
    target.name: target
    for target in (
        Target("sm_80", "cuda", 80, 32, 166_912, 108),
        Target("sm_86", "cuda", 86, 32, 101_376, 82),
        Target("sm_89", "cuda", 89, 32, 101_376, 128),
        Target("sm_90", "cuda", 90, 32, 232_448, 132),
        Target("sm_100", "cuda", 100, 32, 232_448, 148),
        Target("sm_120", "cuda", 120, 32, 101_376, 170),
        Target("gfx942", "hip", "gfx942", 64, 65_536, 304),
    )
}
# Triton's interpreter computes on the CPU with numpy: it wants few programs, and knows no PTX.
INTERPRETER = Target("interpreter", "interpreter", "numpy", 32, 1 << 30, 1)
# Chips that run another one's machine code and have no less of anything that a tile needs.
_SERVED_AS = {"sm_87": "sm_86", "sm_103": "sm_100", "sm_121": "sm_120"}


def find(name: str) -> Target:
    """The target of that name, or the interpreter."""
    return INTERPRETER if name == INTERPRETER.name else TARGETS[name]


def of(device: torch.device) -> str:
    """Name of the target that serves a device; tensors on the CPU are for the interpreter.

    Raises:
        ValueError: no kernel is built for such a device.
    """
    if device.type == "cpu":
        return INTERPRETER.name
    if torch.version.hip:
        name = torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    else:
        major, minor = torch.cuda.get_device_capability(device)
        name = f"sm_{major}{minor}"
    name = _SERVED_AS.get(name, name)
    if name not in TARGETS:
        raise ValueError(f"{device} is a {name}; Triton kernels are there for {', '.join(TARGETS)}.")
    return name
