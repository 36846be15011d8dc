"""Linear layers of float32 on 4-bit weights, each row quantised to 8 bits on the way, with weights that no cache holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.limits import READ, caches
from bench.measure import Measured, bound_of, measure
from bench.peers.crew import Crew, within
from bench.record import Row
from pyquant.errors import BackendError
from pyquant.grid import Grid
from pyquant.ops.fake_quantize import quantize
from pyquant.ops.gemm_w4 import gemm_w4
from pyquant.ops.pack import pack
from pyquant.runtime.compare import same_bytes

SIZE, QUICK_SIZE = 4096, 1024
ROWS, GROUPS = (1, 4, 16, 128), (128, 32, None)
PEERS = ("torch-int4pack", "onnxruntime", "openvino", "xnnpack")
# Rows of normal numbers quantised to 8 bits are off by 0.008 of their norm, and so are products of many of them.
ERROR = 0.025
# More copies than this are not needed where the arithmetic takes longer than reading.
FEW, MANY_ROWS = 10, 128


def rows(threads: Sequence[int], quick: bool, peers: bool) -> Iterator[Row]:
    """N = K = 4096 in groups of 128, of 32 and per channel; quick: N = K = 1024, one row, groups of 128, ten copies."""
    size = QUICK_SIZE if quick else SIZE
    with Crew("gemm_w4a8", PEERS) if peers else nullcontext() as crew:
        for group in GROUPS[:1] if quick else GROUPS:
            for m in ROWS[:1] if quick else ROWS:
                for count in threads:
                    torch.set_num_threads(count)
                    yield from _case(m, size, group, count, quick, crew)


def copies_of(m: int, size: int, quick: bool) -> int:
    """How many copies of the weights take turns: together more than the last cache, up to 1 GiB."""
    if quick or m >= MANY_ROWS:
        return FEW
    wanted = min(caches()[2] * 5 // 4, 1 << 30)
    return max(FEW, math.ceil(wanted / (size * size // 2)))


def _case(
    m: int, size: int, group: int | None, threads: int, quick: bool, crew: Crew | None
) -> Iterator[Row]:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-8, 8, (size, size), generator=generator)
    groups = 1 if group is None else size // group
    scale = torch.rand(size, groups, generator=generator) * 0.01 + 0.005
    x = torch.randn(m, size, generator=generator)
    copies = copies_of(m, size, quick)
    weight = (codes.reshape(size, groups, -1) * scale[:, :, None]).reshape(size, size)
    runs: dict[str, Callable[[], Any]] = {"cpu": ours(x, codes, scale, group, copies, threads)}
    floats = [weight.clone() for _ in range(max(1, copies // 8))]
    turns = cycle(floats)
    runs["torch-fp32"] = lambda: F.linear(x, next(turns))
    if crew is not None:
        case = {
            "x": x.numpy(),
            "codes": codes.to(torch.int8).numpy(),
            "scale": scale.numpy(),
            "group": group,
            "copies": copies,
        }
        runs |= crew.runs(case, threads, within((x.double() @ weight.double().T).numpy(), ERROR))
    bounds = {key: bound_of(key) for key in runs}
    measured = measure(runs, {READ, *bounds.values()}, threads, rounds=3 if quick else 9)
    others = [key for key in runs if key != "cpu"] if crew is not None else []
    for key in runs:
        fp32 = key == "torch-fp32"
        traffic = 4 * size * size if fp32 else size * size // 2 + 4 * scale.numel()
        operations = 2 * m * size * size
        yield measured.row(
            f"M{m} N{size} K{size} {'per channel' if group is None else f'g{group}'}",
            key,
            operations=operations,
            traffic=traffic,
            limit=slower(measured, {bounds[key]: operations, READ: traffic}),
            peers=others if key == "cpu" else (),
        ) | {"copies": len(floats) if fp32 else copies}


def slower(measured: Measured, work: dict[str | None, float]) -> str | None:
    """The limit that takes longest for its work: what bounds a case that both computes and reads."""
    times = {limit: work[limit] / rate for limit, rate in measured.limits.items() if limit in work}
    return max(times, key=times.__getitem__, default=None)


def ours(
    x: Tensor, codes: Tensor, scale: Tensor, group: int | None, copies: int, threads: int
) -> Callable[[], Tensor]:
    """A layer on each copy of the weights in turn, checked against the reference, byte for byte.

    Raises:
        BackendError: the bytes differ.
    """
    packed, length = pack(codes, 4), x.shape[1]
    if find_spec("pyquant.ops.linear_w4") is not None:
        from pyquant.ops.linear_w4 import LinearW4, linear_w4

        layers = [LinearW4(packed, scale, length, group_size=group) for _ in range(copies)]
        want = linear_w4(x, packed, scale, group_size=group, backend="reference")
    else:
        layers = [Separate(packed.clone(), scale, length, group) for _ in range(copies)]
        q, x_scale, x_zero = quantised_rows(x)
        want = gemm_w4(q, packed, scale, x_scale, x_zero=x_zero, group_size=group, backend="reference")
    for layer in (layers[0], layers[-1]):
        if not same_bytes(layer(x, threads), want):
            raise BackendError("the cpu backend's bytes are not those of the reference; not timed.")
    turns = cycle(layers)
    return lambda: next(turns)(x, threads)


class Separate:
    """Rows quantised by torch and :func:`quantize`, then multiplied."""

    def __init__(self, packed: Tensor, scale: Tensor, length: int, group: int | None) -> None:
        from pyquant.ops.gemm_w4 import PackedW4

        zero = torch.zeros(scale.shape, dtype=torch.int32)
        self._layer = PackedW4(packed, scale, zero, length, group, True)

    def __call__(self, x: Tensor, threads: int) -> Tensor:
        """``[M, K]`` float32 to ``[M, N]`` float32."""
        return self._layer(*quantised_rows(x), threads)


def quantised_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of each row by its own range, with 0 on the grid: ``[M, K]`` uint8, scales and zero points ``[M]``."""
    low, high = torch.aminmax(x, dim=1)
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).tiny)
    zero = torch.round(-low / scale)
    return quantize(x, scale, zero, Grid(8, signed=False, axis=0)), scale, zero.to(torch.int32)
