"""Whole networks: our integer programs against torch's float32, eager, channels_last and compiled, in the same rounds."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from bench.record import Row
from bench.timing import interleaved
from pyquant import zoo
from pyquant.errors import BackendError
from pyquant.grid import Grid
from pyquant.model import prepare
from pyquant.runtime.compare import same_bytes
from pyquant.runtime.net import Net, deploy
from pyquant.steps.calibrate import calibrate

MODELS = ("efficientnet_lite0", "resnet20")
PEERS = ("torch-eager", "torch-channels_last", "torch-compile")
CALIBRATION_COUNT = 16
# Peers compute in float32 in another order: a compiled network further off than this computes something else.
PEER_ERROR = 1e-3


def rows(threads: Sequence[int], quick: bool) -> Iterator[Row]:
    """Batch 1 and 16 of both networks; quick: ResNet-20 alone, at batch 1, without torch.compile."""
    for name in MODELS[-1:] if quick else MODELS:
        model, data = zoo.load(name), zoo.calibration(name)[:CALIBRATION_COUNT]
        nets = {f"cpu-w{bits}a8": quantised(model, data, bits) for bits in (8, 4)}
        for count in threads:
            torch.set_num_threads(count)
            peers = _peers(model, count, compiled=not quick)
            for batch in (1,) if quick else (1, 16):
                runs = {key: _checked(net, data[:batch], count) for key, net in nets.items()}
                with torch.no_grad():
                    runs |= {
                        key: _checked_peer(model, peer, data[:batch], key) for key, peer in peers.items()
                    }
                    timings = interleaved(runs, count, rounds=3 if quick else 9)
                for key, timing in timings.items():
                    yield {
                        "case": f"{name} batch {batch}",
                        "backend": key,
                        "threads": count,
                        "us": timing.us,
                        "spread": timing.spread,
                        "clock": timing.clock,
                        "images_per_s": batch / timing.us * 1e6,
                        "over_best_peer": min(timings[peer].us for peer in peers) / timing.us,
                    }


def quantised(model: nn.Module, data: Tensor, bits: int) -> Net:
    """The network with weights of ``bits`` bits rounded to nearest: speed does not depend on how they were found."""
    q = prepare(model, data[:1], weights=Grid(bits, axis=0))
    return deploy(calibrate(q, data), backend="cpu")


def _checked(net: Net, x: Tensor, threads: int) -> Callable[[], Any]:
    ours = net.with_backend("cpu", threads)
    if not same_bytes(ours(x), net.with_backend("reference")(x)):
        raise BackendError(
            "the cpu backend's bytes are not those of the reference on the same inputs; not timed."
        )
    return lambda: ours(x)


def _peers(model: nn.Module, threads: int, compiled: bool) -> dict[str, nn.Module]:
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    peers = dict(zip(PEERS, (model, last), strict=False))
    compiler = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    if not compiled or compiler is None:
        why = "--quick" if not compiled else "no C++ compiler is on PATH"
        Console().print(f"torch-compile is left out: {why}.")
        return peers
    torch._dynamo.reset()
    options: dict[str, Any] = {"freezing": True, "cpp.threads": threads}
    peers[PEERS[2]] = torch.compile(copy.deepcopy(last), dynamic=False, options=options)  # type: ignore[assignment]
    return peers


def _checked_peer(model: nn.Module, peer: nn.Module, x: Tensor, key: str) -> Callable[[], Any]:
    given = x if peer is model else x.contiguous(memory_format=torch.channels_last)
    want = model(x)
    error = ((peer(given) - want).norm() / want.norm()).item()
    if not error < PEER_ERROR:
        raise BackendError(f"{key} is off by {error:.1e} of the network's output; not timed.")
    return lambda: peer(given)
