"""conv_s8 as an op; tests/runtime/test_execute_cpu.py sweeps geometries, instruction sets and threads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pyquant.errors import BackendError, DTypeError, ShapeError
from pyquant.ops.backend import missing
from pyquant.ops.conv_s8 import conv_s8

needs_cpu = pytest.mark.skipif(missing("cpu") is not None, reason=str(missing("cpu")))


def case(n: int, kernel: int, c: int, groups: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n + kernel)
    x = torch.randint(0, 256, (2, 9, 11, c), generator=generator, dtype=torch.uint8)
    weight = torch.randint(-128, 128, (n, kernel, kernel, c // groups), generator=generator).to(torch.int8)
    return x, weight, torch.full((n,), 0.004), torch.randn(n, generator=generator) * 20


@needs_cpu
@pytest.mark.parametrize(
    ("n", "kernel", "c", "groups", "options"),
    [
        (19, 3, 5, 1, {"padding": (1, 1, 1, 1)}),
        (20, 3, 20, 20, {"padding": (1, 0, 1, 2), "stride": (2, 1)}),
        (12, 2, 6, 3, {"dilation": (2, 2)}),
        (33, 1, 16, 1, {}),
    ],
)
def test_backends_agree(n: int, kernel: int, c: int, groups: int, options: dict[str, Any]) -> None:
    tensors = case(n, kernel, c, groups)
    arguments = {"x_zero": 77, "y_zero": 40, "low": 40, "high": 240, "groups": groups, **options}
    want = conv_s8(*tensors, **arguments, backend="reference")
    assert len(want.unique()) > 20
    assert torch.equal(conv_s8(*tensors, **arguments, backend="cpu"), want)
    assert torch.equal(conv_s8(*tensors, **arguments), want)
    # A strided view of the same codes.
    tensors = (tensors[0].transpose(1, 2).contiguous().transpose(1, 2), *tensors[1:])
    assert torch.equal(conv_s8(*tensors, **arguments, backend="cpu"), want)


def test_opcheck() -> None:
    torch.library.opcheck(
        torch.ops.pyquant.conv_s8.default, (*case(5, 3, 4, 1), 3, 9, 0, 255, [1, 2], [1, 1, 0, 1], [1, 1], 1)
    )


def test_bad_input() -> None:
    x, weight, multiplier, bias = case(6, 3, 4, 1)
    zeros = {"x_zero": 0, "y_zero": 0}
    with pytest.raises(DTypeError, match=r"torch\.int8"):
        conv_s8(x, weight.int(), multiplier, bias, **zeros)
    with pytest.raises(ShapeError, match="channels"):
        conv_s8(x, weight, multiplier, bias, groups=2, **zeros)
    with pytest.raises(ShapeError, match=r"\[B, H, W, C\]"):
        conv_s8(x[0], weight, multiplier, bias, **zeros)
    with pytest.raises(ShapeError, match=r"\[B, H, W, C\]"):
        conv_s8(x[:0], weight, multiplier, bias, **zeros)
    with pytest.raises(ShapeError, match="add padding"):
        conv_s8(x[:, :2], weight, multiplier, bias, **zeros)
    with pytest.raises(BackendError, match="high=256"):
        conv_s8(x, weight, multiplier, bias, high=256, **zeros)
