"""The reference on tensors that are not on the CPU. Meta tensors stand for a GPU's: torch mixes neither with the CPU's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyquant import reference
from pyquant.errors import DTypeError
from pyquant.grid import Grid
from pyquant.ops import conv_s8, gemm_s8, gemm_w4, gemm_w4a4, gemm_w4a16, linear_w4, pack, quantize_rows
from pyquant.ops.backend import choose
from pyquant.ops.checks import check_values
from pyquant.ops.fake_quantize import fake_quantize

META = torch.device("meta")


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


U8, S8, I32 = torch.uint8, torch.int8, torch.int32
PACKED, GRIDS = empty(6, 8, dtype=I32), (empty(6, 2), empty(6, 2, dtype=I32))
OPS = {
    "gemm_s8": (empty(5, 64, dtype=U8), empty(6, 64, dtype=S8), empty(6), empty(6), 3, 4, 0, 255),
    "gemm_s8_float": (empty(5, 64, dtype=U8), empty(6, 64, dtype=S8), empty(6), empty(6), 3),
    "conv_s8": (
        *(empty(2, 9, 9, 8, dtype=U8), empty(6, 3, 3, 4, dtype=S8), empty(6), empty(6), 3, 4, 0, 255),
        *((1, 1), (1, 1, 1, 1), (1, 1), 2),
    ),
    "gemm_w4": (empty(5, 64, dtype=U8), PACKED, GRIDS[0], empty(5), empty(5, dtype=I32), GRIDS[1], 32, True, 4),
    "gemm_w4a4": (empty(5, 8, dtype=I32), PACKED, GRIDS[0], empty(5), 64, None, True, GRIDS[1], 32, True, 4),
    "linear_w4": (empty(5, 64, dtype=torch.float16), PACKED, GRIDS[0], None, 32, True, 4),
    "gemm_w4a16": (empty(5, 64, dtype=torch.float16), PACKED, GRIDS[0], GRIDS[1], 32, True, 4),
    "quantize_rows": (empty(5, 64),),
}  # fmt: skip
SHAPES = {"conv_s8": (2, 9, 9, 6), "quantize_rows": (5, 64)}
PAGES = (conv_s8, gemm_s8, gemm_w4, gemm_w4a4, gemm_w4a16, linear_w4, quantize_rows)


@pytest.mark.parametrize("op", OPS)
def test_the_reference_stays_on_the_device(op: str) -> None:
    result = choose(op, META, "reference", OPS[op]).kernel(*OPS[op])
    first = result[0] if isinstance(result, tuple) else result
    assert first.device == META and tuple(first.shape) == SHAPES.get(op, (5, 6))


def test_every_op_is_here() -> None:
    names = {name for page in PAGES for name in (page.__name__.rpartition(".")[2],)} | {"gemm_s8_float"}
    assert set(OPS) == names


@pytest.mark.parametrize("op", OPS)
def test_ops_are_registered_for_cuda_tensors(op: str) -> None:
    keys = torch._C._dispatch_dump(f"pyquant::{op}")
    assert "CUDA:" in keys and "CPU:" in keys


def test_scales_on_a_device_are_not_read_back() -> None:
    """Meta tensors have no values, and reading one raises."""
    check_values(empty(3), empty(3), (0, 255))


def test_codes_are_packed_where_they_are() -> None:
    words = empty(3, 5, dtype=I32)
    assert pack.unpack(words, 4, True, 40).device == META
    assert reference.max_pool(empty(1, 4, 4, 3, dtype=U8), (2, 2), (2, 2), (0, 0, 0, 0)).device == META


def test_mixed_devices_are_one_sentence() -> None:
    x, weight = torch.zeros(5, 64, dtype=U8), empty(6, 64, dtype=S8)
    with pytest.raises(
        DTypeError, match=r"gemm_s8 was given tensors on cpu and on meta; move them to one device\."
    ):
        gemm_s8.gemm_s8(x, weight, torch.ones(6), torch.ones(6), x_zero=128, y_zero=0, backend="reference")
    with pytest.raises(DTypeError, match="scale is on meta and the tensor on cpu"):
        fake_quantize(torch.ones(3), empty(), torch.zeros(()), Grid(8))
