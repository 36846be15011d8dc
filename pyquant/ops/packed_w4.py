"""Low-bit weights in the kernels' own order: packed once, called often."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from pyquant.errors import DTypeError, GridError, ShapeError
from pyquant.ops.backend import extension
from pyquant.ops.checks import INT32_MAX, check_dtypes
from pyquant.ops.pack import words_of
from pyquant.ops.quantize_rows import FLOATS

BITS = (2, 3, 4)
GROUP_SIZES = (32, 64, 128)


class PackedW4:
    """Weights of 2, 3 or 4 bits in the kernels' order, still as many bits each.

    Args:
        packed: ``[N, ceil(K * bits / 32)]`` int32, low code first.
        scale: ``[N, G]`` float32.
        zero_point: ``[N, G]`` int32; None means 0.
        length: ``K``.
        group_size: inputs that share a scale; None for a whole row.
        signed: whether weight codes are two's complement.
        bits: 2, 3 or 4.
        isa: ``"auto"`` or one of ``available_isas()``.
    """

    def __init__(
        self,
        packed: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        length: int,
        group_size: int | None,
        signed: bool,
        bits: int = 4,
        isa: str = "auto",
    ) -> None:
        packed, scale = packed.contiguous(), scale.contiguous()
        zero = torch.zeros(scale.shape, dtype=torch.int32) if zero_point is None else zero_point.contiguous()
        self.outputs, self.length = packed.shape[0], length
        self.layer = extension().LinearW4(  # type: ignore[union-attr]
            packed.data_ptr(),
            zero.data_ptr(),
            scale.data_ptr(),
            self.outputs,
            length,
            group_size or length,
            bits,
            signed,
            isa,
        )

    def floats(self, x: Tensor, threads: int | None = None) -> Tensor:
        """``[M, K]`` floats to ``[M, N]`` of the same dtype; rows are quantised on the way."""
        x = x.contiguous()
        y = torch.empty((x.shape[0], self.outputs), dtype=x.dtype)
        self.layer.run(
            FLOATS[x.dtype], x.data_ptr(), y.data_ptr(), x.shape[0], threads or torch.get_num_threads()
        )
        return y

    def codes(self, x: Tensor, x_scale: Tensor, x_zero: Tensor | None, threads: int | None = None) -> Tensor:
        """``[M, K]`` uint8 or int8 codes to ``[M, N]`` float32."""
        return self._codes(x, x_scale, x_zero, 8, x.dtype == torch.int8, threads)

    def words(
        self, x: Tensor, x_scale: Tensor, x_zero: Tensor | None, signed: bool, threads: int | None = None
    ) -> Tensor:
        """``[M, ceil(K / 8)]`` int32 words of 4-bit codes to ``[M, N]`` float32."""
        return self._codes(x, x_scale, x_zero, 4, signed, threads)

    def _codes(
        self, x: Tensor, x_scale: Tensor, x_zero: Tensor | None, bits: int, signed: bool, threads: int | None
    ) -> Tensor:
        rows = x.shape[0]
        zero = torch.zeros(rows, dtype=torch.int32) if x_zero is None else x_zero.contiguous()
        x, x_scale = x.contiguous(), x_scale.contiguous()
        y = torch.empty(rows, self.outputs)
        self.layer.run_codes(
            x.data_ptr(),
            zero.data_ptr(),
            x_scale.data_ptr(),
            bits,
            signed,
            y.data_ptr(),
            rows,
            threads or torch.get_num_threads(),
        )
        return y


_layers: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def packed_layer(
    packed: Tensor, scale: Tensor, zero_point: Tensor | None, length: int, *options: Any
) -> PackedW4:
    """The :class:`PackedW4` of these tensors, made at the first call and again when one of them has changed."""
    key = (
        (length, *options, packed.data_ptr(), packed._version, scale.data_ptr(), scale._version)
        if zero_point is None
        else (
            *(length, *options, packed.data_ptr(), packed._version, scale.data_ptr(), scale._version),
            *(zero_point.data_ptr(), zero_point._version),
        )
    )
    kept = _layers.get(packed)
    if kept is None or kept[0] != key:
        # The tensors are kept too: a freed one could leave its address to another.
        kept = (key, PackedW4(packed, scale, zero_point, length, *options), scale, zero_point)
        _layers[packed] = kept
    return kept[1]


# -------------------------------------------------------------------------------------------------- checks
def check_weights(
    op: str,
    length: int,
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    group_size: int | None,
    bits: int,
) -> None:
    """Refuse weights that do not fit ``length`` inputs, in one sentence."""
    if bits not in BITS:
        raise GridError(f"bits={bits!r}; {op} takes weights of 2, 3 or 4 bits.")
    check_dtypes(packed=(packed, torch.int32), scale=(scale, torch.float32))
    if packed.dim() != 2 or min(packed.shape) == 0:
        raise ShapeError(f"{op} takes packed [N, ceil(K * bits / 32)], not {list(packed.shape)}.")
    if packed.shape[1] != words_of(length, bits):
        raise ShapeError(
            f"packed has {packed.shape[1]} words a row; "
            f"K={length} codes of {bits} bits take {words_of(length, bits)}."
        )
    if group_size is not None and (group_size not in GROUP_SIZES or length % group_size):
        raise ShapeError(
            f"group_size={group_size} does not suit K={length}; "
            "use a divisor of K among 32, 64 and 128, or None."
        )
    longest = INT32_MAX // (255 * ((1 << bits) - 1))
    if (group_size or length) > longest:
        raise ShapeError(
            f"a row of K={length} codes is too long for int32 sums; use groups, or at most K={longest}."
        )
    shape = (packed.shape[0], 1 if group_size is None else length // group_size)
    if scale.shape != shape:
        raise ShapeError(f"scale is {list(scale.shape)}; {op} takes {list(shape)}, one a group.")
    if zero_point is not None:
        if zero_point.dtype != torch.int32:
            raise DTypeError(f"zero_point is {zero_point.dtype}; use torch.int32.")
        if zero_point.shape != shape:
            raise ShapeError(
                f"zero_point is {list(zero_point.shape)}; {op} takes {list(shape)}, one a group."
            )
