"""Batches that pass through a network's stages in groups of images, and are shared out among threads."""

from __future__ import annotations

import pytest
import torch

from pyquant.ops.backend import missing
from pyquant.runtime.execute_cpu import CpuExecutor
from pyquant.runtime.execute_reference import ReferenceExecutor
from tests.runtime.random_program import Writer
from tests.runtime.test_execute_cpu import assert_same_bytes

pytestmark = pytest.mark.skipif(missing("cpu") is not None, reason=str(missing("cpu")))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_image_passes_every_stage(threads: int) -> None:
    """Wide maps one at a time, small ones many at a time; a value that skips the wide stage; an output of each stage."""
    writer = Writer(0)
    x = writer.codes_input(64, 64, 8)
    small = writer.avg_pool(x, (16, 16), (16, 16))
    wide = writer.conv(x, 160, (1, 1))
    wide = writer.conv(wide, 160, (3, 3), (1, 1), (1, 1, 1, 1), groups=160)
    late = writer.avg_pool(wide, (16, 16), (16, 16))
    late = writer.conv(late, 8, (3, 3), (1, 1), (1, 1, 1, 1), residual=small)
    program = writer.program(late, writer.conv(late, 5), small)
    executor = CpuExecutor(program, threads=threads)
    whole = writer.batch(37)
    want = ReferenceExecutor(program)(*whole)
    assert len(torch.unique(want[0], dim=0)) == 37
    for count in (1, 2, 3, 16, 17, 37):
        assert_same_bytes(executor(*(t[:count].contiguous() for t in whole)), tuple(t[:count] for t in want))


def test_what_a_stage_gives_does_not_lie_where_later_images_still_read() -> None:
    """What passes to the second stage dies there before what it gives, larger and so in reach of later images, is made."""
    writer = Writer(1)
    x = writer.codes_input(64, 64, 8)
    wide = writer.conv(x, 160, (1, 1))
    between = writer.avg_pool(wide, (4, 4), (4, 4))
    between = writer.conv(between, 160, (3, 3), (1, 1), (1, 1, 1, 1), groups=160)
    given = writer.conv(between, 320, (1, 1))
    # Read by another step, an output lies in the engine's memory and not in the caller's.
    program = writer.program(given, writer.avg_pool(given, (16, 16), (16, 16)))
    whole = writer.batch(19)
    executor = CpuExecutor(program, threads=1)
    want = tuple(torch.cat(images) for images in zip(*(executor(t) for t in whole[0].split(1)), strict=True))
    assert len(torch.unique(want[0], dim=0)) == 19
    assert_same_bytes(executor(*whole), want)
