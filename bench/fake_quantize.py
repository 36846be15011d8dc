"""Fake-quantize in one pass over float32, forward and with its gradients, against torch's own ops, torch.compile and a plain copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.limits import COPY, COPY_STREAM, Probe, available
from bench.measure import measure
from bench.record import Row
from pyquant import reference
from pyquant.errors import BackendError
from pyquant.grid import Grid
from pyquant.ops.fake_quantize import fake_quantize
from pyquant.ops.results import result_like
from pyquant.runtime.compare import same_bytes

ELEMENTS, QUICK_ELEMENTS, CHANNELS = 1 << 24, 1 << 18, 256
# Bytes an element: x in, y out; then x and dy in, dx out; where no scale learns, a bit out, and back in for x.
FORWARD_BYTES, BOTH_BYTES, LEARNED_BYTES = 8, 16.25, 20
Runs = dict[str, Callable[[], Any]]


def rows(threads: Sequence[int], quick: bool, peers: bool) -> Iterator[Row]:
    """16 million elements, per tensor and per channel, x alone or scale too; quick: a quarter of a million, without torch.compile.

    Inputs, buffers to write to, and so our results, lie on huge pages where the system gives them; torch's results where torch puts
    them. The limit is the faster of two copies from input to buffer, with plain and with non-temporal stores.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(CHANNELS, (QUICK_ELEMENTS if quick else ELEMENTS) // CHANNELS, generator=generator)
    for count in threads:
        torch.set_num_threads(count)
        for axis in (None, 0):
            case = Case(x, axis, quick)
            spread = "per tensor" if axis is None else "per channel"
            suites = {
                f"forward {spread}": (case.forward(), FORWARD_BYTES),
                f"forward and backward {spread}": (case.both(learned=False), BOTH_BYTES),
                f"learned scale {spread}": (case.both(learned=True), LEARNED_BYTES),
            }
            for name, (runs, width) in suites.items():
                loops = [loop for loop in (COPY, COPY_STREAM) if loop in available()]
                probes = {loop: Probe(loop, count, x.nbytes, case.places) for loop in loops}
                measured = measure(runs, probes, count, rounds=3 if quick else 7)
                best = max(measured.limits, key=measured.limits.__getitem__, default=None)
                others = [key for key in runs if key != "cpu"] if peers else []
                for key in runs:
                    yield measured.row(
                        f"{name} {x.numel()}",
                        key,
                        traffic=x.numel() * width,
                        limit=best,
                        peers=others if key == "cpu" else (),
                    )


class Case:
    """One tensor and its scales, and the runs over them.

    Args:
        x: ``[C, L]`` float32.
        axis: of the scales; None for one.
        quick: leave out torch.compile.
    """

    def __init__(self, x: Tensor, axis: int | None, quick: bool) -> None:
        self.x, self.axis, self.quick = result_like(x).copy_(x), axis, quick
        self.dy, self.out = result_like(x).fill_(1.0), result_like(x)
        self.grid = Grid(8, signed=False, axis=axis)
        shape = self.grid.scale_shape(tuple(x.shape))
        self.scale, self.zero = torch.full(shape, 0.03), torch.full(shape, 120.0)
        self.edges = (self.grid.qmin, self.grid.qmax)
        self.places = self.x.data_ptr(), self.out.data_ptr()

    def forward(self) -> Runs:
        """To a buffer that is there; torch's own op has no such form."""
        x, scale, zero, grid = self.x, self.scale, self.zero, self.grid
        out = self.out
        fake_quantize(x, scale, zero, grid, backend="cpu", out=out)
        spread = (scale, zero) if self.axis is None else (scale[:, None], zero[:, None])
        if not same_bytes(out, reference.fake_quantize(x, *spread, *self.edges)):
            raise BackendError("the cpu backend's bytes are not those of the reference; not timed.")
        runs: Runs = {
            "cpu": lambda: fake_quantize(x, scale, zero, grid, backend="cpu", out=out),
            "torch-own": lambda: self._own(x),
        }
        if not self.quick and self.axis is None:
            compiled = torch.compile(self._written, dynamic=False)
            runs["torch-compile"] = lambda: compiled(x, scale, zero, out)
        return runs

    def both(self, learned: bool) -> Runs:
        """Forward and gradients, of ``x`` alone or of the scale and the zero point too."""
        x, dy = self.x.detach().requires_grad_(), self.dy
        scale, zero = self.scale.clone().requires_grad_(learned), self.zero.clone().requires_grad_(learned)
        leaves = (x, scale, zero) if learned else (x,)

        def ours() -> tuple[Tensor, ...]:
            y = fake_quantize(x, scale, zero, self.grid, backend="cpu")
            return torch.autograd.grad(y, leaves, dy)

        def own() -> tuple[Tensor, ...]:
            y = self._own_learned(x, scale, zero) if learned else self._own(x)
            return torch.autograd.grad(y, leaves, dy)

        spread = (self.scale, self.zero) if self.axis is None else (self.scale[:, None], self.zero[:, None])
        want = reference.fake_quantize_backward(dy, self.x, *spread, *self.edges)[0]
        if not same_bytes(ours()[0], want):
            raise BackendError("the cpu backend's gradient is not that of the reference; not timed.")
        return {"cpu": ours, "torch-lsq" if learned else "torch-own": own}

    def _written(self, x: Tensor, scale: Tensor, zero: Tensor, out: Tensor) -> None:
        out.copy_((torch.clamp(torch.round(x / scale) + zero, *self.edges) - zero) * scale)

    def _own(self, x: Tensor) -> Tensor:
        if self.axis is None:
            return torch.fake_quantize_per_tensor_affine(x, 0.03, 120, *self.edges)
        return torch.fake_quantize_per_channel_affine(x, self.scale, self.zero, self.axis, *self.edges)

    def _own_learned(self, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        if self.axis is None:
            return torch._fake_quantize_learnable_per_tensor_affine(
                x, scale.reshape(1), zero.reshape(1), *self.edges, 1.0
            )
        return torch._fake_quantize_learnable_per_channel_affine(x, scale, zero, self.axis, *self.edges, 1.0)
