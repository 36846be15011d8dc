"""Whole networks on a GPU: images a second of our integer programs, beside the float16 network of cuDNN in a CUDA graph."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from bench import networks
from bench.gpu_cases import WRONG
from bench.layer import multiplications
from bench.network import CALIBRATION_COUNT
from pyquant.errors import BackendError
from pyquant.grid import Grid
from pyquant.model import prepare
from pyquant.runtime.compare import same_bytes
from pyquant.runtime.net import Net, deploy
from pyquant.steps.calibrate import calibrate

MODELS, BATCHES = ("resnet50", "mobilenet_v2"), (1, 32, 128)
# Images whose bytes are compared with those of the CPU.
CHECKED = 2
# auto is what a user gets; the others say where its choices lose.
BACKENDS = ("auto", "triton", "cuda")


def built(name: str) -> tuple[nn.Module, Net]:
    """A network, and its integer program with 8-bit weights: speed does not depend on how they were found."""
    model, data = networks.build(name), networks.images(CALIBRATION_COUNT)
    return model, deploy(calibrate(prepare(model, data[:1], weights=Grid(8, axis=0)), data), device="cpu")


def batch_of(images: int, device: torch.device) -> Tensor:
    """So many images, the first ones always the same."""
    few = networks.images(CALIBRATION_COUNT)
    return few.repeat(-(-images // CALIBRATION_COUNT), 1, 1, 1)[:images].to(device)


def operations(net: Net) -> int:
    """Of one image; a multiply-add is two."""
    return 2 * sum(multiplications(op, net.program) for op in net.program.ops if op.kind == "conv")


def ours(net: Net, want: Tensor, x: Tensor) -> Iterator[tuple[str, Callable[[], Callable[[], Tensor]]]]:
    """Name of a row, and what makes its call, once its bytes are right.

    Args:
        net: on the CPU.
        want: what it makes of the first images.
        x: the batch, on the device.
    """

    def make(backend: str) -> Callable[[], Tensor]:
        there = net.with_backend(backend, device=x.device)
        got, checked = there(x), min(len(x), len(want))
        if not same_bytes(got[:checked].cpu(), want[:checked]):
            raise BackendError(f"its result for a batch of {len(x)} is {WRONG}.")
        return lambda: there(x)

    for backend in BACKENDS:
        yield f"{backend}-w8a8", lambda backend=backend: make(backend)


def half_graph(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """The float16 network in channels-last layout, captured once; a call copies the float32 batch in, as ours does."""
    there = copy.deepcopy(model).to(x.device, torch.float16).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    given = x.half().contiguous(memory_format=torch.channels_last)
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(side):
        for _ in range(3):
            there(given)
        with torch.cuda.graph(graph, stream=side):
            y = there(given)
    torch.cuda.current_stream().wait_stream(side)

    def call() -> Tensor:
        given.copy_(x)
        graph.replay()
        return y.float()

    return call
