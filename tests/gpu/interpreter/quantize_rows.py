"""kernels/quantize_rows.py: codes, scales and sums byte for byte."""

from unittest import mock

import torch

from pyquant import reference
from pyquant.ops.pack import pack
from tests.gpu.interpreter.guarded import inside, run, same_bytes

CASES = {
    "K1": {"k": 1},
    "K63": {"k": 63, "group": 63},
    "K128-sums": {"k": 128, "group": 128},
    "K129-fp16": {"k": 129, "dtype": torch.float16, "group": 129},
    "g32": {"k": 96, "group": 32},
    "g128-fp16": {"k": 640, "group": 128, "dtype": torch.float16},
    "twice": {"k": 1000, "group": 1000, "longest": 256},
    "twice-g64": {"k": 576, "group": 64, "longest": 256},
    "4-bits-K1": {"k": 1, "bits": 4},
    "4-bits-K63": {"k": 63, "bits": 4, "group": 63},
    "4-bits-g32": {"k": 160, "bits": 4, "group": 32},
    "4-bits-twice": {"k": 1003, "bits": 4, "longest": 256},
}


def check(device, k, bits=8, group=0, dtype=torch.float32, longest=1 << 14):
    """Rows of every magnitude, one of zeros, one with a NaN, one with an infinity, one of subnormal numbers."""
    from pyquant.kernels import quantize_rows

    generator = torch.Generator().manual_seed(k + bits)
    x = torch.randn(9, k, generator=generator) * torch.exp2(torch.arange(-8.0, 10.0, 2))[:, None]
    x[3] = 0
    x[4, k // 2] = torch.nan
    x[5, -1] = -torch.inf
    x[6] *= 1e-42
    # Ties: the largest number is the grid's end, so that a step is 1.
    most = 2 ** (bits - 1) - 1
    x[7] = torch.randint(-most, most, (k,), generator=generator) + 0.5
    x[7, 0] = most
    x = x.to(dtype)
    if bits == 8:
        codes, scale = reference.quantize_rows(x)
    else:
        wide = x.float()
        largest = wide.abs().amax(1)
        scale = (largest / torch.tensor(7.0)).clamp_min(torch.finfo(torch.float32).tiny)
        scale = torch.where(largest.isfinite(), scale, torch.nan)
        codes = torch.where(scale.isnan()[:, None], 0.0, torch.round(wide / scale[:, None])).to(torch.int8)
    with mock.patch.object(quantize_rows, "LONGEST", longest):
        got = run(quantize_rows.launch, inside(x, device), bits=bits, group=group)
        sums = run(quantize_rows.launch_sums, inside(codes, device), group or k)
        shifted = (codes.int() + 128).to(torch.uint8)
        shifted_sums = run(quantize_rows.launch_sums, inside(shifted, device), group or k)
    want = codes.int().reshape(9, -1, group or k).sum(2).int()
    same_bytes(got[0], codes if bits == 8 else pack(codes, 4))
    finite = ~scale.isnan()
    same_bytes(got[1].cpu()[finite], scale[finite])
    assert bool(got[1].cpu()[~finite].isnan().all())
    same_bytes(sums, want)
    same_bytes(shifted_sums, want)
    if group:
        same_bytes(got[2], want)
