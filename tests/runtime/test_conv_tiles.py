"""Register tiles of every height and width, with every kind of epilogue, against the reference byte for byte."""

from __future__ import annotations

import dataclasses

import pytest

from pyquant.ops.backend import extension, missing
from pyquant.runtime.execute_cpu import CpuExecutor
from pyquant.runtime.execute_reference import ReferenceExecutor
from tests.runtime.random_program import Writer

pytestmark = pytest.mark.skipif(missing("cpu") is not None, reason=str(missing("cpu")))
ISAS = extension().available_isas() if extension() is not None else []
# No clamp and no zero point; a zero point; both; bounds far inside, so that a quarter of all codes is clamped.
BOUNDS = ((0, 0, 255), (90, 0, 255), (90, 3, 250), (128, 100, 160))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("channels", [7, 16, 24, 32, 40, 48])
def test_tiles_of_every_height(isa: str, residual: bool, channels: int) -> None:
    """Up to 25 pixels are one, two or three tiles of AVX-512; 18 codes of each are four steps and a half."""
    for pixels in range(1, 26):
        writer = Writer(pixels)
        x, skip = writer.codes_input(1, pixels, 18), writer.codes_input(1, pixels, channels)
        program = writer.program(writer.conv(x, channels, residual=skip if residual else None))
        inputs = writer.batch(1)
        for zero, low, high in BOUNDS:
            op = program.ops[0]
            op = dataclasses.replace(
                op, attributes={**op.attributes, "y_zero": zero, "low": low, "high": high}
            )
            case = dataclasses.replace(program, ops=(op,))
            (want,) = ReferenceExecutor(case)(*inputs)
            (got,) = CpuExecutor(case, threads=1, isa=isa)(*inputs)
            assert got.tolist() == want.tolist(), (pixels, zero, low, high)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("channels", [16, 24, 48])
def test_tiles_of_floats_and_of_many_segments(isa: str, channels: int) -> None:
    """Sums that become floats, and a window whose rows are segments of their own, of one to nine steps."""
    for taps in (1, 2, 5, 12):
        for pixels in (5, 12, 23):
            writer = Writer(taps)
            x = writer.codes_input(3, pixels + 2, taps)
            y = writer.conv(x, channels, (3, 3))
            program = writer.program(y, writer.conv(y, channels, float_rank=3))
            inputs = writer.batch(1)
            wants = ReferenceExecutor(program)(*inputs)
            gots = CpuExecutor(program, threads=1, isa=isa)(*inputs)
            assert [g.tolist() for g in gots] == [w.tolist() for w in wants], (taps, pixels)
