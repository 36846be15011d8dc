"""Maps of all widths and images of all kinds through the C++ engine against the reference, byte for byte."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from pyquant.ops.backend import extension, missing
from pyquant.runtime.execute_cpu import CpuExecutor
from pyquant.runtime.execute_reference import ReferenceExecutor
from pyquant.runtime.program import Program
from tests.runtime.random_program import Writer

pytestmark = pytest.mark.skipif(missing("cpu") is not None, reason=str(missing("cpu")))
ISAS = extension().available_isas() if extension() is not None else []
# The least scale that there is, and ones whose quotients are soon beyond all floats, or whose reciprocal loses bits.
SCALES = (0.1, 0.0173, 1 / 3, 2.0**-126, 1e36, 3e38)


def near_the_middle(scale: float, zero: int) -> Tensor:
    """Floats whose quotients lie on and beside the middle of two codes, and those that are no numbers at all."""
    found = [(torch.arange(-zero - 3, 259 - zero) + 0.5) * torch.tensor(scale)]
    for direction in (torch.inf, -torch.inf):
        x = found[0]
        for _ in range(3):
            x = torch.nextafter(x, torch.tensor(direction))
            found.append(x)
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 3e38, -3e38, 1e-45])
    return torch.cat([special, *found])


def quantizing(channels: int, height: int, width: int, scale: float, zero: int) -> Program:
    writer = Writer(0)
    y = writer.quantize(writer.float_input(channels, height, width))
    program = writer.program(y)
    given = {"scale": scale, "zero_point": zero, "low": 0, "high": 255}
    return dataclasses.replace(program, ops=(dataclasses.replace(program.ops[0], attributes=given),))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("scale", SCALES)
def test_floats_near_the_middle_of_two_codes(isa: str, channels: int, scale: float) -> None:
    for zero in (0, 128, 255):
        x = near_the_middle(scale, zero)
        # Rows of 37 do not end with lanes; every plane sees every float, at another place.
        x = torch.stack([x.roll(5 * c)[: len(x) // 37 * 37] for c in range(channels)])
        program = quantizing(channels, x.shape[1] // 37, 37, scale, zero)
        x = x.reshape(1, channels, -1, 37)
        want = ReferenceExecutor(program)(x)[0]
        assert len(want.unique()) > (250 if scale < 1e38 else 2)
        assert torch.equal(CpuExecutor(program, 1, isa)(x)[0], want)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [1, 15, 16, 47])
def test_images_of_three_planes_inside_a_halo(isa: str, width: int) -> None:
    writer = Writer(width)
    image = writer.quantize(writer.float_input(3, 5, width))
    y = writer.conv(image, 7, (3, 3), (1, 1), (1, 1, 1, 1))
    program, inputs = writer.program(y, image), writer.batch(3)
    for got, want in zip(
        CpuExecutor(program, 2, isa)(*inputs), ReferenceExecutor(program)(*inputs), strict=True
    ):
        assert torch.equal(got, want)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("channels", [1, 63, 64, 65, 130])
def test_the_largest_code_of_any_channels(isa: str, channels: int) -> None:
    writer = Writer(channels)
    x = writer.codes_input(5, 6, channels)
    program, inputs = writer.program(writer.max_pool(x, (3, 2), (2, 1), (1, 0, 1, 1))), writer.batch(2)
    assert torch.equal(CpuExecutor(program, 1, isa)(*inputs)[0], ReferenceExecutor(program)(*inputs)[0])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [7, 10, 14, 17, 28, 33, 56, 230])
@pytest.mark.parametrize("channels", [16, 40])
def test_maps_of_any_width(isa: str, width: int, channels: int) -> None:
    """Rows that fill tiles and rows that do not; sixteen channels, of which two pixels are finished together."""
    writer = Writer(width)
    x = writer.codes_input(13, width, 20)
    y = writer.conv(x, channels, (3, 3), (1, 1), (1, 1, 1, 1))
    z = writer.conv(y, channels, (3, 3), (1, 1), (1, 1, 1, 1), residual=y)
    w = writer.conv(z, channels, (3, 3), (2, 2), (1, 1, 1, 1))
    program, inputs = writer.program(z, w), writer.batch(3)
    wants = ReferenceExecutor(program)(*inputs)
    # Five threads get parts that begin and end amid rows.
    for threads in (1, 5):
        for got, want in zip(CpuExecutor(program, threads, isa)(*inputs), wants, strict=True):
            assert torch.equal(got, want)
