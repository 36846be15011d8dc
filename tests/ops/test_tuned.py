"""Tiles by time: the fastest that fits and is right, in a file that speaks of one device and no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyquant.errors import BackendError, DataError
from pyquant.ops import triton_launch, tuned
from pyquant.ops.backend import Choice
from pyquant.ops.triton_launch import Planned, planned

pytest.importorskip("triton", reason="pip install 'pyquant-engine[gpu]'")
CPU = torch.device("cpu")
SIZES = {"m": 300, "n": 512, "k": 256}


@pytest.fixture(autouse=True)
def on_sm_80(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_launch, "target_of", lambda device: "sm_80")


def choice_of(plan: Planned, kernel: Callable[..., Tensor]) -> Choice:
    return Choice("gemm_s8", "triton", partial(kernel, plan), "pinned", plan)


def by_tile(times: dict[tuple[int, ...], float]) -> Callable[[partial], float]:
    """A clock that knows how long a tile takes, and half as long again any other."""

    def milliseconds(call: partial) -> float:
        call()
        return times.get(tuned.tile_of(call.args[0])[:2], 1.5)

    return milliseconds


def test_candidates_are_the_kernels_own_and_its_table() -> None:
    plan = planned("gemm_s8", CPU, **SIZES)
    found = tuned.candidates(plan)
    assert found[0] is plan and len({tuned.tile_of(other) for other in found}) == len(found) > 5
    from pyquant.kernels import gemm_s8

    assert {tuned.tile_of(other)[:2] for other in found} == {(t.m, t.n) for t in gemm_s8.TILES["sm_80"]}
    assert all(other.configuration.flags == plan.configuration.flags for other in found)
    # A step's length follows from the call: here 32, of which the constants know.
    conv = planned("conv_s8", CPU, images=1, height=9, width=9, channels=40, outputs=64, kernel=(3, 3))
    assert {tuned.tile_of(other)[2] for other in tuned.candidates(conv)} == {32}
    depthwise = planned("depthwise_s8", CPU, images=1, height=9, width=9, channels=8, outputs=8, groups=8)
    assert tuned.candidates(depthwise) == []


def test_the_fastest_tile_that_the_device_can_hold() -> None:
    plan, ran = planned("gemm_s8", CPU, **SIZES), []

    def kernel(plan: Planned, x: Tensor) -> Tensor:
        tile = tuned.tile_of(plan)
        if tile[1] == 256:
            raise BackendError("cuda:0 cannot hold it.")
        ran.append(tile)
        return x + 1

    times = {(128, 256): 0.1, (64, 128): 0.4, (32, 64): 0.2}
    best, taken = tuned.fastest(choice_of(plan, kernel), (torch.ones(2),), by_tile(times))
    assert tuned.tile_of(best)[:2] == (32, 64)
    assert min(taken, key=taken.__getitem__) == str(best) and next(iter(taken)) == str(plan)
    assert len(taken) == len(tuned.candidates(plan)) - 1 and str(best).startswith(
        "gemm_s8 on sm_80: 32x64x128"
    )


def test_a_tile_that_gives_other_bytes_is_no_choice() -> None:
    plan = planned("gemm_s8", CPU, **SIZES)

    def kernel(plan: Planned, x: Tensor) -> Tensor:
        return x + (tuned.tile_of(plan)[0] == 16)

    with pytest.raises(
        BackendError, match=r"16x64x128, .*: its result is not that of gemm_s8 on sm_80: .*; report this"
    ):
        tuned.fastest(choice_of(plan, kernel), (torch.ones(2),), by_tile({}))


def saved(path: Path, tile: Any, plan: Planned, device: str | None = None) -> tuned.Tiles:
    """The file with one tile for a call, read for this device."""
    devices = {device or tuned.device_name(CPU): {tuned.call_of(plan): tile}}
    path.write_text(json.dumps({"format": tuned.FORMAT, "version": tuned.VERSION, "devices": devices}))
    return tuned.read(path, CPU)


def test_a_file_s_tile_is_taken_for_its_call_alone(tmp_path: Path) -> None:
    plan, launched = planned("gemm_s8", CPU, **SIZES), []

    def kernel(plan: Planned, x: Tensor) -> Tensor:
        launched.append(tuned.tile_of(plan))
        return x

    found = saved(tmp_path / "tiles.json", (16, 64, 128, 4, 4), plan).apply(choice_of(plan, kernel))
    assert "16x64x128" in str(found) and str(found).endswith("(measured to be the fastest tile here)")
    found.kernel(torch.ones(1))
    assert launched == [(16, 64, 128, 4, 4)]
    other = choice_of(planned("gemm_s8", CPU, **{**SIZES, "m": 301}), kernel)
    assert saved(tmp_path / "tiles.json", (16, 64, 128, 4, 4), plan).apply(other) is other
    cuda = Choice("gemm_s8", "cuda", kernel, "pinned", "a launch")
    assert tuned.Tiles({}).apply(cuda) is cuda


@pytest.mark.parametrize("tile", [(512, 512, 128, 8, 4), (16, 64, 64, 4, 4), (16, 64, 128, 8, 4)])
def test_a_tile_that_the_kernel_does_not_have_is_passed_over(tmp_path: Path, tile: tuple[int, ...]) -> None:
    plan = planned("gemm_s8", CPU, **SIZES)
    choice = choice_of(plan, lambda plan, x: x)
    assert saved(tmp_path / "tiles.json", tile, plan).apply(choice) is choice


def test_other_devices_are_passed_over_and_kept(tmp_path: Path) -> None:
    path, plan = tmp_path / "tiles.json", planned("gemm_s8", CPU, **SIZES)
    other = "NVIDIA A100, sm_80, triton 3.0.0"
    assert saved(path, (16, 64, 128, 4, 4), plan, other).of == {}
    path.write_text(tuned.text(path, CPU, {"gemm_s8: m=1": (32, 64, 128, 4, 4)}))
    path.write_text(tuned.text(path, CPU, {"gemm_s8: m=2": (16, 64, 128, 4, 4)}))
    held = json.loads(path.read_text())["devices"]
    assert held[other] == {tuned.call_of(plan): [16, 64, 128, 4, 4]}
    assert tuned.read(path, CPU).of == {
        "gemm_s8: m=1": (32, 64, 128, 4, 4),
        "gemm_s8: m=2": (16, 64, 128, 4, 4),
    }


FOREIGN = {
    "no JSON": "tiles",
    "cut short": '{"format": "pyquant tiles", "version": 1, "devices": {',
    "a list": "[]",
    "another format": '{"format": "autotune", "version": 1, "devices": {}}',
    "a later version": '{"format": "pyquant tiles", "version": 2, "devices": {}}',
    "no devices": '{"format": "pyquant tiles", "version": 1, "devices": 3}',
    "a short tile": '{"format": "pyquant tiles", "version": 1, "devices": {"a": {"b": [1, 2]}}}',
    "no sizes": '{"format": "pyquant tiles", "version": 1, "devices": {"a": {"b": "16816"}}}',
    "no text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("held", FOREIGN.values(), ids=FOREIGN)
def test_a_broken_or_foreign_file_is_one_sentence_and_stays(tmp_path: Path, held: str | bytes) -> None:
    path = tmp_path / "tiles.json"
    path.write_bytes(held.encode() if isinstance(held, str) else held)
    for use in (lambda: tuned.read(path, CPU), lambda: tuned.text(path, CPU, {})):
        with pytest.raises(
            DataError, match=r"tiles\.json' holds no pyquant tiles of version 1 \(.*\); delete it, or"
        ) as said:
            use()
        assert "\n" not in str(said.value)
    with pytest.raises(
        DataError, match=r"nothing\.json' does not exist; write it with pyquant\.tune, or leave tuned out\."
    ):
        tuned.read(tmp_path / "nothing.json", CPU)
