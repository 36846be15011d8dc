"""kernels/gemm_s8.py: byte for byte the reference's, codes and float32."""

import torch

from pyquant import reference
from tests.gpu.interpreter.guarded import inside, run, same_bytes


def _sizes(m, n, k, **options):
    return f"M{m}-N{n}-K{k}" + "".join(f"-{key}" for key in options), {"m": m, "n": n, "k": k, **options}


# Tails of every size: one row, one under and one over a tile, K shorter than a step, K that no vector divides.
# More than GROUP_M rows of tiles too.
CASES = dict(
    [
        _sizes(1, 64, 64),
        _sizes(17, 65, 96),
        _sizes(63, 33, 31),
        _sizes(128, 1, 130),
        _sizes(65, 130, 257),
        _sizes(17, 63, 1),
        _sizes(577, 65, 32),
        _sizes(63, 65, 100, x_signed=True),
        _sizes(17, 31, 200, to_float=True),
        _sizes(1, 70, 63, x_signed=True, to_float=True),
        _sizes(33, 64, 128, largest=True),
    ]
)


def check(device, m, n, k, x_signed=False, to_float=False, largest=False):
    """Random codes, zero points off the middle, clamps that bite; or the codes whose sums are largest."""
    from pyquant.kernels import gemm_s8

    generator = torch.Generator().manual_seed(m * n * k)
    low, high = (-127, 128) if x_signed else (0, 256)
    dtype = torch.int8 if x_signed else torch.uint8
    x = torch.randint(low, high, (m, k), generator=generator).to(dtype)
    weight = torch.randint(-128, 128, (n, k), generator=generator).to(torch.int8)
    if largest:
        x.fill_(255)
        weight.fill_(-128)
    x_zero = 3 if x_signed else 113 * (not largest)
    multiplier = torch.rand(n, generator=generator) * 0.02 / k**0.5
    bias = torch.randn(n, generator=generator) * 20
    options = {"y_zero": 121, "low": 9, "high": 240}
    acc = (x.double() - x_zero) @ weight.double().T
    want = (
        reference.affine(acc, multiplier, bias)
        if to_float
        else reference.requantize(acc, multiplier, bias, *options.values())
    )
    correction = gemm_s8.correction_of(weight, x_zero, not x_signed)
    tensors = [inside(t, device) for t in (x, weight, multiplier, bias, correction)]
    same_bytes(run(gemm_s8.launch, *tensors, **options, to_codes=not to_float), want)
