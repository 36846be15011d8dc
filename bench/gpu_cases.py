"""What the suite of GPUs computes: products of Llama's and ResNet-50's layers, and convolutions; ours, and what they are held to.

Products of ResNet-50 are its convolutions at a batch of 32 as the products they come to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyquant.ops import conv_s8, gemm_s8, gemm_w4, gemm_w4a4, gemm_w4a16  # noqa: F401 (registered, then chosen by name)
from pyquant.ops.pack import unpack, words_of
from pyquant.runtime.compare import same_bytes

# Rows of a batch, and (N, K) of layers: attention and feed-forward of the 7B, 8B and 70B Llamas.
ROWS = (1, 4, 16, 64, 256, 1024, 4096)
LLAMA = ((4096, 4096), (11008, 4096), (4096, 14336), (8192, 28672))
# (M, N, K) of ResNet-50's 3 x 3 convolutions, one a stage.
RESNET = ((100352, 64, 576), (25088, 128, 1152), (6272, 256, 2304), (1568, 512, 4608))
# Weights beside float16 activations share a scale in groups of so many.
GROUP = 128
# Why a kernel whose bytes are not the reference's has no figure.
WRONG = "not the reference's; not timed"


@dataclass(frozen=True)
class Convolution:
    """A convolution of ``images`` square maps, padded to keep their size at stride 1."""

    size: int
    channels: int
    outputs: int
    kernel: int
    stride: int = 1
    groups: int = 1
    images: int = 32

    def __str__(self) -> str:
        groups = "" if self.groups == 1 else f" groups {self.groups}"
        return (
            f"{self.images} images {self.size}x{self.size}x{self.channels} to {self.outputs}, "
            f"{self.kernel}x{self.kernel} stride {self.stride}{groups}"
        )

    @property
    def out(self) -> int:
        """Height and width of the result."""
        return (self.size + 2 * (self.kernel // 2) - self.kernel) // self.stride + 1


# ResNet-50's first layer, its 3 x 3 a stage and two of its 1 x 1; depthwise ones of MobileNetV2.
CONVOLUTIONS = (
    Convolution(224, 3, 64, 7, 2),
    Convolution(56, 64, 64, 3),
    Convolution(28, 128, 128, 3),
    Convolution(14, 256, 256, 3),
    Convolution(7, 512, 512, 3),
    Convolution(56, 64, 256, 1),
    Convolution(14, 1024, 256, 1),
    Convolution(112, 32, 32, 3, groups=32),
    Convolution(56, 144, 144, 3, groups=144),
    Convolution(14, 384, 384, 3, groups=384),
)
QUICK = ((16, 4096, 4096), (1568, 512, 4608), Convolution(14, 256, 256, 3))
Shape = tuple[int, int, int] | Convolution


@dataclass(frozen=True)
class Case:
    """One op of ours on arguments.

    Args:
        op: its name.
        name: the row's, behind the backend.
        bits: of an activation, a weight and a result.
        arguments: random.
    """

    op: str
    name: str
    bits: tuple[int, int, int]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Peer:
    """What ours are compared with.

    Args:
        name: the row's backend.
        bits: of an activation, a weight and a result.
        make: allocates the operands and gives the call.
    """

    name: str
    bits: tuple[int, int, int]
    make: Callable[[], Callable[[], Tensor]]


def shapes(quick: bool) -> Sequence[Shape]:
    """What to time; quick: one of each kind."""
    return QUICK if quick else (*((m, n, k) for n, k in LLAMA for m in ROWS), *RESNET, *CONVOLUTIONS)


def named(shape: Shape) -> str:
    """The rows' case."""
    return str(shape) if isinstance(shape, Convolution) else "M{} N{} K{}".format(*shape)


def operations(shape: Shape) -> int:
    """A multiply-add is two."""
    if isinstance(shape, Convolution):
        s = shape
        return 2 * s.images * s.out**2 * s.outputs * s.kernel**2 * s.channels // s.groups
    m, n, k = shape
    return 2 * m * n * k


def traffic(shape: Shape, bits: tuple[int, int, int]) -> float:
    """Bytes of operands and results, once."""
    if isinstance(shape, Convolution):
        s = shape
        elements = (
            s.images * s.size**2 * s.channels,
            s.outputs * s.kernel**2 * s.channels // s.groups,
            s.images * s.out**2 * s.outputs,
        )
    else:
        m, n, k = shape
        elements = m * k, n * k, m * n
    return sum(count * width for count, width in zip(elements, bits, strict=True)) / 8


def cases(shape: Shape, device: torch.device) -> Iterator[Case]:
    """Every op of ours that computes a shape, one after the other, so that memory holds the operands of one at a time."""
    generator = torch.Generator(device).manual_seed(sum(map(ord, named(shape))))

    def codes(dtype: torch.dtype, low: int, high: int, *size: int) -> Tensor:
        return torch.randint(low, high, size, generator=generator, dtype=dtype, device=device)

    def words(rows: int) -> Tensor:
        # Any word is eight codes of four bits.
        return codes(torch.int32, -(2**31), 2**31, rows, words_of(k, 4))

    def numbers(*size: int) -> Tensor:
        return torch.rand(size, generator=generator, device=device)

    if isinstance(shape, Convolution):
        s = shape
        taps = s.kernel**2 * s.channels // s.groups
        x = codes(torch.uint8, 0, 256, s.images, s.size, s.size, s.channels)
        weight = codes(torch.int8, -128, 128, s.outputs, s.kernel, s.kernel, s.channels // s.groups)
        # Sums of random codes have a deviation of some 74 * 74 * sqrt(taps): this spreads them over the codes.
        factors = numbers(s.outputs) * (40 / (5476 * taps**0.5)), numbers(s.outputs) - 0.5
        geometry = (s.stride,) * 2, (s.kernel // 2,) * 4, (1, 1), s.groups
        yield Case("conv_s8", "w8a8", (8, 8, 8), (x, weight, *factors, 128, 128, 0, 255, *geometry))
        return
    m, n, k = shape
    factors = numbers(n), numbers(n) - 0.5
    x, w8 = codes(torch.uint8, 0, 256, m, k), codes(torch.int8, -128, 128, n, k)
    yield Case("gemm_s8_float", "w8a8", (8, 8, 32), (x, w8, *factors, 128))
    x = codes(torch.int8, -128, 128, m, k)
    w4, scale, row_scale = words(n), numbers(n, 1), numbers(m)
    yield Case("gemm_w4", "w4a8", (8, 4, 32), (x, w4, scale, row_scale, None, None, None, True, 4))
    yield Case(
        "gemm_w4a4", "w4a4", (4, 4, 32), (words(m), w4, scale, row_scale, k, None, True, None, None, True, 4)
    )
    if k % GROUP == 0:
        grid, half = numbers(n, k // GROUP) * 0.01, numbers(m, k).half() - 0.5
        yield Case("gemm_w4a16", "w4a16", (16, 4, 16), (half, w4, grid, None, GROUP, True, 4))


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


def peers(shape: Shape, device: torch.device) -> Iterator[Peer]:
    """cuDNN or cuBLAS in float16, and torch's int8 product, to int32, where it takes the shape: more than 16 rows."""

    def half(*size: int) -> Tensor:
        return torch.randn(size, device=device, dtype=torch.float16)

    def codes(*size: int) -> Tensor:
        return torch.randint(-128, 128, size, device=device, dtype=torch.int8)

    if isinstance(shape, Convolution):
        s = shape

        def convolution() -> Callable[[], Tensor]:
            x, weight = (
                half(s.images, s.channels, s.size, s.size),
                half(s.outputs, s.channels // s.groups, s.kernel, s.kernel),
            )
            x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
            bias = half(s.outputs)
            return lambda: F.conv2d(x, weight, bias, s.stride, s.kernel // 2, 1, s.groups)

        yield Peer("cudnn-fp16", (16, 16, 16), convolution)
        return
    m, n, k = shape

    def product() -> Callable[[], Tensor]:
        x, w = half(m, k), half(n, k)
        return lambda: F.linear(x, w)

    def int_mm() -> Callable[[], Tensor]:
        x, w = codes(m, k), codes(n, k)
        return lambda: torch._int_mm(x, w.t())

    yield Peer("cublas-fp16", (16, 16, 16), product)
    if m > 16 and n % 8 == 0 and k % 8 == 0:
        yield Peer("torch-int_mm", (8, 8, 32), int_mm)
