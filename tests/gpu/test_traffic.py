"""Bytes and products by address arithmetic are those that the emulator counts of the compiled kernels: every kernel, every tile.

Shapes of whole tiles and ragged ones; the large tiles and the rest of the variants are slow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch

pytest.importorskip("triton", reason="pip install 'pyquant-engine[gpu]'")
from pyquant.kernels import (
    conv_s8,
    depthwise_s8,
    fake_quantize,
    gemm_s8,
    gemm_w4a8,
    gemm_w4a16,
    quantize_rows,
    shipped,
)

from bench import traffic
from bench.compiled import Artefact, Product
from bench.machine_code import Kernel
from bench.traffic import work
from pyquant.ops.cuda_configurations import KERNELS, CudaKernel
from tests.gpu import test_executor_gemm_s8 as cuda_s8
from tests.gpu import test_executor_low_bit as cuda_low_bit
from tests.gpu import test_executor_w4a16 as cuda_w4a16
from tests.gpu.emulated_cuda import EmulatedGpu
from tests.gpu.metered import Launch, Meter
from tests.ops.w4_cases import weights

NOTHING = Kernel("none", "sm_80", 0, 0, 0, 0, {}, {})
FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def artefact(launch: Launch, op: str, description: Any, backend: str = "triton") -> Artefact:
    """What a launch would be tabled as."""
    return Artefact(
        backend, op, launch.name, "", "sm_80", NOTHING, launch.threads, 0, 0, description, launch.constants
    )


def assert_counted(launch: Launch, op: str, description: Any, backend: str = "triton") -> None:
    """The emulator's account of a launch is the arithmetic's."""
    found = work(artefact(launch, op, description, backend))
    assert (launch.bytes, launch.operations) == (found.bytes, found.operations), (launch, description)
    assert found.bytes_minimum <= found.bytes and found.operations_minimum <= found.operations


@pytest.fixture
def meter() -> Iterator[Meter]:
    with Meter().on(*shipped.MODULES) as meter:
        yield meter


# ---------------------------------------------------------------------------------------------------------- Triton
def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def launch_gemm_s8(d: gemm_s8.Description, tile: Any) -> None:
    chosen = gemm_s8.choose(d, "sm_80")
    flags = {**dict(chosen.flags), "WHOLE_K": d.k % tile.k == 0}
    gemm_s8.launch(
        zeros(d.m, d.k, dtype=torch.uint8 if d.x_unsigned else torch.int8),
        zeros(d.n, d.k, dtype=torch.int8),
        *(zeros(d.n), zeros(d.n), zeros(d.n, dtype=torch.int32)),
        to_codes=d.to_codes,
        configuration=replace(chosen, tile=tile, flags=tuple(flags.items())),
    )


def launch_gemm_w4a8(d: gemm_w4a8.Description, tile: Any) -> None:
    chosen = gemm_w4a8.choose(d, "sm_80")
    groups = d.k // d.group if d.group else 1
    zero_point = torch.ones(d.n, groups, dtype=torch.int32) if d.zero else None
    codes = zeros(d.n, d.k, dtype=torch.int32)
    weight = gemm_w4a8.repack(codes, torch.ones(d.n, groups), zero_point, d.group or None, True)
    gemm_w4a8.launch(
        zeros(d.m, d.k, dtype=torch.uint8 if d.x_unsigned else torch.int8),
        weight,
        torch.ones(d.m),
        x_zero=zeros(d.m, dtype=torch.int32) if d.x_zero else None,
        x_sum=zeros(d.m, groups, dtype=torch.int32) if d.zero else None,
        dtype=FLOATS[d.dtype],
        configuration=replace(chosen, tile=replace(tile, k=chosen.tile.k)),
    )


def launch_gemm_w4a16(d: gemm_w4a16.Description, tile: Any) -> None:
    codes, groups = zeros(d.n, d.k, dtype=torch.int32), d.k // d.group if d.group else 1
    dtype = FLOATS[d.dtype]
    weight = gemm_w4a16.repack(codes, torch.ones(d.n, groups), None, d.group or None, True, dtype)
    with mock.patch.dict(gemm_w4a16.TILES, {"sm_80": (tile,)}):
        gemm_w4a16.launch(zeros(d.m, d.k, dtype=dtype), weight)


def launch_conv_s8(d: conv_s8.Description, tile: Any) -> None:
    chosen = conv_s8.choose(d, "sm_80")
    conv_s8.launch(
        zeros(d.images, d.height, d.width, d.channels, dtype=torch.uint8),
        zeros(d.outputs, *d.kernel, d.channels // d.groups, dtype=torch.int8),
        *(zeros(d.outputs), zeros(d.outputs), zeros(d.outputs, dtype=torch.int32)),
        **convolution(d),
        groups=d.groups,
        configuration=replace(chosen, tile=replace(tile, k=chosen.tile.k)),
    )


def launch_depthwise_s8(d: conv_s8.Description, _: Any) -> None:
    depthwise_s8.launch(
        zeros(d.images, d.height, d.width, d.channels, dtype=torch.uint8),
        zeros(*d.kernel, d.channels, dtype=torch.int8),
        *(zeros(d.channels), zeros(d.channels)),
        **convolution(d),
    )


def convolution(d: conv_s8.Description) -> dict[str, Any]:
    residual = (zeros(d.images, *d.out, d.outputs, dtype=torch.uint8), 0, 1.0) if d.residual else None
    shape = {"stride": d.stride, "padding": d.padding, "dilation": d.dilation}
    return {"x_zero": 3, "y_zero": 0, **shape, "residual": residual}


def launch_fake_quantize(d: fake_quantize.Description, _: Any) -> None:
    dtype, options = FLOATS[d.dtype], {"layout": (d.outer, d.channels, d.inner), "qmin": -8, "qmax": 7}
    x, dx = (zeros(d.outer * d.channels * d.inner, dtype=dtype) for _ in range(2))
    of_channels = [torch.ones(d.channels) for _ in range(4)]
    for y in (torch.empty_like(x), torch.empty(x.numel(), dtype=torch.int8)):
        fake_quantize.launch(x, *of_channels[:2], y, **options)
    dy = zeros(x.numel(), dtype=dtype)
    fake_quantize.launch_backward(dy, x, *of_channels[:2], dx, *of_channels[2:], **options)


def launch_quantize_rows(d: quantize_rows.Description, _: Any) -> None:
    quantize_rows.launch(zeros(ROWS, d.k, dtype=FLOATS[d.dtype]), bits=d.bits, group=d.group)
    if d.group:
        quantize_rows.launch_sums(zeros(ROWS, d.k, dtype=torch.uint8), d.group)


ROWS = 3
LAUNCHES: dict[ModuleType, Callable[[Any, Any], None]] = {
    gemm_s8: launch_gemm_s8,
    gemm_w4a8: launch_gemm_w4a8,
    gemm_w4a16: launch_gemm_w4a16,
    conv_s8: launch_conv_s8,
    depthwise_s8: launch_depthwise_s8,
    fake_quantize: launch_fake_quantize,
    quantize_rows: launch_quantize_rows,
}
S8 = [gemm_s8.Description(0, 0, 0), gemm_s8.Description(0, 0, 0, False, False)]
W4A8 = [
    gemm_w4a8.Description(0, 0, 0, 0),
    gemm_w4a8.Description(0, 0, 0, 128, dtype="fp16"),
    gemm_w4a8.Description(0, 0, 0, 64, x_zero=True, x_unsigned=True),
    gemm_w4a8.Description(0, 0, 0, 32, True, True, True, "bf16"),
    gemm_w4a8.Description(0, 0, 0, 0, zero=True),
]
W4A16 = [
    gemm_w4a16.Description(0, 0, 0, 0),
    gemm_w4a16.Description(0, 0, 0, 32, "bf16"),
    gemm_w4a16.Description(0, 0, 0, 64),
    gemm_w4a16.Description(0, 0, 0, 128, "bf16"),
]
SAME = {"kernel": (3, 3), "padding": (1, 1, 1, 1)}
CONVOLUTIONS = [
    conv_s8.Description(1, 8, 8, 64, 128),
    conv_s8.Description(2, 5, 6, 32, 65, **SAME),
    conv_s8.Description(1, 13, 11, 3, 16, (5, 3), (2, 2), (2, 1, 2, 1)),
    conv_s8.Description(1, 11, 12, 70, 9, (3, 3), (2, 3), (2, 0, 1, 2), (2, 2)),
    conv_s8.Description(1, 4, 5, 24, 12, **SAME, groups=3, residual=True),
    conv_s8.Description(1, 9, 8, 128, 130, (1, 2), groups=2),
]
DEPTHWISE = [
    conv_s8.Description(2, 7, 5, 33, 33, **SAME, groups=33),
    conv_s8.Description(1, 12, 12, 64, 64, **SAME, groups=64, residual=True),
    conv_s8.Description(1, 9, 8, 70, 70, (5, 3), (2, 1), (2, 0, 1, 2), (2, 2), 70),
]
FAKE = [
    fake_quantize.Description(1, 1, 5000),
    fake_quantize.Description(1, 1, 4096, "fp16"),
    fake_quantize.Description(1, 70, 96, "bf16"),
    fake_quantize.Description(1, 37, 9),
    fake_quantize.Description(3, 5, 49),
    fake_quantize.Description(130, 40, 1),
]
QUANTIZED = [
    quantize_rows.Description(4096),
    quantize_rows.Description(640, "bf16", group=128),
    quantize_rows.Description(577, "fp32", group=577),
    quantize_rows.Description(96, "fp32", group=32),
    quantize_rows.Description(1003, bits=4),
    quantize_rows.Description(160, bits=4, group=32),
    quantize_rows.Description(17_000, group=17_000),
]


Case = tuple[ModuleType, Any, Any]


def products(module: ModuleType, kinds: list[Any]) -> Iterator[Case]:
    """One tile just filled, and two by two that are not, of every size; every kind of product on some of them, and on the last."""
    tiles = module.TILES["sm_80"]
    for i, tile in enumerate(tiles):
        for j, (m, n, k) in enumerate(((tile.m, tile.n, 256), (tile.m + 1, tile.n + 5, 416))):
            kind = kinds[(i + j) % len(kinds)]
            yield module, replace(kind, m=m, n=n, k=whole_groups(kind, k)), tile
    for kind in kinds:
        yield (
            module,
            replace(kind, m=tiles[-1].m + 1, n=tiles[-1].n - 3, k=whole_groups(kind, 288)),
            tiles[-1],
        )
    # A K that no load of more than a byte divides.
    yield module, replace(kinds[0], m=5, n=7, k=137), tiles[-1]


def whole_groups(kind: Any, k: int) -> int:
    return k - k % (getattr(kind, "group", 0) or 1)


def cases() -> Iterator[Case]:
    yield from products(gemm_s8, S8)
    yield from products(gemm_w4a8, W4A8)
    yield from products(gemm_w4a16, W4A16)
    # Long enough to be split, into equal parts and others.
    for kind, k in zip(W4A16, (1024, 1408, 1024, 1408), strict=True):
        yield gemm_w4a16, replace(kind, m=3, n=130, k=k), gemm_w4a16.TILES["sm_80"][-1]
    for i, convolution in enumerate(CONVOLUTIONS):
        for tile in conv_s8.TILES["sm_80"] if i < 2 else conv_s8.TILES["sm_80"][-2:]:
            yield conv_s8, convolution, tile
    for module, descriptions in (
        (depthwise_s8, DEPTHWISE),
        (fake_quantize, FAKE),
        (quantize_rows, QUANTIZED),
    ):
        yield from ((module, description, None) for description in descriptions)


def marked() -> Iterator[Any]:
    """Fast: of every kernel a ragged case on the smallest tile."""
    for module, description, tile in cases():
        name = f"{module.__name__.rpartition('.')[2]}-{tile or 'box'}-{description}"
        fast = FAST[module] == description and tile in (
            None,
            *getattr(module, "TILES", {"sm_80": ()})["sm_80"][-1:],
        )
        yield pytest.param(module, description, tile, id=name, marks=() if fast else pytest.mark.slow)


FAST: dict[ModuleType, Any] = {
    gemm_s8: replace(S8[0], m=17, n=29, k=288),
    gemm_w4a8: replace(W4A8[3], m=17, n=29, k=288),
    gemm_w4a16: replace(W4A16[1], m=3, n=130, k=1408),
    conv_s8: CONVOLUTIONS[4],
    depthwise_s8: DEPTHWISE[0],
    fake_quantize: FAKE[2],
    quantize_rows: QUANTIZED[3],
}


@pytest.mark.parametrize(("module", "description", "tile"), list(marked()))
def test_triton(meter: Meter, monkeypatch, module: ModuleType, description: Any, tile: Any) -> None:
    # The description of quantised rows does not say how many.
    monkeypatch.setattr(traffic, "LARGE", ROWS)
    LAUNCHES[module](description, tile)
    assert meter.launches
    for launch in meter.launches:
        assert_counted(launch, module.__name__.rpartition(".")[2], description)


def test_every_triton_kernel_is_counted() -> None:
    """A module that is new to what ships has to be counted here too, once in a fast case."""
    assert set(LAUNCHES) == set(shipped.MODULES) == set(FAST)
    assert [case.values[0] for case in marked() if not case.marks] == list(FAST)


# ------------------------------------------------------------------------------------------------------------ CUDA
@pytest.fixture(scope="module")
def gpu(ptx: str) -> EmulatedGpu:
    return EmulatedGpu(ptx)


def cuda_cases() -> Iterator[Any]:
    """Every kernel: one tile just filled, two by two that are not, and less than one; fast: what is less."""
    for kernel in KERNELS:
        rows, columns, _ = kernel.tile
        shapes = ((rows, columns, 256), (rows + 1, columns + 5, 416), (rows // 2 + 1, columns - 3, 160))
        for size in kernel.group_sizes if kernel.op != "gemm_w4a16_sum" else ():
            for m, n, k in shapes:
                shape = (m, n, k - k % (size or 1))
                name = f"{kernel.entry}-g{size}-M{m}-N{n}-K{shape[2]}"
                marks = () if size in (None, 32) and m < rows else (pytest.mark.slow,)
                yield pytest.param(kernel, size, shape, id=name, marks=marks)


@pytest.mark.parametrize(("kernel", "size", "shape"), list(cuda_cases()))
def test_cuda(meter: Meter, gpu: EmulatedGpu, kernel: CudaKernel, size: int | None, shape: Any) -> None:
    m, n, k = shape
    splits = 1
    if kernel.op.startswith("gemm_s8"):
        run = cuda_s8.run_codes if kernel.op == "gemm_s8" else cuda_s8.run_floats
        run(gpu, kernel, *cuda_s8.drawn(*shape), 3, *((0, 0, 255) if kernel.op == "gemm_s8" else ()))
    elif kernel.op == "gemm_w4a16":
        splits = k // 128
        x = torch.zeros(m, k, dtype=cuda_w4a16.HALF[cuda_w4a16.dtype_of(kernel)])
        cuda_w4a16.run(gpu, kernel, x, weights(n, k, size, True, 4, "none", 1), size, True, 4, splits)
    else:
        case = cuda_low_bit.drawn(kernel, shape, size, True, 4, "none", False, seed=1)
        cuda_low_bit.run(gpu, kernel, case, k, size, True, 4)
    assert len(meter.launches) == 1 + (splits > 1)
    for launch in meter.launches:
        assert_counted(launch, launch.name, Product(m, n, k, size or 0, splits=splits), "cuda")
