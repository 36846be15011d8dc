"""The GPU suite without a GPU: it says so; its rows, its check and its arithmetic, with the CPU's backends in place of a GPU's."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest
import torch

from bench import gpu, run
from bench.plot import plot
from bench.record import MACHINE
from bench.timing import Timing
from pyquant.errors import BackendError
from pyquant.ops import backend
from pyquant.ops.backend import choose, missing

CPU = torch.device("cpu")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_no_gpu_is_one_sentence_and_no_failure(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        run.main(["gpu", "--json", str(tmp_path / "gpu.jsonl")])
    assert stopped.value.code == 0 and list(tmp_path.iterdir()) == []
    said = capsys.readouterr()
    assert (said.out + said.err).count(
        "\n"
    ) == 1 and "no GPU that torch can see, so nothing was timed" in said.err


def ticks(calls):
    """As if each call took a microsecond longer than the one before."""
    for call in calls:
        call()
    return [Timing(1.0 + i, 0.01, "cuda graph") for i in range(len(calls))]


@pytest.fixture
def cpu_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "BACKENDS", ("cuda", "cpu"))


@pytest.mark.skipif(missing("cpu") is not None, reason=str(missing("cpu")))
def test_rows(cpu_backends) -> None:
    rows = list(gpu.shape_rows(32, 24, 64, CPU, ticks))
    assert [row["backend"] for row in rows] == [
        "cpu-w8a8",
        "cpu-w4a8",
        "cpu-w4a4",
        "cublas-fp16",
        "torch-int_mm",
    ]
    for i, row in enumerate(rows):
        assert row["case"] == "M32 N24 K64" and row["us"] == 1.0 + i and row["clock"] == "cuda graph"
        assert row["tops"] == pytest.approx(2 * 32 * 24 * 64 / (1.0 + i) / 1e6)
        json.dumps(row, allow_nan=False)
    traffic = {row["backend"]: row["gbps"] * row["us"] * 1e3 for row in rows}
    assert traffic["cpu-w4a8"] == pytest.approx(32 * 64 + 24 * 64 / 2 + 4 * 32 * 24)
    assert traffic["cublas-fp16"] == pytest.approx(2 * (32 * 64 + 24 * 64 + 32 * 24))
    assert (
        rows[1]["peers"] == {"cublas-fp16": 4.0 / 2.0, "torch-int_mm": 5.0 / 2.0} and rows[3]["peers"] == {}
    )


@pytest.mark.skipif(missing("cpu") is not None, reason=str(missing("cpu")))
def test_a_wrong_kernel_is_not_timed(cpu_backends, monkeypatch) -> None:
    right = backend._kernels["gemm_w4", "cpu"]

    def one_off(*arguments):
        y = right(*arguments)
        y[-1, -1] += 1
        return y

    monkeypatch.setitem(backend._kernels, ("gemm_w4", "cpu"), one_off)
    timed = []
    with pytest.raises(BackendError, match=r"gemm_w4 -> cpu .* result for M=32 N=24 K=64 .* not timed"):
        list(gpu.shape_rows(32, 24, 64, CPU, timed.append))
    assert timed == []


def test_float_products_are_held_to_their_bound() -> None:
    _, width, arguments = gpu.cases(5, 16, 256, CPU)["gemm_w4a16"]
    want = choose("gemm_w4a16", CPU, "reference", arguments).kernel(*arguments)
    assert width == (16, 4) and gpu.right("gemm_w4a16", want, want, arguments)
    for error in (0.01 * want.float().abs().mean(), torch.nan):
        wrong = want.clone()
        wrong[2, 3] += error
        assert not gpu.right("gemm_w4a16", wrong, want, arguments)
    assert not gpu.right("gemm_w4", want, want.flip(0), arguments)


def test_a_call_is_what_its_graph_takes_over_the_writes_alone() -> None:
    empty = [1.0, 1.1, 5.0, 1.2, 1.0]
    samples = [
        nothing + us * gpu.CALLS / 1e3 for nothing, us in zip(empty, (3.0, 5.0, 4.0, 2.0, 9.0), strict=True)
    ]
    timing = gpu.timing_of(samples, empty)
    assert timing.us == pytest.approx(4.0) and timing.spread == pytest.approx((5.0 - 3.0) / 4.0)
    with pytest.raises(BackendError, match="too busy to be measured"):
        gpu.timing_of(empty, empty)


def test_shapes_span_the_rows() -> None:
    shapes = gpu.shapes(False)
    assert len(set(shapes)) == len(shapes)
    assert {m for m, n, k in shapes if (n, k) in gpu.LLAMA} == {1, 4, 16, 64, 256, 1024, 4096}
    assert set(gpu.RESNET) <= set(shapes) and len(gpu.shapes(True)) == 2


def measured(case: str, name: str, tops: float) -> dict:
    where = dict.fromkeys(MACHINE, "x") | {"device": "A <GPU>", "date": "2026-01-02T03:04:05Z"}
    return {"case": case, "backend": name, "tops": tops, **where}


def test_the_plot_draws_every_row() -> None:
    rows = [
        measured(f"M{m} N8 K{k}", name, tops)
        for k in (16, 32)
        for name, tops in (("a", 5.0), ("b", 10.0))
        for m in (1, 16)
    ]
    root = ET.fromstring(plot(rows))
    lines = root.findall(f"{SVG}polyline")
    points = [[tuple(map(float, p.split(","))) for p in line.get("points").split()] for line in lines]
    assert len(points) == 4 and all(len(line) == 2 for line in points)
    # Twice as many TOPS is twice as far above the axis, and 16 rows are at the right end.
    (a, b), axis = points[:2], 60 + gpu_plot_base()
    assert axis - b[0][1] == pytest.approx(2 * (axis - a[0][1])) and a[0][0] < a[1][0] == b[1][0]
    text = [node.text for node in root.iter(f"{SVG}text")]
    assert any("A <GPU>" in line and "2026-01-02" in line for line in text) and {
        "a",
        "b",
        "N=8, K=16",
    } <= set(text)
    with pytest.raises(ValueError, match="no measured rows"):
        plot([])


def gpu_plot_base() -> int:
    from bench.plot import HEIGHT, MARGIN

    return HEIGHT - MARGIN
