"""Whole networks: our integer programs against torch's float32, eager, channels_last and compiled, and other engines' int8."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from bench import networks
from bench.layer import multiplications, pinned
from bench.measure import bound_of, measure
from bench.peers.cached import model_of
from bench.peers.crew import Crew, within
from bench.record import Row
from pyquant import zoo
from pyquant.errors import BackendError
from pyquant.grid import Grid
from pyquant.model import prepare
from pyquant.runtime.compare import same_bytes
from pyquant.runtime.execute_cpu import CpuExecutor
from pyquant.runtime.net import Net, deploy
from pyquant.steps.calibrate import calibrate

ZOO = ("efficientnet_lite0", "resnet20")
MODELS = (*networks.NETWORKS, *ZOO)
PEERS = ("torch-eager", "torch-channels_last", "torch-compile")
INT8_PEERS = ("torch-x86-int8", "onnxruntime", "openvino")
CALIBRATION_COUNT = 16
# Peers compute in float32 in another order: a compiled network further off than this computes something else.
PEER_ERROR = 1e-3
# Another int8 network of the same float one is off by a few tenths at most; an unrelated one by 1.4.
INT8_ERROR = 0.5


def rows(threads: Sequence[int], quick: bool, peers: bool) -> Iterator[Row]:
    """Batch 1 and 16 of every network; quick: ResNet-20 alone, at batch 1, without torch.compile."""
    with Crew("network", INT8_PEERS) if peers else nullcontext() as crew:
        for name in ZOO[-1:] if quick else MODELS:
            yield from _network(name, threads, quick, crew)


def _network(name: str, threads: Sequence[int], quick: bool, crew: Crew | None) -> Iterator[Row]:
    model, data = model_of(name), calibration(name)
    nets = {f"w{bits}a8": quantised(model, data, bits) for bits in (8, 4)}
    wants = {key: net.with_backend("reference")(data) for key, net in nets.items()}
    ours = {f"cpu-{key}": (net, "auto", key) for key, net in nets.items()}
    ours |= {f"{isa}-w8a8": (nets["w8a8"], isa, "w8a8") for isa in pinned()}
    sizes = {key: file_bytes(net) for key, net in nets.items()}
    program = nets["w8a8"].program
    operations = 2 * sum(multiplications(op, program) for op in program.ops if op.kind == "conv")
    alone: dict[tuple[str, int], float] = {}
    for count in threads:
        torch.set_num_threads(count)
        floats = _floats(model, count, compiled=not quick)
        for batch in (1,) if quick else (1, 16):
            x = data[:batch]
            runs: dict[str, Callable[[], Any]] = {
                key: _checked(net, isa, x, wants[bits][:batch], count)
                for key, (net, isa, bits) in ours.items()
            }
            with torch.no_grad():
                runs |= {key: _checked_peer(model, peer, x, key) for key, peer in floats.items()}
                if crew is not None:
                    case = {"name": name, "x": x.numpy(), "images": data.numpy()}
                    runs |= crew.runs(case, count, within(model(x).numpy(), INT8_ERROR))
                limits = [bound_of(key) for key in runs]
                measured = measure(runs, limits, count, rounds=3 if quick else 9 if batch == 1 else 5)
            others = [key for key in runs if key not in ours] if crew is not None else []
            for key in runs:
                row = measured.row(
                    f"{name} batch {batch}",
                    key,
                    operations=operations * batch,
                    limit=bound_of(key),
                    peers=others if key in ours else (),
                )
                first = alone.setdefault((key, batch), row["us"])
                yield row | {
                    "images_per_s": batch / row["us"] * 1e6,
                    "file_bytes": sizes[ours[key][2]] if key in ours else None,
                    "over_fewest_threads": first / row["us"],
                }


def calibration(name: str) -> Tensor:
    """Images to calibrate and to time with, ``[16, C, H, W]`` float32."""
    if name in networks.NETWORKS:
        return networks.images(CALIBRATION_COUNT)
    return zoo.calibration(name)[:CALIBRATION_COUNT].contiguous()


def quantised(model: nn.Module, data: Tensor, bits: int) -> Net:
    """The network with weights of ``bits`` bits rounded to nearest: speed does not depend on how they were found."""
    q = prepare(model, data[:1], weights=Grid(bits, axis=0))
    return deploy(calibrate(q, data), backend="cpu")


def file_bytes(net: Net) -> int:
    """Bytes of the network's file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.pq"
        net.save(path)
        return path.stat().st_size


def _checked(net: Net, isa: str, x: Tensor, want: Tensor, threads: int) -> Callable[[], Any]:
    if isa == "auto":
        run: Callable[[Tensor], Any] = net.with_backend("cpu", threads)
    else:
        executor = CpuExecutor(net.program, threads, isa)
        run = lambda x: executor(x)[0]  # noqa: E731
    if not same_bytes(run(x), want):
        raise BackendError(
            "the cpu backend's bytes are not those of the reference on the same inputs; not timed."
        )
    return lambda: run(x)


def _floats(model: nn.Module, threads: int, compiled: bool) -> dict[str, nn.Module]:
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
