"""The suite of compiled kernels: rows with the agreed keys, bounds that are called bounds, and nothing that looks like a time."""

import json
from dataclasses import replace

import pytest

from bench import compiled, gpu_static, run
from bench.compiled import Product
from bench.gpu_static import row, table
from tests.gpu.test_gates import GOOD

KEYS = {
    "suite",
    "case",
    "kernel",
    "target",
    "registers",
    "shared",
    "blocks",
    "spills",
    "tensor_share",
    "bytes",
    "bytes_minimum",
}


@pytest.fixture
def one_kernel_a_target(monkeypatch):
    """Rows of a kernel by hand: these tests compile nothing."""
    monkeypatch.setattr(gpu_static, "artefacts", lambda target: iter([replace(GOOD, target=target)]))
    monkeypatch.setattr(gpu_static, "missing_triton", lambda: None)


def test_rows_have_the_agreed_keys_and_no_time(one_kernel_a_target, tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    assert run.main(["gpu_static", "--json", str(path)]) == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["target"] for line in rows] == list(gpu_static.TARGETS)
    for line in rows:
        assert set(line) >= KEYS and line["suite"] == "gpu_static"
        assert not {"us", "tops", "gbps", "device", "isa", "spread"} & set(line)
    out = capsys.readouterr().out
    assert "lower BOUNDS" in out and "no prediction and no measurement" in " ".join(out.split())
    assert "RTX 4090" in out and "L40S" in out
    assert "address arithmetic, which the tests hold to the counts of the PTX emulator" in " ".join(
        out.split()
    )


def test_a_quick_run_is_one_target(one_kernel_a_target, tmp_path):
    path = tmp_path / "rows.jsonl"
    assert run.main(["gpu_static", "--quick", "--json", str(path)]) == 0
    assert [json.loads(line)["target"] for line in path.read_text().splitlines()] == ["sm_80"]


def test_a_row_says_what_the_kernel_is():
    found = row(GOOD)
    assert (found["kernel"], found["target"], found["case"]) == ("gemm_s8_kernel", "sm_80", "M4096")
    assert (found["registers"], found["shared"], found["blocks"], found["spills"]) == (250, 98_304, 1, 0)
    assert found["tensor_share"] == 0.4 and found["bytes"] > found["bytes_minimum"] == 50_380_800
    assert found["operations"] == found["operations_minimum"] == 2 * 4096**3
    flat = row(replace(GOOD, description=Product(1, 4096, 4096)))
    assert flat["operations"] == 128 * flat["operations_minimum"]
    # The bound is that of the one row that is wanted: its bytes.
    assert flat["lower_bound_us"]["A100"] == pytest.approx(flat["bytes_minimum"] / 2.039e6)
    assert found["lower_bound_us"] == {"A100": pytest.approx(220.25, rel=1e-4)}
    assert row(replace(GOOD, code=replace(GOOD.code, loop={})))["tensor_share"] is None


def test_a_table_of_a_kernel_without_a_loop():
    line = {**row(replace(GOOD, code=replace(GOOD.code, loop={}))), "commit": "0000000"}
    assert table([line]).row_count == 1


def test_without_a_compiler_there_is_nothing_to_read(monkeypatch, capsys):
    monkeypatch.setattr(gpu_static, "missing_triton", lambda: "no Triton")
    monkeypatch.setattr(gpu_static, "missing_fatbin", lambda: "no CUDA kernels")
    with pytest.raises(SystemExit) as stopped:
        run.main(["gpu_static"])
    assert (
        stopped.value.code == 1 and "nothing to read: no Triton; no CUDA kernels." in capsys.readouterr().err
    )


def test_what_was_read_is_kept_until_something_changes(monkeypatch, tmp_path):
    if compiled.missing_triton() is not None:
        pytest.skip(str(compiled.missing_triton()))
    monkeypatch.setattr(compiled, "BUILD", tmp_path)
    calls = []

    def compile_one(one, target):
        calls.append((str(one), target))
        return {"code": vars(GOOD.code), "threads": 128, "shared": 1024, "tensor_columns": 0}

    monkeypatch.setattr(compiled, "_compile", compile_one)
    first = list(compiled.triton_artefacts("sm_80"))
    assert len(calls) == len(first) == len(list(tmp_path.glob("*.json")))
    assert len({str(artefact) for artefact in first}) == len(first)
    assert list(compiled.triton_artefacts("sm_80")) == first and len(calls) == len(first)
    list(compiled.triton_artefacts("sm_86", first=True))
    assert {target for _, target in calls[len(first) :]} == {"sm_86"} and len(calls) > len(first)
    monkeypatch.setattr(compiled, "_readers", lambda: b"another reader")
    list(compiled.triton_artefacts("sm_80", first=True))
    assert calls[-1][1] == "sm_80"


def test_a_fatbin_without_a_kernel_is_refused(monkeypatch, tmp_path):
    pytest.importorskip("pyquant.ops.cuda_configurations", reason="no table of CUDA kernels")
    monkeypatch.setattr(compiled, "_fatbin", dict)
    with pytest.raises(compiled.sass.SassError, match=r"has no \w+ for sm_80: build it anew"):
        list(compiled.cuda_artefacts("sm_80"))
