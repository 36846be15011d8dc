"""What a user holds: calls, files, backends, sizes and descriptions."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pyquant.errors import BackendError, CheckpointError, DataError, DTypeError, PyquantError, ShapeError
from pyquant.grid import Grid, QParams
from pyquant.model import SiteWeights, prepare
from pyquant.ops.backend import missing
from pyquant.runtime.compare import same_bytes
from pyquant.runtime.net import Net, deploy, load
from pyquant.steps.calibrate import calibrate
from tests.runtime.small_networks import IMAGE, images, inputs_of, module, program, quantized

needs_cpu = pytest.mark.skipif(missing("cpu") is not None, reason=str(missing("cpu")))
CASE = "conv_bn_relu_chain-w235"


def sentence(error: pytest.ExceptionInfo[PyquantError], *words: str) -> None:
    text = str(error.value)
    assert text.endswith(".") and "\n" not in text and all(word in text for word in words), text


def net_of(case: str, backend: str = "reference") -> Net:
    return Net(program(case), backend=backend, threads=1)


# ----------------------------------------------------------------------------------------------------- calls
def test_deployed_networks_are_close_to_the_float_ones() -> None:
    for name in ("residual_blocks", "pools_then_linear", "tokens", "called_twice"):
        want = module(name)(*inputs_of(name, 4, seed=70))
        got = deploy(quantized(f"{name}-w8a8"), threads=1)(*inputs_of(name, 4, seed=70))
        assert isinstance(got, torch.Tensor) and got.shape == want.shape and not got.requires_grad
        assert (got - want).norm() <= 0.05 * want.norm()


def test_two_outputs_are_a_tuple() -> None:
    outputs = net_of("two_outputs-w8a8")(*inputs_of("two_outputs", 2))
    assert isinstance(outputs, tuple) and [tuple(y.shape) for y in outputs] == [(2, 2, 7, 9), (2, 5)]


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_cpu)])
def test_strides_and_gradients_of_inputs_do_not_matter(backend: str) -> None:
    net = net_of(CASE, backend)
    x = images(3)
    want = net(x)
    assert same_bytes(net(x.to(memory_format=torch.channels_last)), want)
    assert same_bytes(net(x.flip(0).flip(0)[:, :, :, :]), want)
    wide = torch.zeros(3, IMAGE[0], IMAGE[1], 2 * IMAGE[2])
    wide[..., ::2] = x
    assert same_bytes(net(wide[..., ::2]), want)
    assert same_bytes(net(x.clone().requires_grad_()), want)


WRONG = {
    "no_batch": (ShapeError, (images(1)[0],)),
    "wrong_size": (ShapeError, (images(2)[..., 1:],)),
    "wrong_rank": (ShapeError, (images(2)[None],)),
    "empty": (ShapeError, (images(1)[:0],)),
    "none": (ShapeError, ()),
    "two": (ShapeError, (images(1), images(1))),
    "half": (DTypeError, (images(1).half(),)),
    "double": (DTypeError, (images(1).double(),)),
    "integer": (DTypeError, (images(1).int(),)),
    "list": (DTypeError, (images(1).tolist(),)),
    "meta": (DTypeError, (images(1).to("meta"),)),
    "sparse": (DTypeError, (images(1).to_sparse(),)),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_cpu)])
def test_wrong_inputs(wrong: str, backend: str) -> None:
    error, inputs = WRONG[wrong]
    with pytest.raises(error) as caught:
        net_of(CASE, backend)(*inputs)
    sentence(caught)
    if wrong in ("half", "double"):
        sentence(caught, "x.float()")


def test_batches_that_differ() -> None:
    with pytest.raises(ShapeError) as caught:
        net_of("two_inputs-w8a8")(images(2), images(3))
    sentence(caught, "2", "3")


# -------------------------------------------------------------------------------------------------- backends
@needs_cpu
def test_auto_takes_the_cpu_and_says_so() -> None:
    net = Net(program(CASE))
    assert net.choice.backend == "cpu" and str(net.choice).startswith("program -> cpu (")
    reference = net.with_backend("reference")
    assert str(reference.choice) == "program -> reference (pinned)"
    assert same_bytes(net(images(2)), reference(images(2)))
    assert same_bytes(net.with_backend("cpu", 2)(images(2)), reference(images(2)))


@pytest.mark.parametrize("backend", ["gpu", "triton", "cuda", ""])
def test_backends_that_cannot_serve(backend: str) -> None:
    with pytest.raises(BackendError) as caught:
        Net(program(CASE), backend=backend)
    sentence(caught)


@pytest.mark.parametrize("threads", [0, -1, "2", 2.5, True, False])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_no_number_of_threads(backend: str, threads: Any) -> None:
    with pytest.raises(BackendError) as caught:
        Net(program(CASE), backend=backend, threads=threads)
    sentence(caught, f"threads={threads!r} ")
    assert "None" not in str(caught.value)


@needs_cpu
def test_auto_moves_on_and_a_pinned_backend_does_not() -> None:
    """Eight unsigned bits around zero point 0 are no int8 weights."""
    layer = nn.Conv2d(3, 4, 3)
    q = calibrate(prepare(layer, images(1), weights=Grid(8, signed=False, axis=0)), [images(4)])
    (site,) = q.graph.sites
    given = q.weights[site]
    qparams = QParams(given.qparams.scale, torch.zeros(4))
    q = replace(q, weights={site: SiteWeights(torch.full_like(given.codes, 200), qparams, given.bias)})
    net = deploy(q, threads=1)
    assert net.choice.backend == "reference" and "int8" in str(net.choice)
    assert net(images(2)).shape == (2, 4, 7, 9)
    with pytest.raises(BackendError) as caught:
        deploy(q, backend="cpu")
    sentence(caught)


def test_uncalibrated_models() -> None:
    with pytest.raises(DataError) as caught:
        deploy(prepare(nn.Conv2d(3, 4, 3), images(1)))
    sentence(caught, "deploy needs a calibrated model")


@pytest.mark.parametrize("model", [nn.Conv2d(3, 4, 3), None, "net.pq"])
def test_what_is_no_prepared_model(model: Any) -> None:
    with pytest.raises(DataError) as caught:
        deploy(model)
    sentence(caught, "deploy takes what prepare and calibrate return", type(model).__name__)


# ----------------------------------------------------------------------------------------------------- files
def test_save_and_load(tmp_path: Path) -> None:
    net = deploy(quantized(CASE), backend="reference")
    net.info["top1"] = 0.5
    net.save(tmp_path / "net.pq")
    again = load(str(tmp_path / "net.pq"), backend="reference")
    assert again.info == {"plan": {"0": [2, 8], "3": [3, 5], "6": [5, 2]}, "top1": 0.5}
    assert same_bytes(net(images(2)), again(images(2))) and again.sizes == net.sizes
    with pytest.raises(CheckpointError):
        load(tmp_path / "none.pq")


@pytest.mark.parametrize("move", [copy.deepcopy, copy.copy, lambda net: pickle.loads(pickle.dumps(net))])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_copies_and_pickles_run(move: Callable[[Net], Net], backend: str) -> None:
    net = deploy(quantized("residual_blocks-excluded"), backend=backend, threads=1)
    again = move(net)
    assert again is not net and (again.choice, again.threads, again.info) == (net.choice, 1, net.info)
    assert again.backend == backend and again.sizes == net.sizes
    assert same_bytes(again(images(2)), net(images(2)))


def test_a_deep_copy_shares_no_weights() -> None:
    net = deploy(quantized(CASE), backend="reference")
    want = net(images(2))
    again = copy.deepcopy(net)
    for op in again.program.ops:
        for tensor in op.tensors.values():
            tensor.zero_()
    assert same_bytes(net(images(2)), want)


# --------------------------------------------------------------------------------------------------- figures
def test_repr() -> None:
    net = net_of("two_inputs-w8a8")
    ops = net.program.ops
    sites = sum(op.kind == "conv" for op in ops)
    shapes = {name: [str(n) for n in net.program.values[name].shape] for name in net.program.inputs}
    inputs = ", ".join(f"{name} [{', '.join(['B', *shape])}]" for name, shape in shapes.items())
    want = (
        f"Net({inputs}; ops: {len(ops)}; sites: {sites}; backend: reference; bytes: {net.sizes['total']:,})"
    )
    assert repr(net) == want and len(shapes) == 2 and "\n" not in want


def test_sizes() -> None:
    net = net_of("residual_blocks-excluded")
    weights = {"0": 27 * 6, "2.conv1": 54 * 6, "3.conv2": 54 * 6, "6": 60}
    excluded = 2 * (54 * 6 + 6)
    assert net.sizes["float_weights"] == 4 * sum(weights.values())
    assert net.sizes["float_total"] == 4 * (sum(weights.values()) + 6 * 3 + 10 + excluded)
    words = 6 * 7 + 6 * 14 + 6 * 14 + 10 * 2  # rows times words of 27, 54, 54 and 6 codes
    assert net.sizes["weights"] == 4 * words
    # A table of 256 codes stands behind the float add.
    assert net.sizes["total"] == 4 * (words + 2 * (6 * 3 + 10) + excluded) + 256


def test_weights_in_the_file_are_the_bytes_that_sizes_gives(tmp_path: Path) -> None:
    net = net_of(CASE)
    net.save(tmp_path / "net.pq")
    data = (tmp_path / "net.pq").read_bytes()
    # The program for C, whose last bytes say how long it is, holds no weights.
    section = int.from_bytes(data[-16:-12], "little")
    assert section < 250 * len(net.program.ops)
    assert len(data) - 8 - int.from_bytes(data[:8], "little") - section == net.sizes["total"]


def test_share() -> None:
    assert net_of("residual_blocks-w8a8").share() == {"integer": 8, "float": 0, "boundary": 1, "share": 1.0}
    floats = net_of("ends_in_add-w8a8").share()
    assert floats == {"integer": 3, "float": 1, "boundary": 1, "share": 0.75}


def test_describe() -> None:
    rows = deploy(quantized("residual_blocks-w67"), backend="reference").describe()
    by_name = {row["name"]: row for row in rows if row["kind"] == "conv"}
    assert [row["op"] for row in rows] == list(range(len(rows)))
    assert (by_name["2.conv1"]["weight_bits"], by_name["2.conv1"]["input_bits"]) == (6, 3)
    assert by_name["2.conv2"]["geometry"] == "7x9x6 -> 7x9x6 k3x3 p1,1,1,1 + residual"
    assert by_name["2.conv2"]["bytes"] == 6 * 4 * 12 + 2 * 6 * 4
    assert by_name["6"]["geometry"] == "1x1x6 -> 10"
    grouped = {row["name"]: row["geometry"] for row in net_of("depthwise-w8a8").describe()}
    assert grouped["2"] == "9x11x10 -> 5x6x10 k3x3 s2x2 p1,1,1,1 g10"
    floats = [row["kind"] for row in net_of("mask-w8a8").describe()]
    assert "aten.masked_fill.Scalar" in floats and all(
        row["input_bits"] is None for row in net_of(CASE).describe()
    )


def test_a_program_that_makes_no_sense_is_not_deployed() -> None:
    q = quantized(CASE)
    name = next(iter(q.ranges))
    huge = replace(q.ranges[name], scale=torch.tensor(3e38))
    broken = replace(q, ranges={**q.ranges, name: huge})
    with pytest.raises(PyquantError) as caught:
        deploy(
            replace(
                broken,
                ranges={
                    k: replace(v, scale=torch.tensor(1e-38)) if k != name else huge
                    for k, v in broken.ranges.items()
                },
            )
        )
    sentence(caught)
