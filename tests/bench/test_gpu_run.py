"""The GPU suite as it runs, with the CPU's backends and a CUDA runtime that is none: what is timed, against what, and what is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch import nn

from bench import gpu, gpu_cases, gpu_networks, gpu_timing, networks, run
from bench.gpu_cases import Convolution
from bench.record import MACHINE
from pyquant.errors import BackendError
from pyquant.ops import backend
from pyquant.ops.backend import missing
from pyquant.runtime.net import Net
from tests.bench.fake_cuda import CPU, US, FakeCuda

pytestmark = pytest.mark.skipif(missing("cpu") is not None, reason=str(missing("cpu")))
SMALL = (32, 24, 128)
CONVOLUTION = Convolution(6, 8, 16, 3, images=2)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """The suite believes in a GPU, which is the CPU, and knows a backend there beside one that serves nothing."""
    monkeypatch.setattr(gpu, "absent", lambda: None)
    monkeypatch.setattr(gpu, "here", lambda: CPU)
    monkeypatch.setattr(gpu, "BACKENDS", ("cuda", "cpu"))
    monkeypatch.setattr(gpu, "shapes", lambda quick: (SMALL, CONVOLUTION, (5, 8, 128)))
    monkeypatch.setattr(gpu_networks, "MODELS", ())
    with FakeCuda().install(monkeypatch).on() as fake:
        yield fake


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_networks, "BACKENDS", ("auto",))
    monkeypatch.setattr(gpu_networks, "MODELS", ("small",))
    monkeypatch.setattr(gpu_networks, "BATCHES", (1, 20))
    monkeypatch.setitem(networks.NETWORKS, "small", small)
    monkeypatch.setattr(networks, "images", partial(networks.images, size=16))


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def by_name(rows, case="M32 N24 K128"):
    return {row["backend"]: row for row in rows if row["case"] == case}


def test_a_whole_run(cuda, network, tmp_path, capsys) -> None:
    path = tmp_path / "gpu.jsonl"
    assert run.main(["gpu", "--json", str(path)]) == 0
    rows = rows_of(path)
    for row in rows:
        assert set(MACHINE) <= set(row) and (row["device"], row["cores"]) == ("Fake GPU", 7)
        assert (row["us"] is None) == (row["why"] is not None) and row["suite"] == "gpu"
    product = by_name(rows)
    for name, (bits, clock) in {
        "cpu-w8a8": ((8, 8, 32), "cuda graph"),
        "cpu-w4a8": ((8, 4, 32), "cuda graph"),
        "cpu-w4a4": ((4, 4, 32), "cuda graph"),
        "cublas-fp16": ((16, 16, 16), "cuda graph"),
        "torch-int_mm": ((8, 8, 32), "cuda graph"),
    }.items():
        row = product[name]
        assert (
            row["clock"] == clock
            and row["us"] > 0
            and (row["kernel"] != "") == name.startswith("cpu")
            and row["spread"] == pytest.approx(0, abs=1e-6)
        )
        assert row["tops"] == pytest.approx(2 * 32 * 24 * 128 / row["us"] / 1e6)
        moved = (32 * 128 * bits[0] + 24 * 128 * bits[1] + 32 * 24 * bits[2]) / 8
        assert row["gbps"] == pytest.approx(moved / row["us"] / 1e3)
        ours = name.startswith("cpu")
        others = ("cublas-fp16", "torch-int_mm") if ours else ()
        assert row["peers"] == pytest.approx({other: product[other]["us"] / row["us"] for other in others})
    assert {"cpu-w8a8", "cudnn-fp16"} <= set(by_name(rows, str(CONVOLUTION)))
    for images in (1, 20):
        net = by_name(rows, f"small batch {images}")
        assert set(net) == {"auto-w8a8", "torch-fp16"} and net["auto-w8a8"]["kernel"] == "integer program"
        for row in net.values():
            assert (
                row["images_per_s"] == pytest.approx(images / row["us"] * 1e6)
                and row["clock"] == "cuda events"
            )
    assert path.with_suffix(".svg").read_text().startswith("<svg")
    out = capsys.readouterr().out
    assert "Fake GPU" in out and "cuda-w8a8" in out
    # What serves nothing says so once, not for each shape.
    assert (
        len([row for row in rows if row["backend"] == "cuda-w8a8" and "cannot serve gemm" in row["why"]]) == 1
    )


def test_a_sample_is_calls_behind_writes_less_the_writes(cuda) -> None:
    flushed, called = [], []

    def call() -> None:
        called.append(cuda.capturing)
        torch.zeros(1)
        torch.zeros(1)
        torch.zeros(1)

    def flush() -> None:
        flushed.append(cuda.capturing)
        torch.zeros(1)

    alone, sample = gpu_timing.captured(lambda: None, flush), gpu_timing.captured(call, flush)
    # Compiled and loaded before anything is captured; in the graph, a write before every call.
    assert called == [False] * 2 + [True] * gpu_timing.CALLS and len(flushed) == 2 * (2 + gpu_timing.CALLS)
    cuda.replayed.clear()
    empty, taken = gpu_timing.interleaved([alone, sample], 4)
    assert [graph.milliseconds for graph in cuda.replayed] == pytest.approx([20 * US, 80 * US] * 4)
    timing = gpu_timing.timing_of(taken, empty, "cuda graph")
    assert timing.us == pytest.approx(3.0) and timing.spread == pytest.approx(0, abs=1e-9)


def test_the_median_over_the_rounds() -> None:
    empty = [1.0, 1.1, 5.0, 1.2, 1.0]
    samples = [
        nothing + us * gpu_timing.CALLS / 1e3
        for nothing, us in zip(empty, (3.0, 5.0, 4.0, 2.0, 9.0), strict=True)
    ]
    timing = gpu_timing.timing_of(samples, empty, "x")
    assert timing.us == pytest.approx(4.0) and timing.spread == pytest.approx((5.0 - 3.0) / 4.0)
    with pytest.raises(BackendError, match="too busy to be measured"):
        gpu_timing.timing_of(empty, empty, "x")


def test_more_than_the_cache_is_written_over(cuda, monkeypatch) -> None:
    assert gpu_timing.flush_of(CPU).numel() == 2048
    known = torch.cuda.get_device_properties(CPU)
    known.L2_cache_size = 0
    monkeypatch.setattr(gpu_timing, "LEAST_FLUSH", 4096)
    assert gpu_timing.flush_of(CPU).numel() == 4096


def instead(monkeypatch, op: str, kernel) -> None:
    right = backend._kernels[op, "cpu"]
    monkeypatch.setitem(backend._kernels, (op, "cpu"), lambda *arguments: kernel(right(*arguments)))


def test_a_wrong_kernel_is_not_timed_and_the_rest_is(cuda, monkeypatch, tmp_path, capsys) -> None:
    def one_off(y):
        y[-1, -1] += 1
        return y

    instead(monkeypatch, "gemm_w4", one_off)
    path = tmp_path / "gpu.jsonl"
    with pytest.raises(SystemExit) as stopped:
        run.main(["gpu", "--json", str(path)])
    assert stopped.value.code == 1
    assert (
        "not the bytes of the reference: M32 N24 K128 cpu-w4a8, M5 N8 K128 cpu-w4a8."
        in capsys.readouterr().err
    )
    rows = by_name(rows_of(path))
    assert rows["cpu-w4a8"]["us"] is None and gpu.WRONG in rows["cpu-w4a8"]["why"]
    assert all(rows[name]["us"] > 0 for name in ("cpu-w8a8", "cpu-w4a4", "cublas-fp16"))


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            "the GPU has no memory left for it",
        ),
        (
            RuntimeError("no kernel image is available\nfor execution"),
            "RuntimeError: no kernel image is available",
        ),
    ],
)
def test_what_cannot_run_has_a_row_that_says_why(cuda, monkeypatch, error, why) -> None:
    def fails(y):
        raise error

    instead(monkeypatch, "gemm_s8_float", fails)
    found = list(gpu.rows((1,), True, False))
    for case in ("M32 N24 K128", "M5 N8 K128"):
        rows = by_name(found, case)
        assert (rows["cpu-w8a8"]["why"], rows["cpu-w8a8"]["us"]) == (why, None) and rows["cpu-w4a8"]["us"] > 0


def test_no_memory_for_the_operands_of_a_shape(cuda, monkeypatch) -> None:
    def none_left(shape, device):
        raise torch.OutOfMemoryError("CUDA out of memory")
        yield

    monkeypatch.setattr(gpu, "cases", none_left)
    rows = by_name(gpu.rows((1,), True, False))
    assert rows["ours"]["why"] == "the GPU has no memory left for it" and rows["cublas-fp16"]["us"] > 0


def test_what_waits_within_a_capture_is_not_timed(cuda, monkeypatch) -> None:
    def waits(y):
        torch.cuda.synchronize()
        return y

    instead(monkeypatch, "gemm_w4a4", waits)
    rows = by_name(gpu.rows((1,), True, False))
    assert "not permitted when stream is capturing" in rows["cpu-w4a4"]["why"] and rows["cpu-w4a8"]["us"] > 0


def test_a_gpu_that_no_longer_answers_ends_the_run_and_the_rows_are_kept(
    cuda, monkeypatch, tmp_path, capsys
) -> None:
    def breaks(y):
        cuda.broken = "an illegal memory access was encountered"
        raise RuntimeError(cuda.broken)

    instead(monkeypatch, "conv_s8", breaks)
    path = tmp_path / "gpu.jsonl"
    with pytest.raises(SystemExit) as stopped:
        run.main(["gpu", "--json", str(path)])
    said = capsys.readouterr().err
    assert stopped.value.code == 1 and "does not answer any more" in said and "illegal memory access" in said
    assert by_name(rows_of(path))["cpu-w8a8"]["us"] > 0


def test_what_fails_in_a_replay_has_a_row(cuda, network, monkeypatch) -> None:
    def fails(samples, rounds):
        raise RuntimeError("unspecified launch failure")

    monkeypatch.setattr(gpu, "interleaved", fails)
    rows = list(gpu.rows((1,), False, False))
    assert {row["us"] for row in rows} == {None}
    whys = {row["why"] for row in rows if row["backend"] == "all"}
    assert whys == {"RuntimeError: unspecified launch failure"} and len({row["case"] for row in rows}) == 5


def test_a_gpu_that_cannot_be_used_is_one_sentence(cuda, monkeypatch, tmp_path, capsys) -> None:
    cuda.broken = "all CUDA-capable devices are busy or unavailable"
    with pytest.raises(SystemExit) as stopped:
        run.main(["gpu", "--json", str(tmp_path / "gpu.jsonl")])
    said = capsys.readouterr().err
    assert stopped.value.code == 1 and said.count("\n") == 1 and "busy or unavailable" in said
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_keeps_its_rows(cuda, monkeypatch, tmp_path) -> None:
    def stops(y):
        raise KeyboardInterrupt

    instead(monkeypatch, "conv_s8", stops)
    path = tmp_path / "gpu.jsonl"
    with pytest.raises(SystemExit) as stopped:
        run.main(["gpu", "--json", str(path)])
    assert stopped.value.code == 1 and by_name(rows_of(path))["cpu-w8a8"]["us"] > 0


def test_a_network_of_other_bytes_is_not_timed(cuda, network, monkeypatch) -> None:
    run_net = Net.__call__

    def one_off(self, *inputs):
        y = run_net(self, *inputs).clone()
        # The CPU's results of two images are what a batch is held to.
        if len(y) != gpu_networks.CHECKED:
            y[0, 0] += 1e-6
        return y

    monkeypatch.setattr(Net, "__call__", one_off)
    rows = by_name(gpu.rows((1,), False, False), "small batch 1")
    assert "is not the reference's; not timed" in rows["auto-w8a8"]["why"] and rows["torch-fp16"]["us"] > 0


def test_quick_leaves_networks_out(cuda, network) -> None:
    cases = {row["case"] for row in gpu.rows((1,), True, False)}
    assert cases == {"M32 N24 K128", "M5 N8 K128", gpu_cases.named(CONVOLUTION)}
