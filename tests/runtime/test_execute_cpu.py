"""The CPU executor against the reference, byte for byte."""

from __future__ import annotations

import pytest
import torch

from pyquant.ops.backend import extension, missing
from pyquant.runtime.execute_cpu import CpuExecutor
from pyquant.runtime.execute_reference import ReferenceExecutor
from tests.runtime.random_program import random_conv, random_network

pytestmark = pytest.mark.skipif(missing("cpu") is not None, reason=str(missing("cpu")))
ISAS = extension().available_isas() if extension() is not None else []


def assert_same_bytes(got: tuple[torch.Tensor, ...], want: tuple[torch.Tensor, ...]) -> None:
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert g.dtype == w.dtype and g.shape == w.shape
        # Bits, so that a NaN or a negative zero would show.
        same = torch.int32 if g.dtype == torch.float32 else g.dtype
        assert torch.equal(g.view(same), w.view(same))


@pytest.mark.parametrize("isa", ISAS)
def test_random_convolutions(isa: str) -> None:
    for seed in range(150):
        program, inputs = random_conv(seed)
        want = ReferenceExecutor(program)(*inputs)
        assert_same_bytes(CpuExecutor(program, threads=1 + seed % 3, isa=isa)(*inputs), want)


@pytest.mark.parametrize("isa", ISAS)
def test_random_networks(isa: str) -> None:
    for seed in range(30):
        program, inputs = random_network(seed)
        want = ReferenceExecutor(program)(*inputs)
        executor = CpuExecutor(program, threads=1 + seed % 2, isa=isa)
        assert_same_bytes(executor(*inputs), want)
        assert_same_bytes(executor(*inputs), want)
