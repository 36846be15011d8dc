"""Ops on the triton backend, from the call to the bytes; on the CPU the kernels run in the interpreter."""

from __future__ import annotations

import torch

from pyquant.errors import BackendError
from pyquant.grid import Grid
from pyquant.ops import backend
from pyquant.ops.conv_s8 import conv_s8
from pyquant.ops.fake_quantize import fake_quantize, fake_quantize_backward, quantize
from pyquant.ops.gemm_s8 import gemm_s8, gemm_s8_float
from pyquant.ops.gemm_w4 import gemm_w4
from pyquant.ops.gemm_w4a4 import gemm_w4a4
from pyquant.ops.gemm_w4a16 import gemm_w4a16
from pyquant.ops.linear_w4 import linear_w4
from pyquant.ops.pack import pack
from pyquant.ops.quantize_rows import quantize_rows
from tests.gpu.interpreter.guarded import same_bytes
from tests.gpu.test_executor_w4a16 import exact, within_the_bound
from tests.ops.w4_cases import rows, weights

CASES = {
    "gemm_s8-M17-N63-K130": {"op": "gemm_s8", "shape": (17, 63, 130)},
    "gemm_s8-strided": {"op": "gemm_s8", "shape": (5, 9, 64), "strided": True},
    "quantize_rows": {"op": "quantize_rows"},
    "fake_quantize-tensor": {"op": "fake_quantize", "grid": Grid(8, signed=False)},
    "fake_quantize-axis": {"op": "fake_quantize", "grid": Grid(4, axis=1)},
    "fake_quantize-groups": {"op": "fake_quantize", "grid": Grid(4, axis=0, group_size=32)},
    **{
        f"w4-g{group}-{bits}-bits": {
            "op": "w4",
            "group_size": group,
            "bits": bits,
            "signed": (group or 0) != 32,
        }
        for group in (None, 32, 64, 128)
        for bits in (2, 3, 4)
    },
    **{
        f"w4a16-g{group}": {"op": "w4a16", "group_size": group, "bits": 4 if group else 3}
        for group in (None, 32, 128)
    },
    "w4a16-splits": {"op": "w4a16", "group_size": 64, "bits": 4, "k": 1024},
    "long-row": {"op": "long_row"},
    "empty": {"op": "empty"},
    "conv_s8-3x3-residual": {"op": "conv_s8", "case": ((2, 5, 6, 37), 21, (3, 3)), "residual": True},
    "conv_s8-1x1": {"op": "conv_s8", "case": ((2, 5, 6, 37), 21, (1, 1))},
    "conv_s8-1x1-residual": {"op": "conv_s8", "case": ((1, 5, 6, 37), 21, (1, 1)), "residual": True},
    "conv_s8-1x1-stride": {"op": "conv_s8", "case": ((2, 5, 6, 37), 21, (1, 1)), "stride": (2, 1)},
    "conv_s8-groups": {"op": "conv_s8", "case": ((2, 5, 6, 12), 9, (2, 3)), "groups": 3, "dilation": (2, 1)},
    "conv_s8-depthwise": {
        "op": "conv_s8",
        "case": ((2, 7, 6, 18), 18, (3, 3)),
        "groups": 18,
        "padding": (1, 0, 2, 1),
        "residual": True,
    },
    "printed": {"op": "printed"},
    "auto-on-a-cpu": {"op": "auto"},
}


def check(device, op, **options):
    """Compare with the reference on the CPU."""
    globals()[f"check_{op}"](torch.device(device), **options)


def check_gemm_s8(device, shape, strided=False):
    m, n, k = shape
    generator = torch.Generator().manual_seed(m)
    x = torch.randint(0, 256, (m, k), generator=generator, dtype=torch.uint8)
    weight = torch.randint(-128, 128, (n, k), generator=generator).to(torch.int8)
    given = (
        x,
        weight,
        torch.rand(n, generator=generator) / (60 * k**0.5),
        torch.randn(n, generator=generator),
    )
    if strided:
        given = (x[:, ::2], weight[:, ::2], *given[2:])
    there = tuple(tensor.to(device) for tensor in given)
    for x_zero in (3, 250):
        options = {"x_zero": x_zero, "y_zero": 100, "low": 2, "high": 240}
        same_bytes(
            gemm_s8(*there, **options, backend="triton"), gemm_s8(*given, **options, backend="reference")
        )
        want = gemm_s8_float(*given, x_zero=x_zero, backend="reference")
        same_bytes(gemm_s8_float(*there, x_zero=x_zero, backend="triton"), want)


def check_quantize_rows(device):
    x = torch.randn(7, 65, generator=torch.Generator().manual_seed(1))
    want = quantize_rows(x, backend="reference")
    for got, right in zip(quantize_rows(x.to(device), backend="triton"), want, strict=True):
        same_bytes(got, right)


def check_fake_quantize(device, grid):
    generator = torch.Generator().manual_seed(2)
    x, dy = torch.randn(6, 64, generator=generator) * 30, torch.randn(6, 64, generator=generator)
    shape = grid.scale_shape(x.shape)
    scale = torch.rand(shape, generator=generator) * 0.2 + 0.05
    zero = torch.randint(grid.qmin, grid.qmax + 1, shape, generator=generator).float()
    there = x.to(device), scale.to(device), zero.to(device)
    same_bytes(fake_quantize(*there, grid, "triton"), fake_quantize(x, scale, zero, grid, "reference"))
    same_bytes(quantize(*there, grid, "triton"), quantize(x, scale, zero, grid, "reference"))
    got = fake_quantize_backward(dy.to(device), *there, grid, "triton")
    want = fake_quantize_backward(dy, x, scale, zero, grid, "reference")
    same_bytes(got[0], want[0])
    # Sums in float32, in blocks, against the reference's in float64.
    for sums, right in zip(got[1:], want[1:], strict=True):
        bound = x.numel() * 2.0**-23 * float((dy.abs() * 2**grid.bits).sum())
        assert float((sums.cpu() - right).abs().max()) <= bound and bool(right.any())


def check_w4(device, group_size, bits, signed):
    """gemm_w4, gemm_w4a4 and linear_w4 on one weight, signed and unsigned activations; without groups K is ragged."""
    n, k = 40, 256 if group_size else 203
    zeros = "none" if signed and group_size != 128 else "each"
    weight = weights(n, k, group_size, signed, bits, zeros, bits)
    there = {key: tensor.to(device) for key, tensor in weight.items()}
    options = {"group_size": group_size, "signed": signed, "bits": bits}
    for x_signed in (True, False):
        given = rows(7, k, x_signed, 8, not x_signed, 1)
        on_device = {key: tensor.to(device) for key, tensor in given.items()}
        got = gemm_w4(**on_device, **there, **options, backend="triton")
        same_bytes(got, gemm_w4(**given, **weight, **options, backend="reference"))
        given = rows(7, k, x_signed, 4, True, 2)
        given["x"] = pack(given["x"].int(), 4)
        on_device = {key: tensor.to(device) for key, tensor in given.items()}
        more = {**options, "length": k, "x_signed": x_signed}
        got = gemm_w4a4(**on_device, **there, **more, backend="triton")
        same_bytes(got, gemm_w4a4(**given, **weight, **more, backend="reference"))
    x = torch.randn(2, 3, k, generator=torch.Generator().manual_seed(5))
    got = linear_w4(x.to(device), **there, **options, backend="triton")
    same_bytes(got, linear_w4(x, **weight, **options, backend="reference"))


def check_w4a16(device, group_size, bits, k=256):
    """Within the bound of float32 sums, the same bytes twice, and one term a split more."""
    given = weights(70, k, group_size, False, bits, "each", k)
    x = torch.randn(9, k, generator=torch.Generator().manual_seed(k)).half()
    options = {"group_size": group_size, "signed": False, "bits": bits}
    there = {key: tensor.to(device) for key, tensor in given.items()}
    got = gemm_w4a16(x.to(device), **there, **options, backend="triton")
    want, terms = exact(x, given, group_size, False, bits)
    assert within_the_bound(got.cpu(), want, terms, k, given["scale"].shape[1], k // 64), got
    same_bytes(gemm_w4a16(x.to(device), **there, **options, backend="triton"), got)
    arguments = x.to(device), *(there[key] for key in ("packed", "scale", "zero_point")), *options.values()
    line = str(backend.choose("gemm_w4a16", device, "triton", arguments))
    assert "gemm_w4a16 -> triton with gemm_w4a16 on " in line and ", K in " in line, line


def check_long_row(device):
    """What its sums do not hold is refused, and auto goes on."""
    k = 131_072
    x, packed = torch.zeros(1, k, dtype=torch.uint8), torch.zeros(1, k // 8, dtype=torch.int32)
    arguments = (x, packed, torch.ones(1, 1), torch.ones(1), None, None, None, True, 4)
    arguments = tuple(a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments)
    try:
        backend.choose("gemm_w4", device, "triton", arguments)
    except BackendError as error:
        assert "sums hold at most K=131071 codes without groups, and there are 131072; use ref" in str(
            error
        ), error
    else:
        raise AssertionError("a row that is too long was taken")
    assert backend.choose("gemm_w4", device, "auto", arguments).backend != "triton"
    # One fewer fits, at the ends of the codes.
    x = torch.full((1, k - 1), 255, dtype=torch.uint8)
    packed = pack(torch.full((1, k - 1), -8), 4)
    given = x, packed, torch.ones(1, 1), torch.ones(1)
    want = gemm_w4(*given, backend="reference")
    assert want.item() == torch.tensor(-8 * 255 * (k - 1)).float().item()
    same_bytes(gemm_w4(*(tensor.to(device) for tensor in given), backend="triton"), want)


def check_conv_s8(device, case, groups=1, residual=False, **geometry):
    """The op on strided codes, twice with another zero point, and after its weight was written to."""
    shape, n, kernel = case
    generator = torch.Generator().manual_seed(n)
    x = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).transpose(1, 2)
    weight = torch.randint(-128, 128, (n, *kernel, shape[3] // groups), generator=generator).to(torch.int8)
    scaling = torch.rand(n, generator=generator) * 0.02, torch.randn(n, generator=generator) * 20
    given = [x, weight, *scaling]
    there = [tensor.to(device) for tensor in given]
    options = {"y_zero": 90, "low": 5, "high": 240, "groups": groups, **geometry}
    for x_zero in (7, 201, 7):
        want = conv_s8(*given, x_zero=x_zero, **options, backend="reference")
        assert len(want.unique()) > 20
        added, at = {}, {}
        if residual:
            other = torch.randint(0, 256, want.shape, generator=generator, dtype=torch.uint8)
            added, at = {"residual": (other, 33, 0.7)}, {"residual": (other.to(device), 33, 0.7)}
            want = conv_s8(*given, x_zero=x_zero, **options, **added, backend="reference")
        same_bytes(conv_s8(*there, x_zero=x_zero, **options, **at, backend="triton"), want)
        given[1].neg_()
        there[1].neg_()


def check_empty(device):
    x, scale, zero = (
        torch.empty(0, 3, device=device),
        torch.ones((), device=device),
        torch.zeros((), device=device),
    )
    assert fake_quantize(x, scale, zero, Grid(8), "triton").shape == (0, 3)


def check_printed(device):
    x, weight, one = (
        torch.zeros(5, 64, dtype=torch.uint8),
        torch.zeros(7, 64, dtype=torch.int8),
        torch.ones(7),
    )
    given = tuple(tensor.to(device) for tensor in (x, weight, one, one))
    line = str(backend.choose("gemm_s8", device, "triton", (*given, 0, 0, 0, 255)))
    assert line.startswith("gemm_s8 -> triton with gemm_s8 on ") and line.endswith("stages (pinned)"), line
    codes, square = torch.zeros(1, 4, 4, 64, dtype=torch.uint8), torch.zeros(7, 3, 3, 64, dtype=torch.int8)
    given = tuple(tensor.to(device) for tensor in (codes, square, one, one))
    choice = backend.choose(
        "conv_s8", device, "triton", (*given, 0, 0, 0, 255, (1, 1), (1, 1, 1, 1), (1, 1), 1)
    )
    assert str(choice).startswith("conv_s8 -> triton with conv_s8 on "), choice
    line = str(backend.choose("quantize_rows", device, "triton", (torch.zeros(3, 64, device=device),)))
    assert line.startswith("quantize_rows -> triton with quantize_rows on "), line


def check_auto(device):
    """The interpreter is for tests: nobody gets it unasked."""
    served = backend.choose("gemm_s8", "cpu").backend
    assert served in ("cpu", "reference"), served
