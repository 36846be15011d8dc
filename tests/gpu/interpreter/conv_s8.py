"""kernels/conv_s8.py and kernels/depthwise_s8.py: byte for byte the reference's."""

import torch

from pyquant import reference
from tests.gpu.interpreter.guarded import inside, run, same_bytes

# Images [B, H, W, C], outputs, kernel, and what differs from a plain convolution.
CASES = {
    "1x1": {"x": (1, 5, 7, 64), "n": 33},
    "3x3-same": {"x": (2, 5, 6, 32), "n": 65, "kernel": (3, 3), "padding": (1, 1, 1, 1)},
    "first-layer": {
        "x": (1, 13, 11, 3),
        "n": 16,
        "kernel": (5, 3),
        "padding": (2, 1, 2, 1),
        "stride": (2, 2),
    },
    "ragged-padding": {"x": (1, 6, 5, 40), "n": 5, "kernel": (3, 2), "padding": (0, 1, 2, 0)},
    "stride-and-dilation": {
        "x": (1, 11, 12, 70),
        "n": 9,
        "kernel": (3, 3),
        "padding": (2, 0, 1, 2),
        "stride": (2, 3),
        "dilation": (2, 2),
    },
    "groups": {"x": (1, 4, 5, 12), "n": 6, "kernel": (3, 3), "padding": (1, 1, 1, 1), "groups": 3},
    "wide-groups": {"x": (1, 3, 3, 64), "n": 70, "kernel": (1, 2), "groups": 2},
    "residual": {"x": (1, 5, 5, 32), "n": 17, "residual": True},
    "padding-only": {"x": (1, 1, 1, 32), "n": 3, "kernel": (3, 3), "padding": (2, 2, 2, 2)},
    "depthwise": {"x": (2, 7, 5, 33), "n": 33, "kernel": (3, 3), "padding": (1, 1, 1, 1), "groups": 33},
    "depthwise-stride": {
        "x": (1, 9, 8, 70),
        "n": 70,
        "kernel": (5, 3),
        "padding": (2, 0, 1, 2),
        "stride": (2, 1),
        "dilation": (2, 2),
        "groups": 70,
    },
    "depthwise-residual": {"x": (1, 4, 4, 5), "n": 5, "kernel": (2, 2), "groups": 5, "residual": True},
}


def check(
    device,
    x,
    n,
    kernel=(1, 1),
    stride=(1, 1),
    padding=(0, 0, 0, 0),
    dilation=(1, 1),
    groups=1,
    residual=False,
):
    """Random codes, zero points off the middle, clamps that bite."""
    from pyquant.kernels import conv_s8, depthwise_s8, gemm_s8

    generator = torch.Generator().manual_seed(sum(x) + n)
    channels = x[-1]
    x = torch.randint(0, 256, x, generator=generator).to(torch.uint8)
    weight = torch.randint(-128, 128, (n, *kernel, channels // groups), generator=generator).to(torch.int8)
    multiplier = torch.rand(n, generator=generator) * 0.02 / weight[0].numel() ** 0.5
    bias = torch.randn(n, generator=generator) * 20
    shape = {"stride": stride, "padding": padding, "dilation": dilation}
    x_zero, bounds = 37, {"y_zero": 121, "low": 9, "high": 240}
    zero = torch.zeros(n, dtype=torch.int32)
    acc = reference.accumulate_conv(x, x_zero, weight.permute(0, 3, 1, 2), zero, *shape.values(), groups)
    other = torch.randint(0, 256, tuple(acc.shape), generator=generator).to(torch.uint8)
    want = reference.requantize(
        acc, multiplier, bias, *bounds.values(), (other, 77, 0.37) if residual else None
    )
    added = (inside(other, device), 77, 0.37) if residual else None
    options = {"x_zero": x_zero, **bounds, **shape, "residual": added}
    tensors = [inside(t, device) for t in (x, weight, multiplier, bias)]
    if groups == channels:
        by_tap = inside(depthwise_s8.repack(weight), device)
        got = run(depthwise_s8.launch, tensors[0], by_tap, *tensors[2:], **options)
    else:
        correction = inside(gemm_s8.correction_of(weight.reshape(n, -1), x_zero), device)
        got = run(conv_s8.launch, *tensors, correction, groups=groups, **options)
    same_bytes(got, want)
