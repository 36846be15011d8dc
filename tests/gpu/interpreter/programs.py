"""Whole integer programs on the triton backend, as the GPU executor's steps: byte for byte the reference executor's."""

from __future__ import annotations

from pyquant.runtime.execute_gpu import GpuSteps
from pyquant.runtime.execute_reference import ReferenceExecutor
from tests.gpu.interpreter.guarded import same_bytes
from tests.runtime import small_networks
from tests.runtime.random_program import random_conv, random_network

# Every small network once, and every kind of weight.
SMALL = [name for name in small_networks.CASES if not name.endswith(("w4a4", "per_tensor"))]
CASES = {
    **{name: {"network": name} for name in SMALL},
    **{f"network-{seed}": {"seed": seed} for seed in (0, 2, 3)},
    **{f"convs-{first}": {"first": first} for first in range(0, 40, 10)},
}


def check(device, network=None, seed=None, first=None):
    """A small network, a random one, or ten random convolutions."""
    if network is not None:
        steps = same(device, small_networks.program(network), small_networks.inputs_of(network, 2))
        assert all(choice.backend == "triton" for choice in steps.choices.values())
    elif seed is not None:
        steps = same(device, *random_network(seed))
        kernels = {choice.configuration.name for choice in steps.choices.values()}
        assert kernels == {"conv_s8", "depthwise_s8", "gemm_s8"}, kernels
    else:
        for number in range(first, first + 10):
            assert len(same(device, *random_conv(number)).choices) == 1


def same(device, program, inputs):
    """Run on triton and compare every output; the steps that ran."""
    steps = GpuSteps(program, device, "triton")
    got = steps(*(x.to(device) for x in inputs))
    for value, right in zip(got, ReferenceExecutor(program)(*inputs), strict=True):
        same_bytes(value, right)
    return steps
