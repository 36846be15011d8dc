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
