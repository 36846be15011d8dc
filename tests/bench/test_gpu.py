"""The GPU suite without a GPU: it says so; what it computes, its check, its arithmetic and its plot. Its run: test_gpu_run.py."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
import torch

from bench import gpu_cases, run
from bench.plot import plot
from bench.record import MACHINE
from pyquant.ops.backend import choose

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


def test_float_products_are_held_to_their_bound() -> None:
    *_, case = gpu_cases.cases((5, 16, 256), CPU)
    assert (case.op, case.bits) == ("gemm_w4a16", (16, 4, 16))
    want = choose(case.op, CPU, "reference", case.arguments).kernel(*case.arguments)
    assert gpu_cases.right(case.op, want, want, case.arguments)
    for error in (0.01 * want.float().abs().mean(), torch.nan):
        wrong = want.clone()
        wrong[2, 3] += error
        assert not gpu_cases.right(case.op, wrong, want, case.arguments)
    assert not gpu_cases.right("gemm_w4", want, want.flip(0), case.arguments)


@pytest.mark.parametrize(
    "shape", [(3, 8, 64), gpu_cases.Convolution(6, 32, 16, 3), gpu_cases.Convolution(5, 8, 8, 3, 2, 8)]
)
def test_what_is_counted_of_a_shape(shape) -> None:
    """The bytes are those of the operands and of the result, and codes fill their range: saturated ones would hide wrong sums."""
    for case in gpu_cases.cases(shape, CPU):
        y = choose(case.op, CPU, "reference", case.arguments).kernel(*case.arguments)
        x, w = case.arguments[:2]
        moved = sum(t.numel() * t.element_size() for t in (x, w, y))
        assert gpu_cases.traffic(shape, case.bits) == moved, case
        if case.op == "conv_s8":
            assert y.float().std() > 15 and ((y == 0) | (y == 255)).float().mean() < 0.01
    for peer in gpu_cases.peers(shape, CPU):
        if not isinstance(shape, tuple):
            assert peer.make()().numel() == y.numel()


def test_operations_of_a_convolution() -> None:
    assert (
        gpu_cases.operations(gpu_cases.Convolution(6, 32, 16, 3, 1, 4, images=2)) == 2 * 2 * 36 * 16 * 9 * 8
    )
    assert gpu_cases.operations((3, 5, 7)) == 210


def test_shapes_span_the_rows_and_kinds() -> None:
    shapes = gpu_cases.shapes(False)
    assert len(set(map(gpu_cases.named, shapes))) == len(shapes)
    products = [shape for shape in shapes if isinstance(shape, tuple)]
    assert {m for m, n, k in products if (n, k) in gpu_cases.LLAMA} == {1, 4, 16, 64, 256, 1024, 4096}
    assert set(gpu_cases.RESNET) <= set(shapes) and len(gpu_cases.shapes(True)) == 3
    groups = {s.groups == s.channels for s in shapes if not isinstance(s, tuple)}
    assert groups == {True, False}


def measured(case: str, name: str, tops: float | None) -> dict:
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
    # What is no product, and what was not measured, is left out.
    others = [measured("32 images 7x7x8 to 8", "a", 3.0), measured("M1 N8 K16", "a", None)]
    assert plot(rows + others) == plot(rows) and plot(others) is None and plot([]) is None


def gpu_plot_base() -> int:
    from bench.plot import HEIGHT, MARGIN

    return HEIGHT - MARGIN
