"""The lowered program against the fake-quantised network it came from."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyquant.errors import BackendError, DataError, GridError
from pyquant.graph import run
from pyquant.grid import Grid
from pyquant.layers import evaluate
from pyquant.model import QuantView, input_key, prepare
from pyquant.runtime.compare import graph_layout, site_agreement
from pyquant.runtime.execute_reference import ReferenceExecutor
from pyquant.runtime.lower import lower
from pyquant.runtime.validate import validate
from pyquant.steps.calibrate import calibrate
from tests.runtime.small_networks import CASES, inputs_of, program, quantized

EPS = 2.0**-24


@pytest.mark.parametrize("case", CASES)
def test_sites_agree_with_fake_quant(case: str) -> None:
    batch = inputs_of(case, 16, seed=30)
    agreement = site_agreement(quantized(case), program(case), [batch])
    values, ops = program(case).values, {op.name: op for op in program(case).ops}
    for site, share in agreement.items():
        codes = 16 * torch.Size(values[ops[site].output].shape).numel()
        # A site with few codes may have one tie that falls the other way.
        assert (1 - share) * codes <= max(1.0, 1e-4 * codes), site


@pytest.mark.parametrize("case", CASES)
def test_values_are_those_of_fake_quant(case: str) -> None:
    q = quantized(case)
    batch = inputs_of(case, 4, seed=40)
    trace = ReferenceExecutor(program(case)).trace(*batch)
    simulated = run(q.graph, QuantView(q), batch, keep=None)
    compared = 0
    for name, qparams in q.ranges.items():
        codes = trace.get(f"{name}:codes", trace.get(name))
        if name not in simulated or codes is None or codes.dtype != torch.uint8:
            continue
        floats = (graph_layout(q, name, codes).float() - qparams.zero_point) * qparams.scale
        step = qparams.scale.item()
        off = (floats - simulated[name]).abs() > step * 1e-4
        # Ties that fall the other way are rare, and move what reads them by a few steps at most.
        assert off.float().mean() <= 5e-3, name
        assert (floats - simulated[name]).abs().max() <= 8.5 * step, name
        compared += 1
    assert compared >= 1


@pytest.mark.parametrize("case", CASES)
def test_float_sites_are_exact_to_rounding(case: str) -> None:
    """A site that gives floats, against the same layer in float64: five roundings of a float32."""
    q = quantized(case)
    trace = ReferenceExecutor(program(case)).trace(*inputs_of(case, 3, seed=50))
    for op in program(case).ops:
        if op.kind != "conv" or program(case).values[op.output].kind == "codes":
            continue
        node, key = q.graph.by_name[op.name], input_key(q, op.name)
        codes = graph_layout(q, node.inputs[0], trace[op.inputs[0]]).double()
        x = (codes - q.ranges[key].zero_point.double()) * q.ranges[key].scale.double()
        site = q.weights[op.name]
        shape = (-1,) + (1,) * (site.codes.dim() - 1)
        scale, zero = (p.double().reshape(shape) for p in (site.qparams.scale, site.qparams.zero_point))
        weight = (site.codes.double() - zero) * scale
        bias = site.bias.double()
        exact = evaluate(node.op, node.attrs, [x], {"weight": weight, "bias": bias}, 3)
        product = evaluate(node.op, node.attrs, [x], {"weight": weight, "bias": torch.zeros_like(bias)}, 3)
        channel = 1 if node.op == "conv2d" else -1
        wide = [1] * exact.dim()
        wide[channel] = -1
        bound = 5 * EPS * (product.abs() + bias.abs().reshape(wide))
        assert ((trace[op.output].double() - exact).abs() <= bound).all(), op.name


@pytest.mark.parametrize("case", CASES)
def test_programs_are_valid(case: str) -> None:
    validate(program(case))


def kinds(case: str) -> list[str]:
    return [op.kind for op in program(case).ops]


def test_whole_networks_are_integer() -> None:
    for name in (
        "conv_bn_relu_chain",
        "residual_blocks",
        "depthwise",
        "pools_then_linear",
        "silu_lookups",
        "called_twice",
    ):
        found = kinds(f"{name}-w8a8")
        assert found[0] == "quantize" and not {"aten", "dequantize"} & set(found), name
        assert found.count("quantize") == 1, name


def test_residuals_and_clamps_are_fused() -> None:
    assert kinds("residual_blocks-w8a8") == ["quantize", *["conv"] * 5, "avg_pool", "flatten", "conv"]
    assert sum(len(op.inputs) == 2 for op in program("residual_blocks-w8a8").ops) == 2


def test_narrow_inputs_have_a_table() -> None:
    found = [op for op in program("residual_blocks-w4a4").ops if op.kind == "lookup"]
    assert found and all(op.name.endswith(":input") and int(op.tensors["table"].max()) <= 15 for op in found)


def test_a_module_called_twice_is_two_convolutions() -> None:
    convs = [op for op in program("called_twice-w8a8").ops if op.kind == "conv"]
    assert [op.name for op in convs] == ["stem", "conv1", "conv1@1"]
    assert torch.equal(convs[1].tensors["weight"], convs[2].tensors["weight"])
    assert not torch.equal(convs[1].tensors["multiplier"], convs[2].tensors["multiplier"])


def test_excluded_sites_run_in_float() -> None:
    ops = {op.output: op for op in program("residual_blocks-excluded").ops}
    for site in ("2.conv2", "3.conv1"):
        assert ops[site].kind == "aten" and ops[site].attributes["attrs"]["target"] == "aten.conv2d.default"


def test_asymmetric_weights_have_zero_points() -> None:
    for op in program("depthwise-asymmetric").ops:
        if op.kind == "conv":
            assert not op.attributes["weight_signed"] and op.tensors["weight_zero"].dtype == torch.int32


def test_weights_take_the_words_of_their_bits() -> None:
    for op in program("conv_bn_relu_chain-w235").ops:
        if op.kind == "conv":
            taps = 9 * {"0": 3, "3": 8}.get(op.name, 0) or 13
            assert op.attributes["weight_bits"] == {"0": 2, "3": 3, "6": 5}[op.name]
            assert op.tensors["weight"].shape[1] == -(-taps * op.attributes["weight_bits"] // 32)


def test_linear_layers_over_maps_stay_float() -> None:
    ops = {op.name: op for op in program("maps_last-w8a8").ops}
    assert ops["fc"].kind == "aten" and ops["conv2"].kind == "conv"


def sentence(error: BaseException) -> bool:
    text = str(error)
    return text.endswith(".") and "\n" not in text and "  " not in text


def test_uncalibrated_models_are_refused() -> None:
    q = prepare(nn.Conv2d(3, 4, 3), inputs_of("", 1))
    with pytest.raises(DataError) as caught:
        lower(q)
    assert sentence(caught.value)


def test_groups_of_weights_are_refused() -> None:
    q = prepare(nn.Conv2d(4, 4, 1), torch.zeros(1, 4, 3, 3), weights=Grid(4, axis=0, group_size=2))
    q = calibrate(q, [torch.rand(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))])
    with pytest.raises(GridError) as caught:
        lower(q)
    assert sentence(caught.value) and "group_size=2" in str(caught.value)


def test_sums_that_overflow_are_refused() -> None:
    class Long(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(70_000, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(self.fc(x))

    q = prepare(Long(), torch.zeros(1, 70_000))
    q = calibrate(q, [torch.rand(2, 70_000, generator=torch.Generator().manual_seed(0))], method="minmax")
    with pytest.raises(BackendError) as caught:
        lower(q)
    assert sentence(caught.value) and "'fc'" in str(caught.value)
