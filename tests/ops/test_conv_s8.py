"""conv_s8 as an op; tests/runtime/test_execute_cpu.py sweeps geometries, instruction sets and threads."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor

from pyquant.errors import BackendError, DTypeError, ShapeError
from pyquant.ops import backend, cuda_launch, triton_launch
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
    other = torch.randint(0, 256, want.shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    added = {"residual": (other, 130, 0.45)}
    both = conv_s8(*tensors, **arguments, **added, backend="reference")
    assert not torch.equal(both, want)
    assert torch.equal(conv_s8(*tensors, **arguments, **added, backend="cpu"), both)
    assert torch.equal(conv_s8(*tensors, **arguments, **added), both)
    # A strided view of the same codes.
    tensors = (tensors[0].transpose(1, 2).contiguous().transpose(1, 2), *tensors[1:])
    assert torch.equal(conv_s8(*tensors, **arguments, backend="cpu"), want)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="pip install 'pyquant-engine[gpu]'")
def test_what_auto_takes_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton reads windows where they lie; cuda comes first where there is nothing to copy, and where Triton is missing."""
    absent: set[str] = set()
    monkeypatch.setattr(backend, "missing", lambda name: "not installed" if name in absent else None)
    monkeypatch.setattr(triton_launch, "target_of", lambda device: "sm_80")
    for page in (backend, cuda_launch):
        monkeypatch.setattr(page, "architecture", lambda device: "sm_80")
    monkeypatch.setattr(cuda_launch, "processors", lambda device: 108)

    def taken(
        n: int, kernel: int, c: int, groups: int = 1, *, residual: bool = False, stride: int = 1
    ) -> str:
        x, weight = torch.zeros(4, 9, 9, c, dtype=torch.uint8), torch.zeros(n, kernel, kernel, c // groups)
        where = ((stride, stride), (0, 0, 0, 0), (1, 1), groups)
        arguments = (x, weight, torch.ones(n), torch.ones(n), 0, 0, 0, 255, *where)
        chosen = backend.choose("conv_s8", "cuda:0", "auto", (*arguments, *((x, 0, 1.0) if residual else ())))
        return f"{chosen.backend}: {chosen.configuration}"

    assert taken(64, 3, 64).startswith("triton: conv_s8 on sm_80: ")
    assert taken(64, 3, 64, 64).startswith("triton: depthwise_s8 on sm_80: ")
    assert taken(64, 3, 64, 2).startswith("triton: conv_s8 ") and taken(128, 3, 64, 64).startswith(
        "triton: conv_s8 "
    )
    assert taken(64, 1, 64, 2).startswith("triton: conv_s8 ")
    assert taken(64, 1, 64).startswith("cuda: gemm_s8_codes_") and "copied" not in taken(64, 1, 64)
    assert taken(64, 1, 64, stride=2).startswith("triton: conv_s8 ")
    assert taken(64, 1, 64, residual=True).startswith("triton: conv_s8 ")
    absent.add("triton")
    assert taken(64, 3, 64).startswith("cuda: gemm_s8_codes_") and taken(64, 3, 64).endswith(
        ", on copied windows"
    )
    assert taken(64, 1, 64, residual=True).startswith("cuda: gemm_s8_floats_")
    assert taken(64, 3, 64, 64).startswith("cuda: ") and taken(64, 3, 64, 64).endswith(", on copied windows")
    assert taken(64, 1, 64, 2).startswith("cuda: ") and "copied" not in taken(64, 1, 64, 2)
    assert taken(4096, 3, 4096, 4096) == "reference: None"
    absent.add("cuda")
    absent.remove("triton")
    assert taken(64, 1, 64).startswith("triton: gemm_s8 on sm_80: ")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="pip install 'pyquant-engine[gpu]'")
def test_more_than_int32_counts_is_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "missing", lambda name: None)
    monkeypatch.setitem(backend._READS, "triton", ("meta",))
    monkeypatch.setattr(triton_launch, "target_of", lambda device: "sm_80")
    weight, one, last = (
        torch.zeros(8, 3, 3, 16, dtype=torch.int8, device="meta"),
        torch.ones(8),
        (0, 0, 0, 255),
    )
    where = ((1, 1), (1, 1, 1, 1), (1, 1), 1)
    for sizes in ((1 << 15, 256, 256), (1, 1 << 14, 1 << 13)):
        x = torch.zeros(*sizes, 16, dtype=torch.uint8, device="meta")
        with pytest.raises(BackendError, match=r"than int32 counts; split it; use reference\."):
            backend.choose("conv_s8", "meta", "triton", (x, weight, one, one, *last, *where))


def test_opcheck() -> None:
    given = (*case(5, 3, 4, 1), 3, 9, 0, 255, [1, 2], [1, 1, 0, 1], [1, 1], 1)
    torch.library.opcheck(torch.ops.pyquant.conv_s8.default, given)
    other = torch.zeros(2, 8, 6, 5, dtype=torch.uint8)
    torch.library.opcheck(torch.ops.pyquant.conv_s8.default, (*given, other, 3, 0.5))


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
    with pytest.raises(
        ShapeError, match=r"groups=0, .* are at least 1, and padding=\(0, 0, 0, 0\) at least 0\."
    ):
        conv_s8(x, weight, multiplier, bias, groups=0, **zeros)
    with pytest.raises(ShapeError, match=r"padding=\(0, -1, 0, 0\) at least 0"):
        conv_s8(x, weight, multiplier, bias, padding=(0, -1, 0, 0), **zeros)
    other = torch.zeros(2, 7, 9, 5, dtype=torch.uint8)
    with pytest.raises(
        ShapeError, match=r"residual \[2, 7, 9, 5\] should be shaped like the result, \[2, 7, 9, 6\]"
    ):
        conv_s8(x, weight, multiplier, bias, residual=(other, 0, 1.0), **zeros)
    with pytest.raises(DTypeError, match=r"residual is torch\.int8"):
        conv_s8(x, weight, multiplier, bias, residual=(other.to(torch.int8), 0, 1.0), **zeros)
    with pytest.raises(BackendError, match="residual_zero=-1"):
        conv_s8(x, weight, multiplier, bias, residual=(other, -1, 1.0), **zeros)
    with pytest.raises(BackendError, match="high=256"):
        conv_s8(x, weight, multiplier, bias, high=256, **zeros)
