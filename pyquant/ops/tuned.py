"""Tiles of Triton's kernels that were measured on a device: the fastest of a table, and the file that remembers it.

A kernel chooses its tile by a rule, ``choose`` of its module. Here every tile of its table is timed instead, for one call on one
device. What is found goes to a file, and counts only where that file is given: nothing looks for one. All tiles give the same bytes.

The file is JSON: ``{"format": "pyquant tiles", "version": 1, "devices": {device: {call: tile}}}``. A device is its name and
architecture with Triton's version, as another one compiles other code; a call is a kernel and its description; a tile is ``[m, n, k,
warps, stages]``. Entries of other devices are kept and passed over, and so is a tile that is not in the kernel's table.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyquant.errors import BackendError, DataError
from pyquant.ops.backend import Choice, architecture
from pyquant.ops.triton_launch import Planned

FORMAT, VERSION = "pyquant tiles", 1
Tile = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class Tiles:
    """What was measured on a device.

    Attributes:
        of: the fastest tile by :func:`call_of`.
    """

    of: Mapping[str, Tile]

    def apply(self, choice: Choice) -> Choice:
        """The choice with the tile that was measured for it; itself where none was, or the kernel no longer has it."""
        plan = choice.configuration
        if isinstance(plan, Planned):
            for other in candidates(plan):
                if tile_of(other) == self.of.get(call_of(plan)):
                    return choice.using(other, "measured to be the fastest tile here")
        return choice


def call_of(plan: Planned) -> str:
    """A kernel and what it is called with."""
    fields = ", ".join(f"{name}={value}" for name, value in vars(plan.description).items())
    return f"{plan.name}: {fields}"


def tile_of(plan: Planned) -> Tile:
    """Rows, columns, products a step, warps and stages."""
    tile = plan.configuration.tile
    return tile.m, tile.n, tile.k, tile.warps, tile.stages


def candidates(plan: Planned) -> list[Planned]:
    """The plan, and the same with each other tile of the kernel's table for the target; none of a kernel without a table."""
    kernel = importlib.import_module(f"pyquant.kernels.{plan.name}")
    if not hasattr(kernel, "TILES"):
        return []
    chosen = plan.configuration
    # The length of a step follows from the call, and constants of the kernel from that.
    tiles = [replace(tile, k=chosen.tile.k) for tile in kernel.TILES[chosen.target]]
    others = dict.fromkeys(tile for tile in tiles if tile != chosen.tile)
    return [plan, *(replace(plan, configuration=replace(chosen, tile=tile)) for tile in others)]


def fastest(
    choice: Choice, arguments: Sequence[Any], milliseconds: Callable[[Callable[[], Any]], float]
) -> tuple[Planned, dict[str, float]]:
    """Time a call with every tile that the device can hold.

    Args:
        choice: of a Triton kernel with a table.
        arguments: of the call.
        milliseconds: of a function that makes the call.

    Returns:
        The plan with the fastest tile, and the time of each by its ``str``.

    Raises:
        BackendError: the device cannot hold the tile that the kernel itself chooses, or a tile gives other bytes than that.
    """
    want: Tensor = choice.kernel(*arguments)
    times: dict[str, float] = {}
    best, least = choice.configuration, float("inf")
    for plan in candidates(best):
        tried = choice.using(plan, choice.why)
        try:
            got = tried.kernel(*arguments)
        except BackendError:
            # It does not fit, or spills what the device has not.
            continue
        if not torch.equal(got, want):
            raise BackendError(f"{tried}: its result is not that of {choice.configuration}; report this.")
        times[str(plan)] = taken = milliseconds(partial(tried.kernel, *arguments))
        if taken < least:
            best, least = plan, taken
    return best, times


def on_gpu(call: Callable[[], Any]) -> float:
    """Median milliseconds of a call on the current device by its events, its L2 written over before each."""
    from triton.testing import do_bench

    return do_bench(call, return_mode="median")


# --------------------------------------------------------------------------------------------------------- the file
def device_name(device: torch.device) -> str:
    """The device as the file has it."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name}, {architecture(device)}, triton {importlib.metadata.version('triton')}"


def read(path: Path, device: torch.device) -> Tiles:
    """What a file says of a device; no tiles if that is nothing.

    Raises:
        DataError: there is no such file, or it is none of :func:`text`'s.
    """
    if not path.is_file():
        raise DataError(f"{str(path)!r} does not exist; write it with pyquant.tune, or leave tuned out.")
    return Tiles(_devices(path).get(device_name(device), {}))


def text(path: Path, device: torch.device, of: Mapping[str, Tile]) -> str:
    """A file's new text: with these tiles of the device, and what it has of others.

    Raises:
        DataError: there is such a file, and it holds something else.
    """
    devices = _devices(path) if path.exists() else {}
    name = device_name(device)
    devices[name] = {**devices.get(name, {}), **of}
    return (
        json.dumps({"format": FORMAT, "version": VERSION, "devices": devices}, indent=1, sort_keys=True)
        + "\n"
    )


def _devices(path: Path) -> dict[str, dict[str, Tile]]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if held["format"] != FORMAT or held["version"] != VERSION:
            raise ValueError(f"it is {held['format']!r} of version {held['version']!r}")
        return {
            str(device): {str(call): _tile(tile) for call, tile in calls.items()}
            for device, calls in held["devices"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise DataError(
            f"{str(path)!r} holds no {FORMAT} of version {VERSION} ({reason}); delete it, or give another file."
        ) from error


def _tile(item: Any) -> Tile:
    m, n, k, warps, stages = item
    if not all(type(size) is int for size in item):
        raise ValueError(f"{item} is no tile")
    return m, n, k, warps, stages
