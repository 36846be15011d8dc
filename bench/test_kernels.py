"""The kernels one by one for pytest-benchmark, so that a regression shows: ``pytest bench/test_kernels.py``.

One thread, timed by CPU time; every result is checked against the reference before it is timed.
"""

from __future__ import annotations

import time

import pytest
import torch

from bench.fake_quantize import Case
from bench.gemm_w4a8 import ours
from bench.layer import conv_op, engine_call, linear_op, random_inputs
from bench.timing import keep_memory
from pyquant.ops.backend import extension, missing

pytestmark = [
    pytest.mark.skipif(missing("cpu") is not None, reason=str(missing("cpu"))),
    pytest.mark.benchmark(timer=time.process_time, min_rounds=20, max_time=0.3, warmup=True),
]
ISAS = () if extension() is None else extension().available_isas()
LINEAR = ((128, 1024, 1024), (49, 512, 4608), (1, 4096, 4096), (17, 63, 500))
# Size of the map, channels in and out, kernel, stride, groups.
CONV = {
    "first": (224, 3, 64, 7, 2, 1),
    "full": (56, 64, 64, 3, 1, 1),
    "full-stride2": (28, 128, 128, 3, 2, 1),
    "pointwise": (14, 256, 1024, 1, 1, 1),
    "small": (7, 512, 512, 3, 1, 1),
    "thin": (56, 24, 144, 1, 1, 1),
    "depthwise": (56, 144, 144, 3, 1, 144),
    "depthwise-stride2": (28, 192, 192, 3, 2, 192),
}
ELEMENTS, CHANNELS = 1 << 22, 64


@pytest.fixture(autouse=True)
def one_thread():
    """One thread of torch too, and freed memory kept."""
    keep_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", LINEAR, ids=lambda s: f"M{s[0]}-N{s[1]}-K{s[2]}")
def test_gemm_s8(benchmark, generator, shape, bits, isa):
    program = linear_op(*shape, bits, generator)
    benchmark(engine_call(program, random_inputs(program, 1, generator), 1, isa))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", CONV)
def test_conv_s8(benchmark, generator, name, isa):
    program = conv_op(*CONV[name], generator)
    benchmark(engine_call(program, random_inputs(program, 1, generator), 1, isa))


@pytest.mark.parametrize("group", [128, 32, None])
@pytest.mark.parametrize("m", [1, 16, 128])
def test_gemm_w4a8(benchmark, generator, m, group):
    size = 2048
    codes = torch.randint(-8, 8, (size, size), generator=generator)
    scale = torch.rand(size, size // (group or size), generator=generator) + 0.5
    benchmark(ours(torch.randn(m, size, generator=generator), codes, scale, group, 1, 1))


@pytest.mark.parametrize("axis", [None, 0], ids=["tensor", "channel"])
@pytest.mark.parametrize("part", ["forward", "gradient", "learned"])
def test_fake_quantize(benchmark, generator, part, axis):
    case = Case(torch.randn(CHANNELS, ELEMENTS // CHANNELS, generator=generator), axis, quick=True)
    runs = case.forward() if part == "forward" else case.both(learned=part == "learned")
    benchmark(runs["cpu"])
