"""Measure which tiles of Triton's kernels are the fastest for a network, on the GPU at hand."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyquant.errors import BackendError, DataError
from pyquant.files import write_whole
from pyquant.ops import tuned
from pyquant.ops.backend import Choice
from pyquant.ops.triton_launch import Planned
from pyquant.runtime.execute_gpu import GpuExecutor, GpuSteps
from pyquant.runtime.net import Net


def tune(
    net: Net,
    batch: int,
    path: str | os.PathLike[str],
    milliseconds: Callable[[Callable[[], Any]], float] = tuned.on_gpu,
) -> list[dict[str, Any]]:
    """Time every tile of every Triton kernel that a batch takes, and write the fastest to a file for ``load(..., tuned=path)``.

    The results stay the same bytes. Kernels of the cuda backend have nothing to be chosen by time.

    Args:
        net: a network on a GPU.
        batch: samples; other batches keep the kernels' own choice.
        path: the file; what it has of other devices, networks and batches stays.
        milliseconds: of a function that makes a call.

    Returns:
        A row a call: ``call``, ``chosen`` and ``fastest`` (the kernel's own tile and the best), ``speedup``, and ``times``, the
        milliseconds of each tile that the device can hold.

    Raises:
        BackendError: the network is not on a GPU, or the device cannot run one of its kernels.
        DataError: the file holds something else, or cannot be written.
    """
    executor, target = net._executor, Path(path)
    if not isinstance(executor, GpuExecutor):
        raise BackendError(
            f"tune measures kernels on a GPU, and this network is on {net.device}; load it with device='cuda'."
        )
    device = executor.steps.device
    tuned.text(target, device, {})
    timed = _Timed(net, device, milliseconds)
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for value in (net.program.values[name] for name in net.program.inputs):
        x = torch.randn(batch, *value.shape, generator=generator)
        inputs.append(
            (x if value.kind == "float" else (x * 40 + 128).clamp(0, 255).to(torch.uint8)).to(device)
        )
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        timed(*inputs)
    tiles = {call: tuned.tile_of(plan) for call, (plan, _) in timed.found.items()}
    try:
        write_whole(target, tuned.text(target, device, tiles).encode())
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be written: {error.strerror}; write elsewhere.") from error
    return [_row(call, *found) for call, found in timed.found.items()]


def _row(call: str, plan: Planned, times: dict[str, float]) -> dict[str, Any]:
    chosen = next(iter(times))
    speedup = times[chosen] / times[str(plan)]
    return {"call": call, "chosen": chosen, "fastest": str(plan), "speedup": speedup, "times": times}


class _Timed(GpuSteps):
    """Steps that time each of Triton's calls before they go on."""

    def __init__(
        self, net: Net, device: torch.device, milliseconds: Callable[[Callable[[], Any]], float]
    ) -> None:
        # Without the tiles of an earlier file.
        super().__init__(net.program, device, net.backend)
        self.milliseconds = milliseconds
        self.found: dict[str, tuple[Planned, dict[str, float]]] = {}

    def _launch(self, choice: Choice, arguments: Sequence[Any]) -> Tensor:
        plan = choice.configuration
        if isinstance(plan, Planned) and tuned.candidates(plan) and tuned.call_of(plan) not in self.found:
            self.found[tuned.call_of(plan)] = tuned.fastest(choice, arguments, self.milliseconds)
        return super()._launch(choice, arguments)
