"""The comparisons must see what is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pyquant.errors import DataError
from pyquant.ops.backend import missing
from pyquant.runtime.compare import code_exact, integer_vs_fake_agreement, same_bytes, site_agreement
from pyquant.runtime.program import Op, Program
from tests.runtime.small_networks import CASES, inputs_of, program, quantized

needs_cpu = pytest.mark.skipif(missing("cpu") is not None, reason=str(missing("cpu")))


@needs_cpu
@pytest.mark.parametrize("case", CASES)
def test_executors_give_the_same_bytes(case: str) -> None:
    for batch in (1, 2, 5):
        assert code_exact(program(case), inputs_of(case, batch, seed=60 + batch))


def changed(program: Program, name: str, **tensors: torch.Tensor) -> Program:
    def change(op: Op) -> Op:
        return replace(op, tensors={**op.tensors, **tensors}) if op.name == name else op

    return replace(program, ops=tuple(change(op) for op in program.ops))


def test_agreement_falls_at_the_site_that_is_wrong() -> None:
    case = "residual_blocks-w8a8"
    good = program(case)
    wrong = next(op for op in good.ops if op.name == "2.conv2")
    bad = changed(good, "2.conv2", multiplier=wrong.tensors["multiplier"] * 1.01)
    shares = site_agreement(quantized(case), bad, [inputs_of(case, 8, seed=1)])
    assert shares.pop("2.conv2") < 0.99
    assert min(shares.values()) > 0.999


def test_agreement_sees_a_swapped_column() -> None:
    case = "pools_then_linear-w8a8"
    good = program(case)
    wrong = next(op for op in good.ops if op.name == "5")
    bad = changed(good, "5", weight=wrong.tensors["weight"].flip(1))
    assert integer_vs_fake_agreement(quantized(case), bad, [inputs_of(case, 8)]) < 0.5
    assert integer_vs_fake_agreement(quantized(case), good, [inputs_of(case, 8)]) > 0.98


def test_batches_may_be_tensors_or_tuples() -> None:
    case = "conv_bn_relu_chain-w8a8"
    batch = inputs_of(case, 4)
    assert site_agreement(quantized(case), program(case), [batch]) == site_agreement(
        quantized(case), program(case), iter([batch[0][:2], batch[0][2:]])
    )


def test_no_batches_are_an_error() -> None:
    case = "conv_bn_relu_chain-w8a8"
    with pytest.raises(DataError, match=r"at least one batch.*\.$"):
        site_agreement(quantized(case), program(case), [])


def test_same_bytes_tells_zeros_and_nans_apart() -> None:
    zero, nan = torch.tensor([0.0, 1.0]), torch.tensor([float("nan")])
    assert same_bytes(zero, zero.clone()) and same_bytes(nan, nan.clone())
    assert not same_bytes(zero, torch.tensor([-0.0, 1.0]))
    assert not same_bytes(zero, zero.double()) and not same_bytes(zero, zero[None])
    assert same_bytes((zero, nan), (zero, nan)) and not same_bytes((zero, nan), (zero, zero[:1]))


@needs_cpu
def test_code_exact_sees_one_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyquant.runtime import compare

    class Wrong(compare.CpuExecutor):
        def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            outputs = super().__call__(*inputs)
            outputs[2].view(-1)[3] += 1
            return outputs

    case = "depthwise-w8a8"
    monkeypatch.setattr(compare, "CpuExecutor", Wrong)
    assert not code_exact(program(case), inputs_of(case, 1))
