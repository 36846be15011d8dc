"""Suites: correctness before time, rows that say what they are, and nothing kept of a quick or a wrong run."""

import json

import pytest
import torch

from bench import layer, run, timing
from bench.conv_s8 import float_layer, geometries
from bench.layer import alone, conv_op, engine_call, linear_op, multiplications, random_inputs
from bench.record import MACHINE
from pyquant.errors import BackendError
from pyquant.ops.backend import missing
from pyquant.runtime.execute_reference import ReferenceExecutor
from pyquant.runtime.geometry import rows_shape
from pyquant.runtime.net import Net
from tests.runtime.small_networks import program

pytestmark = pytest.mark.skipif(missing("cpu") is not None, reason=str(missing("cpu")))


@pytest.fixture(autouse=True)
def short_samples(monkeypatch):
    """Samples of a millisecond: these tests read the rows, not the figures."""
    monkeypatch.setattr(timing, "SAMPLE_SECONDS", 0.001)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_are_appended_and_say_what_they_are(tmp_path, capsys):
    path = tmp_path / "inner" / "rows.jsonl"
    for _ in range(2):
        assert run.main(["gemm_s8", "--quick", "--threads", "1", "--json", str(path)]) == 0
    rows = rows_of(path)
    names = {"cpu-w8", "cpu-w4", "torch-fp32", *(f"{isa}-w8" for isa in layer.pinned())}
    assert len(rows) == 2 * 2 * len(names) and {row["backend"] for row in rows} == names
    for row in rows:
        assert set(MACHINE) <= set(row) and row["suite"] == "gemm_s8" and row["threads"] == 1
        m, n, k = (int(word[1:]) for word in row["case"].split())
        assert row["tops"] == pytest.approx(2 * m * n * k / row["us"] / 1e6) and row["us"] > 0
        bytes_each = 4 if row["backend"] == "torch-fp32" else 1
        assert row["gbps"] == pytest.approx(bytes_each * (m * k + n * k + m * n) / row["us"] / 1e3)
        assert row["peers"] == {}
    out = capsys.readouterr().out
    assert "M49 N512 K4608" in out and "torch-fp32" in out


def test_a_quick_run_is_kept_only_where_it_is_told_to(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    assert run.main(["gemm_s8", "--quick"]) == 0
    assert list(tmp_path.iterdir()) == []


def test_the_number_of_threads_is_put_back(tmp_path, monkeypatch):
    def rows(threads, quick, peers):
        torch.set_num_threads(threads[0])
        yield {"case": "none", "backend": "cpu", "threads": torch.get_num_threads()}

    monkeypatch.setitem(run.SUITES, "gemm_s8", rows)
    before = torch.get_num_threads()
    path = tmp_path / "rows.jsonl"
    assert run.main(["gemm_s8", "--threads", str(before + 1), "--json", str(path)]) == 0
    assert torch.get_num_threads() == before and rows_of(path)[0]["threads"] == before + 1


def test_wrong_bytes_are_not_timed(tmp_path, monkeypatch, capsys):
    class OneOff(ReferenceExecutor):
        def __call__(self, *inputs):
            (y,) = super().__call__(*inputs)
            y.view(-1)[-1] ^= 1
            return (y,)

    monkeypatch.setattr(layer, "ReferenceExecutor", OneOff)
    with pytest.raises(SystemExit) as stopped:
        run.main(["gemm_s8", "--quick", "--json", str(tmp_path / "rows.jsonl")])
    assert stopped.value.code == 1 and "not timed" in capsys.readouterr().err
    assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.parametrize("argv", [["gemm"], ["gemm_s8", "--threads", "0"], []])
def test_what_cannot_be_run(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        run.main(argv)
    assert stopped.value.code == 2 and "usage" in capsys.readouterr().err


RANDOM = {
    "linear w8": lambda generator: linear_op(17, 63, 500, 8, generator),
    "linear w4": lambda generator: linear_op(17, 63, 500, 4, generator),
    "conv": lambda generator: conv_op(9, 24, 63, 3, 2, 1, generator),
    "depthwise": lambda generator: conv_op(9, 24, 24, 3, 1, 24, generator),
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_layers_use_the_whole_range_of_codes(name):
    """A layer whose codes all saturate would hide wrong sums."""
    generator = torch.Generator().manual_seed(1)
    layer_program = RANDOM[name](generator)
    inputs = random_inputs(layer_program, 1, generator)
    codes = engine_call(layer_program, inputs, 1)().clone()
    saturated = ((codes == 0) | (codes == 255)).float().mean().item()
    assert saturated < 0.01 and codes.float().std() > 30
    layer_program.ops[0].tensors["bias"][3] += 5
    changed = engine_call(layer_program, inputs, 1)()
    assert not torch.equal(changed, codes) and torch.equal(changed[..., 4:], codes[..., 4:])


def test_a_wrong_kernel_is_refused(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    layer_program = linear_op(5, 7, 40, 8, generator)
    inputs = random_inputs(layer_program, 1, generator)

    class Lazy:
        def run(self, *arguments):
            """Write nothing."""

    monkeypatch.setattr(layer, "load", lambda *arguments: Lazy())
    with pytest.raises(BackendError, match="not timed"):
        engine_call(layer_program, inputs, 1)


@pytest.mark.parametrize("case", ["residual_blocks-w8a8", "depthwise-w8a8", "pools_then_linear-w8a8"])
def test_float_peers_do_the_work_of_the_layer(case):
    """Same output shape, and as many multiply-adds as its weights and positions say."""
    net, generator = Net(program(case), backend="cpu", threads=1), torch.Generator().manual_seed(2)
    found = geometries(net)
    convs = [op for op in net.program.ops if op.kind == "conv"]
    assert found and all(op in convs for op in found.values())
    for geometry, op in found.items():
        one = alone(net.program, op)
        height, width, outputs = rows_shape(one.values[op.output])
        got = tuple(float_layer(op, one, generator)().shape)
        assert got in ((1, outputs, height, width), (height * width, outputs)), geometry
        kernel, channels = op.attributes["kernel"], one.values[op.inputs[0]].shape[2]
        taps = kernel[0] * kernel[1] * channels // op.attributes["groups"]
        assert multiplications(op, one) == height * width * outputs * taps, geometry
        engine_call(one, random_inputs(one, 2, generator), 1)
