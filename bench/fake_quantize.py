"""Fake-quantize in one pass over float32, forward and with its gradient, against torch's own op, torch.compile and a plain copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.record import Row
from bench.timing import interleaved
from pyquant import reference
from pyquant.errors import BackendError
from pyquant.grid import Grid
from pyquant.ops.fake_quantize import fake_quantize
from pyquant.runtime.compare import same_bytes

GRID = Grid(8, signed=False)
ELEMENTS, QUICK_ELEMENTS = 1 << 24, 1 << 18
FORWARD_BYTES, BACKWARD_BYTES = 8, 12


def rows(threads: Sequence[int], quick: bool) -> Iterator[Row]:
    """Per tensor, 16 million elements; quick: a quarter of a million, without torch.compile."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(QUICK_ELEMENTS if quick else ELEMENTS, generator=generator)
    scale, zero = torch.tensor(0.03), torch.tensor(120.0)
    for count in threads:
        torch.set_num_threads(count)
        suites = {
            "forward": (_forward(x, scale, zero, quick), FORWARD_BYTES),
            "forward and backward": (_both(x, scale, zero), None),
        }
        for case, (runs, width) in suites.items():
            timings = interleaved(runs, count, rounds=3 if quick else 7)
            peers = [key for key in timings if key not in ("cpu", "copy")]
            for key, timing in timings.items():
                bytes_moved = x.numel() * (width or FORWARD_BYTES + BACKWARD_BYTES)
                yield {
                    "case": f"{case} {x.numel()}",
                    "backend": key,
                    "threads": count,
                    "us": timing.us,
                    "spread": timing.spread,
                    "clock": timing.clock,
                    "gb_per_s": bytes_moved / timing.us / 1e3,
                    "share": timings["copy"].us / timing.us if "copy" in timings else None,
                    "over_best_peer": None
                    if key == "copy"
                    else min(timings[p].us for p in peers) / timing.us,
                }


def _forward(x: Tensor, scale: Tensor, zero: Tensor, quick: bool) -> dict[str, Callable[[], Any]]:
    out = torch.empty_like(x)
    fake_quantize(x, scale, zero, GRID, backend="cpu", out=out)
    if not same_bytes(out, reference.fake_quantize(x, scale, zero, GRID.qmin, GRID.qmax)):
        raise BackendError("the cpu backend's bytes are not those of the reference; not timed.")
    place = torch.empty_like(x)
    runs: dict[str, Callable[[], Any]] = {
        "cpu": lambda: fake_quantize(x, scale, zero, GRID, backend="cpu", out=out),
        "copy": lambda: place.copy_(x),
        "torch-own": lambda: torch.fake_quantize_per_tensor_affine(x, 0.03, 120, GRID.qmin, GRID.qmax),
    }
    if not quick:
        compiled = torch.compile(_written, dynamic=False)
        runs["torch-compile"] = lambda: compiled(x, scale, zero, place)
    return runs


def _written(x: Tensor, scale: Tensor, zero: Tensor, out: Tensor) -> None:
    out.copy_((torch.clamp(torch.round(x / scale) + zero, GRID.qmin, GRID.qmax) - zero) * scale)


def _both(x: Tensor, scale: Tensor, zero: Tensor) -> dict[str, Callable[[], Any]]:
    leaf, dy = x.clone().requires_grad_(), torch.ones_like(x)

    def ours() -> None:
        leaf.grad = None
        fake_quantize(leaf, scale, zero, GRID, backend="cpu").backward(dy)

    def own() -> None:
        leaf.grad = None
        torch.fake_quantize_per_tensor_affine(leaf, 0.03, 120, GRID.qmin, GRID.qmax).backward(dy)

    return {"cpu": ours, "torch-own": own}
