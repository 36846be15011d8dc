"""kernels/gemm_w4a8.py: byte for byte the op's reference, with every kind of group, zero point and tail."""

import torch

from pyquant.ops.gemm_w4 import multiply
from pyquant.ops.pack import pack
from tests.gpu.interpreter.guarded import inside, run, same_bytes


def _sizes(m, n, k, group=None, **options):
    name = f"M{m}-N{n}-K{k}-" + (f"g{group}" if group else "row")
    return name + "".join(f"-{key}" for key in options), {"m": m, "n": n, "k": k, "group": group, **options}


CASES = dict(
    [
        _sizes(1, 64, 64),
        _sizes(17, 63, 1),
        _sizes(63, 65, 129),
        _sizes(128, 33, 300, zero=True),
        _sizes(17, 70, 96, 32),
        _sizes(1, 31, 32, 32, zero=True),
        _sizes(65, 64, 160, 32, zero=True, x_unsigned=True),
        _sizes(17, 65, 192, 64),
        _sizes(63, 5, 64, 64, zero=True, x_zero=True),
        _sizes(17, 63, 384, 128, zero=True, x_unsigned=True, x_zero=True),
        _sizes(1, 130, 128, 128, unsigned=True),
        _sizes(17, 64, 200, x_unsigned=True, unsigned=True, zero=True),
        _sizes(17, 64, 128, 64, dtype=torch.float16),
        _sizes(3, 40, 256, 128, bits=2, zero=True),
    ]
)


def check(
    device,
    m,
    n,
    k,
    group,
    zero=False,
    x_zero=False,
    x_unsigned=False,
    unsigned=False,
    bits=4,
    dtype=torch.float32,
):
    """Random codes over their whole range, scales of many sizes."""
    from pyquant.kernels import gemm_w4a8

    generator = torch.Generator().manual_seed(m * n * k)
    low = 0 if unsigned else -(1 << bits - 1)
    shape = n, k // (group or k)
    codes = torch.randint(low, low + (1 << bits), (n, k), generator=generator)
    scale = torch.exp2(torch.empty(shape).uniform_(-12, -4, generator=generator))
    zero_point = torch.randint(low, low + (1 << bits), shape, generator=generator).int() if zero else None
    x_low = 0 if x_unsigned else -128
    x = torch.randint(x_low, x_low + 256, (m, k), generator=generator)
    x = x.to(torch.uint8 if x_unsigned else torch.int8)
    x_scale = torch.rand(m, generator=generator)
    zeros = torch.randint(x_low, x_low + 256, (m,), generator=generator).int() if x_zero else None
    packed = pack(codes, bits)
    want = multiply(x, packed, scale, x_scale, zeros, zero_point, group, not unsigned, bits).to(dtype)
    weight = gemm_w4a8.repack(codes, scale, zero_point, group, not unsigned)
    tensors = {
        name: None if tensor is None else inside(tensor, device)
        for name, tensor in vars(weight).items()
        if name != "group"
    }
    weight = gemm_w4a8.Weight(**tensors, group=weight.group)
    options = {"x_zero": None if zeros is None else inside(zeros, device), "dtype": dtype}
    got = run(gemm_w4a8.launch, inside(x, device), weight, inside(x_scale, device), **options)
    same_bytes(got, want)
