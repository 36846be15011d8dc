"""Matrix products on the GPU that is here, beside cuBLAS in float16 and torch's int8: cold L2, CUDA graphs, medians.

Each run is checked against the reference on the device before it is timed. A sample is a graph of calls, each behind
a write over twice the L2 cache, less a graph of those writes alone: what is left is the calls, which find nothing in the cache.
Layers are those of Llama and of ResNet-50 at a batch of 32, the convolutions as the products they come to.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.record import Row, figures
from bench.timing import Timing
from pyquant.errors import BackendError
from pyquant.ops import gemm_s8, gemm_w4, gemm_w4a4, gemm_w4a16  # noqa: F401 (registered, then chosen by name)
from pyquant.ops.backend import Choice, architecture, choose
from pyquant.ops.pack import pack, unpack
from pyquant.runtime.compare import same_bytes

BACKENDS = ("cuda", "triton")
# Rows of a batch, and (N, K) of layers: attention and feed-forward of the 7B, 8B and 70B Llamas.
ROWS = (1, 4, 16, 64, 256, 1024, 4096)
LLAMA = ((4096, 4096), (11008, 4096), (4096, 14336), (8192, 28672))
# (M, N, K) of ResNet-50's 3 x 3 convolutions, one a stage, for 32 images.
RESNET = ((100352, 64, 576), (25088, 128, 1152), (6272, 256, 2304), (1568, 512, 4608))
QUICK = ((16, 4096, 4096), (1568, 512, 4608))
ROUNDS, CALLS = 15, 20
# Weights beside float16 activations share a scale in groups of so many.
GROUP = 128


@dataclass(frozen=True)
class Run:
    """One way to compute a shape.

    Args:
        name: the row's backend.
        call: computes it, without arguments.
        width: bits of an activation and of a weight.
        kernel: what was chosen, in words.
    """

    name: str
    call: Callable[[], Any]
    width: tuple[int, int]
    kernel: str = ""


def absent() -> str | None:
    """Why there is nothing to time, in one sentence; None if there is a GPU."""
    if torch.cuda.is_available():
        return None
    return "There is no GPU that torch can see, so nothing was timed; on a machine with one, this command measures it."


def about(device: torch.device) -> Row:
    """What the rows say of the GPU, in place of the processor's."""
    known = torch.cuda.get_device_properties(device)
    return {"device": known.name, "isa": architecture(device), "cores": known.multi_processor_count}


def shapes(quick: bool) -> Sequence[tuple[int, int, int]]:
    """(M, N, K) to time."""
    return QUICK if quick else [*((m, n, k) for n, k in LLAMA for m in ROWS), *RESNET]


def rows(threads: Sequence[int], quick: bool, peers: bool) -> Iterator[Row]:
    """All shapes; quick: two of them. cuBLAS and ``torch._int_mm`` are always beside ours."""
    device = torch.device("cuda", torch.cuda.current_device())
    flush = torch.empty(
        2 * torch.cuda.get_device_properties(device).L2_cache_size, dtype=torch.uint8, device=device
    )
    for m, n, k in shapes(quick):
        yield from shape_rows(m, n, k, device, lambda calls: timed(calls, flush, 5 if quick else ROUNDS))


def shape_rows(
    m: int, n: int, k: int, device: torch.device, time: Callable[[Sequence[Callable]], list[Timing]]
) -> Iterator[Row]:
    """Check, then time, all runs of one shape against each other.

    Raises:
        BackendError: bytes are not those of the reference.
    """
    runs = [*ours(m, n, k, device), *others(m, n, k, device)]
    timings = time([run.call for run in runs])
    at = {run.name: timing for run, timing in zip(runs, timings, strict=True)}
    for run in runs:
        bits = m * k * run.width[0] + n * k * run.width[1]
        found = figures(at[run.name], 2 * m * n * k, bits / 8 + m * n * (2 if run.width[0] == 16 else 4))
        found["peers"] = (
            {} if not run.kernel else {o.name: at[o.name].us / at[run.name].us for o in runs if not o.kernel}
        )
        yield {"case": f"M{m} N{n} K{k}", "backend": run.name, "threads": 1, **found, "kernel": run.kernel}


def ours(m: int, n: int, k: int, device: torch.device) -> Iterator[Run]:
    """The kernels that serve the shape here, each of them right.

    Raises:
        BackendError: one is wrong.
    """
    for op, (name, width, arguments) in cases(m, n, k, device).items():
        want = choose(op, device, "reference", arguments).kernel(*arguments)
        for backend in BACKENDS:
            try:
                choice = choose(op, device, backend, arguments)
            except BackendError:
                continue
            if not right(op, choice.kernel(*arguments), want, arguments):
                raise BackendError(
                    f"{choice}: its result for M={m} N={n} K={k} is not the reference's; not timed."
                )
            yield Run(f"{backend}-{name}", _call(choice, arguments), width, str(choice.configuration))


def right(op: str, got: Tensor, want: Tensor, arguments: Sequence[Any]) -> bool:
    """Whether a result is the reference's: to the byte, and of float products within what sums in float32 may lose.

    That is at most 2^-23 of the terms' sum for each of K products, G groups and K / 64 splits, and both are rounded to float16.
    """
    if op != "gemm_w4a16":
        return same_bytes(got, want)
    x, packed, scale, _, group_size, signed, bits = arguments
    k = x.shape[1]
    weight = unpack(packed, bits, signed, k).double().abs() * scale.double().repeat_interleave(group_size, 1)
    sums = (k + k // group_size + k // 64 + 1) * 2.0**-23 * (x.double().abs() @ weight.T)
    rounding = 2 * (2.0**-11 * (want.double().abs() + sums) + 2.0**-25)
    return bool(((got.double() - want.double()).abs() <= sums + rounding).all())


def _call(choice: Choice, arguments: Sequence[Any]) -> Callable[[], Any]:
    return lambda: choice.kernel(*arguments)


def cases(m: int, n: int, k: int, device: torch.device) -> dict[str, tuple[str, tuple[int, int], tuple]]:
    """Op -> name of its rows, bits of an activation and a weight, and random arguments. Integers give float32."""
    generator = torch.Generator().manual_seed(m + n + k)

    def codes(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    x, w8 = codes(0, 256, m, k).to(torch.uint8), codes(-128, 128, n, k).to(torch.int8)
    w4, x4 = pack(codes(-8, 8, n, k), 4), pack(codes(-8, 8, m, k), 4)
    scale, row_scale = torch.rand(n, 1, generator=generator), torch.rand(m, generator=generator)
    multiplier, bias = torch.rand(n, generator=generator), torch.randn(n, generator=generator)
    w4a8 = (x.to(torch.int16).sub(128).to(torch.int8), w4, scale, row_scale, None, None, None, True, 4)
    w4a4 = (x4, w4, scale, row_scale, k, None, True, None, None, True, 4)
    found = {
        "gemm_s8_float": ("w8a8", (8, 8), (x, w8, multiplier, bias, 128)),
        "gemm_w4": ("w4a8", (8, 4), w4a8),
        "gemm_w4a4": ("w4a4", (4, 4), w4a4),
    }
    if k % GROUP == 0:
        grid = torch.rand(n, k // GROUP, generator=generator) * 0.01
        half = torch.randn(m, k, generator=generator).half()
        found["gemm_w4a16"] = ("w4a16", (16, 4), (half, w4, grid, None, GROUP, True, 4))
    return {
        op: (name, width, tuple(a.to(device) if isinstance(a, Tensor) else a for a in arguments))
        for op, (name, width, arguments) in found.items()
    }


def others(m: int, n: int, k: int, device: torch.device) -> Iterator[Run]:
    """cuBLAS in float16, and torch's int8 product, to int32, where it takes the shape: more than 16 rows."""
    x, w = (
        torch.randn(m, k, device=device, dtype=torch.float16),
        torch.randn(n, k, device=device, dtype=torch.float16),
    )
    yield Run("cublas-fp16", lambda: F.linear(x, w), (16, 16))
    if m > 16 and n % 8 == 0 and k % 8 == 0:
        xs = torch.randint(-128, 128, (m, k), device=device).to(torch.int8)
        ws = torch.randint(-128, 128, (n, k), device=device).to(torch.int8)
        yield Run("torch-int_mm", lambda: torch._int_mm(xs, ws.t()), (8, 8))


# ------------------------------------------------------------------------------------------------------------- timing
def timed(calls: Sequence[Callable[[], Any]], flush: Tensor, rounds: int) -> list[Timing]:
    """Time calls against each other: in every round each of them once, and the writes over the cache alone."""
    alone = _graph(lambda: None, flush)
    graphs = [_graph(call, flush) for call in calls]
    empty: list[float] = []
    samples: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        empty.append(_milliseconds(alone))
        for graph, taken in zip(graphs, samples, strict=True):
            taken.append(_milliseconds(graph))
    return [timing_of(taken, empty) for taken in samples]


def timing_of(samples: Sequence[float], empty: Sequence[float]) -> Timing:
    """The time of a call, from milliseconds of graphs with and without :data:`CALLS` of them, round by round."""
    times = [(taken - nothing) / CALLS * 1e3 for taken, nothing in zip(samples, empty, strict=True)]
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    if middle <= 0:
        raise BackendError(
            "a call took no longer than the write before it; the GPU is too busy to be measured."
        )
    return Timing(middle, (high - low) / middle, "cuda graph")


def _graph(call: Callable[[], Any], flush: Tensor) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(side):
        for _ in range(2):
            call()
        with torch.cuda.graph(graph, stream=side):
            for _ in range(CALLS):
                flush.zero_()
                call()
    torch.cuda.current_stream().wait_stream(side)
    graph.replay()
    return graph


def _milliseconds(graph: torch.cuda.CUDAGraph) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)
