"""Run kernels/grid.py in Triton's interpreter (TRITON_INTERPRET=1); a byte unlike the oracle ends it."""

import torch
import triton
import triton.language as tl

from pyquant import reference
from pyquant.kernels import grid as kernel_grid


@triton.jit
def through_the_grid(x, scale, zero_point, y, codes, inside, n, qmin, qmax, block: tl.constexpr):
    """One program a block: fake-quantized values, codes, and the range test."""
    i = tl.program_id(0) * block + tl.arange(0, block)
    here = i < n
    v = tl.load(x + i, here)
    s = tl.load(scale + i, here, 1.0)
    z = tl.load(zero_point + i, here, 0.0)
    tl.store(y + i, kernel_grid.fake_quantize(v, s, z, qmin, qmax), here)
    tl.store(codes + i, kernel_grid.quantize(v, s, z, qmin, qmax), here)
    u = kernel_grid.grid_position(v, s, z)
    tl.store(inside + i, kernel_grid.in_range(u, qmin, qmax).to(tl.int32), here)


def compare(bits: int, signed: bool) -> None:
    """Random values, ties, extremes; every element with a scale of its own."""
    generator = torch.Generator().manual_seed(bits + 16 * signed)
    n = 4099
    qmin, qmax = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    scale = torch.exp2(torch.empty(n).uniform_(-20, 20, generator=generator))
    zero_point = torch.randint(qmin, qmax + 1, (n,), generator=generator).float()
    x = torch.randn(n, generator=generator) * scale * (1 << bits)
    x[::3] = (torch.randint(-300, 300, x[::3].shape, generator=generator) + 0.5) * scale[::3]
    edges = [
        float("nan"),
        float("inf"),
        -float("inf"),
        1e-45,
        -1e-40,
        3e38,
        -3e38,
        0.0,
        -0.0,
        8388607.5,
        8388609.0,
    ]
    x[7 : 7 + len(edges)] = torch.tensor(edges)
    y = torch.full((n,), 777.0)
    codes = torch.full((n,), 777, dtype=torch.int32)
    inside = torch.full((n,), 777, dtype=torch.int32)
    through_the_grid[(triton.cdiv(n, 512),)](
        x, scale, zero_point, y, codes, inside, n, float(qmin), float(qmax), block=512
    )
    right = reference.fake_quantize(x, scale, zero_point, qmin, qmax)
    number = ~right.isnan()
    assert torch.equal(y.isnan(), ~number), f"NaN at {bits} bits"
    assert torch.equal(y[number].view(torch.int32), right[number].view(torch.int32)), f"values at {bits} bits"
    assert torch.equal(codes, reference.quantize(x, scale, zero_point, qmin, qmax)), f"codes at {bits} bits"
    u = reference.grid_position(x, scale, zero_point)
    assert torch.equal(inside.bool(), (u >= qmin) & (u <= qmax)), f"range at {bits} bits"


if __name__ == "__main__":
    for width in range(2, 9):
        compare(width, signed=True)
        compare(width, signed=False)
