"""kernels/fake_quantize.py: values, codes and ``dx`` bit for bit; sums within what their additions can round away."""

from unittest import mock

import torch

from pyquant import reference
from tests.gpu.interpreter.guarded import inside, poisoned, run, same_bytes

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Layouts (outer, channels, inner): a block exactly, one over, odd sizes, groups, channels last, many programs a channel.
LAYOUTS = {
    "tensor-1": (1, 1, 1),
    "tensor-ragged": (1, 1, 4099),
    "rows": (1, 17, 64),
    "nchw": (3, 5, 49),
    "nchw-wide": (2, 3, 2049),
    "nhwc": (70, 33, 1),
    "groups-32": (1, 63, 32),
    "kernels": (1, 300, 9),
}
CASES = {
    **{f"{name}-fp32": {"layout": layout, "dtype": "fp32"} for name, layout in LAYOUTS.items()},
    "nchw-fp16": {"layout": (3, 5, 49), "dtype": "fp16"},
    "nhwc-fp16": {"layout": (70, 33, 1), "dtype": "fp16"},
    "unsigned-2-bits": {"layout": (3, 5, 49), "dtype": "fp32", "qmin": 0, "qmax": 3},
    # Programs with several blocks each, and more rows of parts than one block adds.
    "many-steps": {"layout": (9, 1, 2048), "dtype": "fp32", "limits": {"PROGRAMS": 4}},
    "many-parts": {"layout": (70, 33, 1), "dtype": "fp32", "limits": {"ELEMENTS": 64}},
    "no-sums": {"layout": (3, 5, 49), "dtype": "fp32", "sums": False},
}
ON_A_GPU = {"nchw-bf16": {"layout": (3, 5, 49), "dtype": "bf16"}}
WHY_ON_A_GPU = "Triton's interpreter truncates to bfloat16 instead of rounding"


def check(device, layout, dtype, qmin=-8, qmax=7, sums=True, limits=None):
    """Compare with the kernels' limits on elements and programs set anew."""
    from pyquant.kernels import fake_quantize

    with mock.patch.multiple(fake_quantize, **(limits or {"PROGRAMS": fake_quantize.PROGRAMS})):
        _check(fake_quantize, device, layout, dtype, qmin, qmax, sums)


def _check(fake_quantize, device, layout, dtype, qmin, qmax, sums):
    """Random values with ties, a NaN and values far outside; zero points off the middle."""
    generator = torch.Generator().manual_seed(sum(layout))
    _, channels, _ = layout
    scale = torch.exp2(torch.empty(channels).uniform_(-4, 2, generator=generator))
    zero = torch.randint(qmin, qmax + 1, (channels,), generator=generator).float()
    spread = scale[:, None], zero[:, None]
    x = torch.randn(layout, generator=generator) * spread[0] * (qmax - qmin)
    ties = (torch.randint(qmin - 3, qmax + 3, layout, generator=generator) + 0.5 - spread[1]) * spread[0]
    x = torch.where(torch.rand(layout, generator=generator) < 0.3, ties, x).to(DTYPES[dtype])
    dy = torch.randn(layout, generator=generator).to(DTYPES[dtype])
    how = {"layout": layout, "qmin": qmin, "qmax": qmax}
    params = inside(scale, device), inside(zero, device)

    y, _ = poisoned(layout, x.dtype, device)
    fake_quantize.launch(inside(x, device), *params, y, **how)
    same_bytes(y, reference.fake_quantize(x, *spread, qmin, qmax))
    codes, _ = poisoned(layout, torch.int8, device)
    with_nan = x.clone()
    with_nan.view(-1)[-1] = torch.nan
    fake_quantize.launch(inside(with_nan, device), *params, codes, **how)
    same_bytes(codes, reference.quantize(with_nan, *spread, qmin, qmax).to(torch.int8))

    want_dx, scale_terms, zero_terms = reference.fake_quantize_backward(dy, x, *spread, qmin, qmax)
    dx, around = poisoned(layout, x.dtype, device)
    totals = [poisoned((channels,), torch.float32, device)[0] if sums else None for _ in range(2)]
    arguments = inside(dy, device), inside(x, device), *params, dx, *totals
    run(fake_quantize.launch_backward, *arguments, **how)
    same_bytes(dx, want_dx)
    assert int(around.isnan().sum()) == around.numel() - dx.numel(), "dx was written outside its tensor"
    if not sums:
        return
    description = fake_quantize.Description(*layout, dtype)
    _, second, programs, steps = fake_quantize.choose_backward(description, "sm_80")
    # Roundings on one term's way: its product, one addition a step, a tree over the elements of a program, one
    # addition a row of parts, a tree over the rows, and the product with the scale.
    rows = -(-programs // second.constants["BLOCK_PROGRAMS"])
    depth = 1 + steps + 11 + rows + 11 + 1
    for total, terms in zip(totals, (scale_terms, zero_terms), strict=True):
        bound = depth * 2.0**-24 * terms.abs().sum((0, 2)) * 1.001
        error = (total.cpu().double() - terms.sum((0, 2))).abs()
        assert bool((error <= bound).all()), (
            f"sums off by {error.max():.3g}, bound {bound[error.argmax()]:.3g}"
        )
    again = [torch.empty_like(total) for total in totals]
    run(fake_quantize.launch_backward, *arguments[:-2], *again, **how)
    for one, other in zip(totals, again, strict=True):
        same_bytes(one, other)
