"""gemm_w4: 8-bit activations times 4-bit weights, per channel or in groups, to float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from pyquant.errors import DTypeError, ShapeError
from pyquant.ops.backend import choose, extension, register
from pyquant.ops.conv_s8 import INT32_MAX, check_dtypes
from pyquant.ops.pack import unpack, words_of

GROUP_SIZES = (32, 64, 128)
# The kernels multiply 4-bit codes times 16 by uint8 codes: a group's sum, times 16, has to fit int32.
LONGEST_GROUP = INT32_MAX // (255 * 128)


def gemm_w4(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    *,
    x_zero: Tensor | None = None,
    zero_point: Tensor | None = None,
    group_size: int | None = None,
    signed: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Multiply 8-bit activations by 4-bit weights.

    ``y = x_scale * sum_g scale_g * (x_g - x_zero) @ (w_g - zero_point_g).T``: a group's integer sum is exact;
    groups are added in ascending order in float32, one rounding each; the row's scale comes last. Every
    backend gives the same bytes.

    Args:
        x: ``[M, K]`` uint8 or int8 codes.
        packed: ``[N, ceil(K / 8)]`` int32, eight codes a word, low nibble first.
        scale: ``[N, G]`` float32, real units a step; ``G = K / group_size``, or 1.
        x_scale: ``[M]`` float32, real units a step of each row.
        x_zero: ``[M]`` int32 zero points of the rows, within the codes of ``x``; None means 0.
        zero_point: ``[N, G]`` int32 zero points of the weights, within their codes; None means 0.
        group_size: 32, 64 or 128 inputs that share a scale; None for a whole row.
        signed: whether weight codes are two's complement (-8..7) or 0..15.
        backend: ``"auto"``, ``"reference"`` or ``"cpu"``.

    Returns:
        ``[M, N]`` float32.

    Raises:
        ShapeError: shapes do not fit each other, a dimension is 0, ``group_size`` is none of those above or
            does not divide ``K``, or a group is longer than int32 sums allow (65,793).
        DTypeError: a dtype is not the one above.
        BackendError: the backend cannot serve here.

    Source: ARCHITECTURE, the numerics contract; the reference is on this page.
    """
    x_zero = torch.zeros(x.shape[0], dtype=torch.int32) if x_zero is None else x_zero
    zero_point = torch.zeros(scale.shape, dtype=torch.int32) if zero_point is None else zero_point
    _check(x, packed, scale, x_scale, x_zero, zero_point, group_size)
    run = torch.ops.pyquant.gemm_w4 if backend == "auto" else choose("gemm_w4", x.device, backend).kernel
    return run(x, packed, scale, x_scale, x_zero, zero_point, group_size, signed)


# -------------------------------------------------------------------------------------------------- schema
torch.library.define(
    "pyquant::gemm_w4",
    "(Tensor x, Tensor packed, Tensor scale, Tensor x_scale, Tensor x_zero, Tensor zero_point, "
    "int? group_size, bool signed) -> Tensor",
)


@torch.library.impl("pyquant::gemm_w4", "cpu")
def _dispatch(x: Tensor, *args: Any) -> Tensor:
    return choose("gemm_w4", x.device).kernel(x, *args)


@torch.library.register_fake("pyquant::gemm_w4")
def _fake(x: Tensor, packed: Tensor, *args: Any) -> Tensor:
    return x.new_empty(x.shape[0], packed.shape[0], dtype=torch.float32)


# ------------------------------------------------------------------------------------------------ backends
@register("gemm_w4", "reference")
def _reference(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    zero_point: Tensor,
    group_size: int | None,
    signed: bool,
) -> Tensor:
    (m, k), n = x.shape, packed.shape[0]
    size = group_size or k
    codes = unpack(packed, 4, signed, k).double().reshape(n, -1, size) - zero_point.double()[:, :, None]
    centred = (x.double() - x_zero.double()[:, None]).reshape(m, -1, size)
    total = torch.zeros(m, n, dtype=torch.float32)
    for g in range(k // size):
        acc = centred[:, g] @ codes[:, g].T
        total = total + acc.to(torch.int32).float() * scale[:, g]
    return total * x_scale[:, None]


@register("gemm_w4", "cpu")
def _cpu(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    zero_point: Tensor,
    group_size: int | None,
    signed: bool,
) -> Tensor:
    key = (x.shape[1], group_size, signed, *((t.data_ptr(), t._version) for t in (packed, scale, zero_point)))
    kept = _layers.get(packed)
    if kept is None or kept[0] != key:
        # The tensors are kept too: a freed one could leave its address to another.
        kept = (key, PackedW4(packed, scale, zero_point, x.shape[1], group_size, signed), scale, zero_point)
        _layers[packed] = kept
    return kept[1](x, x_scale, x_zero)


_layers: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


class PackedW4:
    """4-bit weights in the kernels' order, still 4 bits each; made once, called often.

    Args:
        packed, scale, zero_point, group_size, signed: as in :func:`gemm_w4`.
        length: ``K``.
        isa: ``"auto"``, ``"amx"``, ``"avx512"``, ``"avx2"`` or ``"portable"``.
    """

    def __init__(
        self,
        packed: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        length: int,
        group_size: int | None,
        signed: bool,
        isa: str = "auto",
    ) -> None:
        # The kernels know -8..7 only; an unsigned grid is the same grid moved by 8.
        move = 0 if signed else 8
        codes = (unpack(packed, 4, signed, length) - move).to(torch.int8).contiguous()
        zero = (zero_point.to(torch.int32) - move).contiguous()
        scale = scale.contiguous()
        self.outputs = packed.shape[0]
        self.layer = extension().LinearW4(  # type: ignore[union-attr]
            codes.data_ptr(),
            zero.data_ptr(),
            scale.data_ptr(),
            self.outputs,
            length,
            group_size or length,
            isa,
        )

    def __call__(self, x: Tensor, x_scale: Tensor, x_zero: Tensor, threads: int | None = None) -> Tensor:
        """``[M, K]`` uint8 or int8 codes to ``[M, N]`` float32."""
        x_zero = x_zero.contiguous()
        if x.dtype == torch.int8:
            # Flipping the top bit adds 128.
            x, x_zero = x.view(torch.uint8) ^ 0x80, x_zero + 128
        x, x_scale = x.contiguous(), x_scale.contiguous()
        y = torch.empty(x.shape[0], self.outputs, dtype=torch.float32)
        addresses = (x.data_ptr(), x_zero.data_ptr(), x_scale.data_ptr(), y.data_ptr())
        self.layer.run(*addresses, x.shape[0], threads or torch.get_num_threads())
        return y


# -------------------------------------------------------------------------------------------------- checks
def _check(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    zero_point: Tensor,
    group_size: int | None,
) -> None:
    if x.dtype not in (torch.uint8, torch.int8):
        raise DTypeError(f"x is {x.dtype}; give uint8 or int8 codes.")
    check_dtypes(
        packed=(packed, torch.int32),
        scale=(scale, torch.float32),
        x_scale=(x_scale, torch.float32),
        x_zero=(x_zero, torch.int32),
        zero_point=(zero_point, torch.int32),
    )
    if x.dim() != 2 or packed.dim() != 2 or min(*x.shape, *packed.shape) == 0:
        raise ShapeError(
            "gemm_w4 takes x [M, K] and packed [N, ceil(K / 8)], "
            f"not {list(x.shape)} and {list(packed.shape)}."
        )
    (m, k), n = x.shape, packed.shape[0]
    if packed.shape[1] != words_of(k, 4):
        raise ShapeError(
            f"packed has {packed.shape[1]} words a row; K={k} codes of 4 bits take {words_of(k, 4)}."
        )
    if group_size is not None and (group_size not in GROUP_SIZES or k % group_size):
        raise ShapeError(
            f"group_size={group_size} does not suit K={k}; use a divisor of K among 32, 64 and 128, or None."
        )
    groups = 1 if group_size is None else k // group_size
    if (group_size or k) > LONGEST_GROUP:
        raise ShapeError(
            f"a row of K={k} codes is too long for int32 sums; use groups, or at most K={LONGEST_GROUP}."
        )
    if scale.shape != (n, groups) or zero_point.shape != (n, groups):
        raise ShapeError(
            f"scale {list(scale.shape)} and zero_point {list(zero_point.shape)} should be {[n, groups]} "
            f"for {groups} groups a row."
        )
    if x_scale.shape != (m,) or x_zero.shape != (m,):
        raise ShapeError(
            f"x_scale {list(x_scale.shape)} and x_zero {list(x_zero.shape)} should be [{m}], one a row."
        )
