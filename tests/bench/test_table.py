"""Tables from results: last run only, figures from the rows alone, losing rows too."""

import json

import pytest

from bench import table
from bench.record import append, last_run
from pyquant.ops.cuda_configurations import KERNELS

MACHINE = {
    "device": "AMD Test",
    "isa": "avx512",
    "torch": "2.13.0",
    "commit": "abc1234",
    "python": "3.11",
    "cores": 2,
}


def network_rows(date, ours):
    times = {"cpu-w8a8": ours, "cpu-w4a8": ours, "torch-eager": 5000.0, "torch-compile": 3000.0}
    for case in ("efficientnet_lite0 batch 1", "resnet20 batch 1"):
        for threads in (1, 2):
            for name, us in times.items():
                yield {
                    "suite": "network", "case": case, "backend": name, "threads": threads, "us": us, "spread": 0.03,
                    "images_per_s": 1e6 / us, **MACHINE, "date": date,
                }  # fmt: skip


DEMO = {
    name: {"top1": top1, "top5": 0.9, "agreement": 0.91, "logit_error": 0.2, "bytes": count, "all_bytes": every}
    for name, top1, count, every in (
        ("fp32", 0.8, 1000, None), ("nearest", 0.2, 130, 140), ("light", 0.7, 130, 140), ("advanced", 0.79, 130, 140)
    )
} | {"integer_vs_fake_agreement": 0.999987, "seconds": 321.0, "n": 89, "peak_gib": 2.25}  # fmt: skip


@pytest.fixture
def results(tmp_path):
    append(tmp_path / "network.jsonl", network_rows("2026-01-01T00:00:00Z", 10.0))
    append(tmp_path / "network.jsonl", network_rows("2026-01-02T00:00:00Z", 4000.0))
    (tmp_path / "demo.json").write_text(json.dumps(DEMO))
    case = {
        "of_case": "net W4A8",
        "network": "net",
        "method": "sequential",
        "weights": 4,
        "inputs": 8,
        "budget": None,
    }
    case |= {"protocol": "split", "n": 1000, "seconds": 12.3, "calibration_images": 160}
    values = {
        "top1": (0.93, 0.008, 0.94, 0.5),
        "agreement": (0.96, 0.006, 1.0, 0.6),
        "kl": (0.0321, None, 0.0, 2.0),
    }
    rows = [
        {**case, "metric": metric, **dict(zip(("value", "error", "fp32", "nearest"), each, strict=True))}
        for metric, each in values.items()
    ]
    photographs = [{**row, "protocol": "photographs", "nearest": None} for row in rows[1:]]
    append(
        tmp_path / "accuracy.jsonl",
        [row | MACHINE | {"date": "2026-01-02T00:00:00Z"} for row in rows + photographs],
    )
    return tmp_path


def test_the_last_run_counts_and_a_losing_row_stays(results):
    assert {row["us"] for row in last_run(results / "network.jsonl")} == {4000.0, 5000.0, 3000.0}
    lines = table.network(results).splitlines()
    assert (
        lines[0]
        == "| network | threads | cpu-w8a8 | cpu-w4a8 | torch-eager | torch-compile | w8a8 over best float32 |"
    )
    assert lines[2] == "| efficientnet_lite0 batch 1 | 1 | 250.0 | 250.0 | 200.0 | 333.3 | 0.75x |"
    assert len([line for line in lines if line.endswith("0.75x |")]) == 4
    assert "AMD Test (avx512), torch 2.13.0, commit abc1234, 2026-01-02" in lines[-1] and "3%" in lines[-1]


def test_a_peer_that_was_left_out_leaves_an_empty_cell(tmp_path):
    rows = [
        row
        for row in network_rows("2026-01-01T00:00:00Z", 10.0)
        if row["backend"] != "torch-compile" or row["threads"] == 2
    ]
    append(tmp_path / "network.jsonl", rows)
    assert "| efficientnet_lite0 batch 1 | 1 | 100000.0 | 100000.0 | 200.0 |  | 500.00x |" in table.network(
        tmp_path
    )


def test_the_headline_has_its_limits(results):
    text = table.headline(results)
    assert "**250 images/s** on one core of an AMD Test (batch 1), 0.8 times the best" in text
    assert "(eager, compile)" in text
    assert (
        "at 0.130 of" in text
        and "**91.0%** of 89 images (top-1 79.0%, float 80.0%)" in text
        and "± 3%" in text
    )


def test_accuracy(results):
    text = table.accuracy(results)
    assert "| nearest | 0.200 | 0.900 | 0.910 | 0.200 | 130 | 0.1300 | 140 |" in text
    assert (
        "n = 89, standard error of top-1 4.2%" in text and "0.999987" in text and "321 s and 2.25 GiB" in text
    )


def test_targets(results):
    lines = table.targets(results).splitlines()
    assert lines[2:4] == [
        "| net | W4A8 | sequential | split, 160 calibrate | 1,000 | 0.930 | 0.940 | 0.500 | 0.960 ± 0.006 | 0.600 | 0.032 | 12 |",
        "| net | W4A8 | sequential | photographs, 160 calibrate | 1,000 |  |  |  | 0.960 ± 0.006 |  | 0.032 | 12 |",
    ]


STATIC = {
    "kernel": "gemm_s8_kernel", "case": "M4096", "backend": "triton", "registers": 250, "shared": 98304, "blocks": 1, "spills": 0,
    "tensor_share": 0.456, "bytes": 300, "bytes_minimum": 200, "commit": "abc1234", "date": "2026-01-02T00:00:00Z", "triton": "3.9",
}  # fmt: skip


def test_gpu_kernels_as_compiled(tmp_path):
    other = {"kernel": "gemm_w4a4_signed_row_128x128", "backend": "cuda", "tensor_share": None, "spills": 3}
    rows = [
        {**STATIC, "target": "sm_90", "lower_bound_us": {"H100": 3.21}, "registers": 168},
        {**STATIC, "target": "sm_80", "lower_bound_us": {"A100": 7.55}},
        {**STATIC, "target": "sm_80", "case": "M1", "lower_bound_us": {"A100": 1.0}},
        {**STATIC, **other, "target": "sm_80", "lower_bound_us": {"A100": 2.0}},
    ]
    append(tmp_path / "gpu_static.jsonl", rows)
    text = table.gpu_static(tmp_path)
    head, _, *lines = text.splitlines()
    assert head.count("bound µs") == 2 and "sm_90 registers" in head
    assert lines[0] == (
        "| gemm_s8_kernel (triton) | M4096 | 250 | 96 | 1 | 46% | 1.5 | 7.5 | 168 | 96 | 1 | 46% | 1.5 | 3.2 |"
    )
    # What has no tensor cores, or does not ship for a target, has empty cells.
    assert (
        lines[1]
        == "| gemm_w4a4_signed_row_128x128 (cuda) | M4096 | 250 | 96 | 1 |  | 1.5 | 2.0 |  |  |  |  |  |  |"
    )
    assert "4 kernels as compiled for 2 targets" in text and "1 of them with spills" in text
    assert "lower bound from the published peaks" in text and "no prediction" in text


def test_every_gpu_kernel_that_is_shown_ships():
    shipped = pytest.importorskip("pyquant.kernels.shipped", reason="pip install 'pyquant-engine[gpu]'")
    cuda = {kernel.entry for kernel in KERNELS}
    triton = {(one.function.__name__, one.case) for one in shipped.shipped("sm_80")}
    assert [shown for shown in table.GPU_KERNELS if shown not in triton and shown[0] not in cuda] == []


@pytest.mark.parametrize("name", table.TABLES)
def test_without_results_a_table_says_what_to_run(tmp_path, name):
    assert "Not measured yet: run `" in table.TABLES[name](tmp_path)


def test_blocks_are_filled_and_the_rest_is_kept(results):
    text = "before\n<!-- bench:network -->\nold | 99 |\n<!-- /bench -->\nbetween\n<!-- bench:accuracy -->\n<!-- /bench -->\nafter\n"
    new = table.filled(text, results)
    assert "old" not in new and new.startswith("before\n<!-- bench:network -->\n| network")
    assert "\n<!-- /bench -->\nbetween\n" in new and new.endswith("<!-- /bench -->\nafter\n")
    assert table.filled(new, results) == new
    with pytest.raises(KeyError):
        table.filled("<!-- bench:wishes -->\n<!-- /bench -->", results)


def test_check_writes_nothing(results, tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- bench:network -->\n<!-- /bench -->\n")
    monkeypatch.setattr(table, "README", readme)
    monkeypatch.setattr(table, "RESULTS", results)
    assert table.main(["--check"]) == 1 and readme.read_text() == "<!-- bench:network -->\n<!-- /bench -->\n"
    assert table.main([]) == 0 and table.main(["--check"]) == 0
    assert "0.75x" in readme.read_text()
