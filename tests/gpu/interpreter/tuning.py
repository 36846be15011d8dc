"""A network whose tiles were timed, by a clock that is told: the tiles of the file are launched, and the bytes stay the same."""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest import mock

from pyquant.ops import tuned
from pyquant.runtime.net import Net
from pyquant.runtime.tune import tune
from tests.gpu.interpreter.guarded import same_bytes
from tests.runtime.random_program import random_network

# Milliseconds of a tile; what is not here takes longer than all of them.
TIMES = {(64, 32): 1.0, (32, 32): 2.0}
CASES = {"network": {"seed": 2}}


def check(device, seed):
    """Tune for one batch, load, and compare; other batches keep the kernels' tiles."""
    from pyquant.kernels import conv_s8, gemm_s8
    from pyquant.kernels.configuration import Tile

    program, inputs = random_network(seed)
    inputs = [x.to(device) for x in inputs]
    batch = inputs[0].shape[0]
    table = tuple(Tile(m, n, 64, 4, 1) for m, n in ((64, 64), (64, 32), (32, 32)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiles.json"
        with (
            mock.patch.dict(conv_s8.TILES, interpreter=table),
            mock.patch.dict(gemm_s8.TILES, interpreter=table),
        ):
            net = Net(program, backend="triton", device=device)
            timed = tune(net, batch, path, lambda call: TIMES.get(tuned.tile_of(call.args[0])[:2], 5.0))
            assert len(timed) >= 4 and all(len(row["times"]) == 3 for row in timed), timed
            assert all("64x32x" in row["fastest"] for row in timed), timed
            assert {row["speedup"] for row in timed} == {1.0, 2.0, 5.0}, timed
            fast = Net(program, backend="triton", device=device, tuned=path)._executor.steps
            lines = [str(choice) for choice in fast.plan(batch).values()]
            measured = [line for line in lines if line.endswith("(measured to be the fastest tile here)")]
            assert len(measured) >= len(timed) and all("64x32x" in line for line in measured), lines
            assert not any("measured" in str(choice) for choice in fast.plan(batch + 1).values())
            for got, want in zip(fast(*inputs), net._executor.steps(*inputs), strict=True):
                same_bytes(got, want)
            again = tune(
                Net(program, backend="triton", device=device, tuned=path), batch, path, lambda call: 3.0
            )
            assert all(row["chosen"] == row["fastest"] for row in again), again
