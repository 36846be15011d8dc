"""Other engines: each in its process, checked before any timing, left out with a reason said once."""

import io
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from rich.console import Console

from bench import gemm_s8
from bench.conv_s8 import alone, case_of, clamped, geometries
from bench.layer import engine_call, linear_op, random_inputs
from bench.limits import AMX, available
from bench.peers import crew
from bench.peers.crew import Away, Crew, codes_within_one, within
from bench.timing import interleaved
from pyquant.ops.backend import missing
from pyquant.runtime.net import Net
from tests.runtime.small_networks import program

WANT = np.arange(20, dtype=np.int16).reshape(4, 5)
PACKAGES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "xnnpack": "ai_edge_litert"}


@pytest.fixture
def said(monkeypatch):
    """What a crew of the engines here prints; no engine is doubled for AMX."""
    monkeypatch.setitem(crew.MODULES, "engine", "tests.bench.engines")
    monkeypatch.setattr(crew, "available", list)
    return io.StringIO()


def crew_of(behaviour, said):
    return Crew(behaviour, ("engine",), Console(file=said, width=200))


def test_a_right_engine_is_timed_in_its_own_process(said):
    with crew_of("right", said) as peers:
        runs = peers.runs({"want": WANT}, 1, codes_within_one(WANT))
        assert list(runs) == ["engine"] and isinstance(runs["engine"], Away)
        timing = interleaved(runs, threads=1, rounds=2)["engine"]
    assert 0 < timing.us < 1e4 and said.getvalue() == ""


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        ("off_by_two", "its codes differ by up to 2 from ours: it computes something else"),
        ("refuses", "ValueError: no kernel for 3 threads"),
        ("lacks", "pyquant_no_such_engine is not installed; `make peers` does that"),
        ("dies", "its process ended with status 3"),
        ("no_such_suite", "NotImplementedError: it has nothing for no_such_suite"),
    ],
)
def test_an_engine_that_cannot_is_left_out_and_why_is_said_once(said, behaviour, why):
    with crew_of(behaviour, said) as peers:
        for _ in range(2):
            assert peers.runs({"want": WANT}, 3, codes_within_one(WANT)) == {}
    assert said.getvalue() == f"engine is left out of {behaviour}: {why}.\n"


def test_codes_may_differ_by_one_and_shapes_may_not():
    for change in (-1, 0, 1):
        assert codes_within_one(WANT)(WANT + change) is None
    last = WANT.copy()
    last[-1, -1] -= 2
    assert "up to 2" in codes_within_one(WANT)(last)
    assert "shape [5, 4]" in codes_within_one(WANT)(WANT.T)


def test_floats_are_bound_by_the_norm_of_their_difference():
    want = np.array([3.0, 4.0])
    assert within(want, 0.11)(want + np.array([0.5, 0])) is None
    assert "1.0e-01" in within(want, 0.09)(want + np.array([0.5, 0]))
    assert "off by nan" in within(want, 0.5)(want + np.array([np.nan, 0]))
    assert "shape" in within(want, 0.5)(want[:1])


@pytest.mark.skipif(AMX not in available(), reason="this machine has no AMX to forbid")
def test_without_amx_the_system_refuses_it(monkeypatch):
    monkeypatch.setitem(crew.MODULES, "engine", "tests.bench.engines")
    answers = {}
    with Crew("asks_for_tiles", ("engine",)) as peers:
        assert peers.names == ("engine", "engine-vnni")
        # Each check sees the answers of one process, in the order of the names.
        names = iter(peers.names)
        peers.runs({"want": WANT}, 1, lambda got: answers.setdefault(next(names), int(got.min())) and None)
    assert answers == {"engine": 0, "engine-vnni": -1}


@pytest.mark.skipif(missing("cpu") is not None, reason=str(missing("cpu")))
@pytest.mark.parametrize("name", gemm_s8.PEERS)
def test_engines_give_our_codes(name, monkeypatch):
    """A linear layer, a strided and a depthwise convolution; asymmetric codes on both sides."""
    package = PACKAGES.get(name, "torch")
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed; `make peers` does that")
    monkeypatch.setattr(crew, "available", list)
    said, generator = io.StringIO(), torch.Generator().manual_seed(3)
    layer = linear_op(17, 24, 40, 8, generator)
    inputs = random_inputs(layer, 1, generator)
    want = engine_call(layer, inputs, 1)().reshape(17, 24).numpy()
    with Crew("gemm_s8", (name,), Console(file=said, width=200)) as peers:
        case = gemm_s8.case_of(layer, inputs[0].reshape(17, 40))
        assert list(peers.runs(case, 1, codes_within_one(want))) == [name], said.getvalue()
        assert peers.runs(case | {"y_zero": 120}, 1, codes_within_one(want)) == {}
        assert "its codes differ by up to" in said.getvalue()
    if name in ("fbgemm", "xnnpack"):
        return
    net = Net(program("depthwise-w8a8"), backend="cpu", threads=1)
    with Crew("conv_s8", (name,), Console(file=said, width=200)) as peers:
        for geometry, op in geometries(net).items():
            one = alone(net.program, op)
            if one.values[op.output].kind != "codes":
                continue
            x = random_inputs(one, 1, generator)
            check = clamped(op, engine_call(one, x, 1)().numpy())
            assert list(peers.runs(case_of(op, one, x[0]), 1, check)) == [name], (geometry, said.getvalue())
