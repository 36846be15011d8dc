"""Networks for the native tests: ``python -m tests.native.samples FOLDER`` writes them there."""

from __future__ import annotations

import sys
from pathlib import Path

from pyquant.runtime.checkpoint import save
from pyquant.runtime.program import Program
from tests.runtime.random_program import Writer, random_conv, random_network
from tests.runtime.small_networks import program


def every_kind() -> Program:
    """Each kind of op once or twice, on values of a few pixels: a section of few words, quick to load and run."""
    writer = Writer(11)
    image = writer.quantize(writer.float_input(2, 5, 6))
    side = writer.codes_input(5, 6, 3)
    x = writer.conv(image, 3, (3, 3), padding=(1, 1, 1, 1), residual=side, bits=5)
    x = writer.add(x, side)
    x = writer.conv(x, 3, (3, 3), (2, 1), (1, 1, 1, 1), groups=3, bits=3)
    x = writer.conv(x, 4, (1, 2), dilation=(1, 2), bits=8)
    planes = writer.dequantize(x)
    x = writer.lookup(writer.max_pool(x, (2, 2), (1, 1), (1, 1, 0, 0)))
    x = writer.avg_pool(x, (2, 2), (1, 1))
    scores = writer.conv(writer.flatten(x), 5, float_rank=1, bits=4)
    return writer.program(scores, planes, x)


def write_samples(folder: Path) -> list[Path]:
    """Write the networks; the first is :func:`every_kind`."""
    programs = [every_kind(), program("residual_blocks-asymmetric"), program("pools_then_linear-w4a4")]
    programs += [random_network(seed)[0] for seed in range(4)] + [random_conv(seed)[0] for seed in range(6)]
    paths = [folder / f"{number}.pq" for number in range(len(programs))]
    for given, path in zip(programs, paths, strict=True):
        save(given, path, {})
    return paths


if __name__ == "__main__":
    write_samples(Path(sys.argv[1]))
