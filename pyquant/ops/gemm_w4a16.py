"""gemm_w4a16: float activations times weights of 2, 3 or 4 bits, which are dequantised on the way. For few rows, on a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyquant.errors import DTypeError, ShapeError
from pyquant.ops.backend import register, run
from pyquant.ops.cuda_configurations import KERNELS, w4a16_splits
from pyquant.ops.cuda_launch import Launch, fit, processors
from pyquant.ops.cuda_layouts import aligned_rows, weights_w4a16
from pyquant.ops.kept import kept
from pyquant.ops.pack import unpack
from pyquant.ops.packed_w4 import check_weights

_HALF = {torch.float16: "f16", torch.bfloat16: "bf16"}


def gemm_w4a16(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    *,
    zero_point: Tensor | None = None,
    group_size: int | None = None,
    signed: bool = True,
    bits: int = 4,
    backend: str = "auto",
) -> Tensor:
    """``x @ dequantize(packed).T``, the products summed in float32 and rounded once to the dtype of ``x``.

    The reference sums in float64. A backend sums ``K`` terms in float32 in an order of its own, the same one every time, so results
    differ from it by at most ``2^-23 (K + G + splits) sum |x w|`` before the last rounding.

    Args:
        x: ``[M, K]`` float16 or bfloat16.
        packed, scale, zero_point, group_size, signed, bits: as in :func:`pyquant.ops.gemm_w4.gemm_w4`.
        backend: ``"auto"``, ``"reference"`` or ``"cuda"``.

    Returns:
        ``[M, N]``, dtype of ``x``. No gradient.

    Raises:
        ShapeError, GridError, BackendError: as ``gemm_w4``.
        DTypeError: a dtype is not one of those above.
    """
    if x.dtype not in _HALF:
        raise DTypeError(f"x is {x.dtype}; gemm_w4a16 takes float16 or bfloat16.")
    if x.dim() != 2 or min(x.shape) == 0:
        raise ShapeError(f"gemm_w4a16 takes x [M, K], not {list(x.shape)}.")
    check_weights("gemm_w4a16", x.shape[1], packed, scale, zero_point, group_size, bits)
    arguments = (x, packed, scale, zero_point, group_size, signed, bits)
    return (
        torch.ops.pyquant.gemm_w4a16(*arguments)
        if backend == "auto"
        else run("gemm_w4a16", backend, *arguments)
    )


torch.library.define(
    "pyquant::gemm_w4a16",
    "(Tensor x, Tensor packed, Tensor scale, Tensor? zero_point, int? group_size, bool signed, int bits) -> Tensor",
)


@torch.library.impl("pyquant::gemm_w4a16", ("cpu", "cuda"))
def _dispatch(*arguments: Any) -> Tensor:
    return run("gemm_w4a16", "auto", *arguments)


@torch.library.register_fake("pyquant::gemm_w4a16")
def _fake(x: Tensor, packed: Tensor, *args: Any) -> Tensor:
    return x.new_empty(x.shape[0], packed.shape[0])


@register("gemm_w4a16", "reference")
def _reference(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    group_size: int | None,
    signed: bool,
    bits: int,
) -> Tensor:
    n, k = packed.shape[0], x.shape[1]
    codes = unpack(packed, bits, signed, k).double().reshape(n, -1, group_size or k)
    if zero_point is not None:
        codes = codes - zero_point.double()[:, :, None]
    weight = (codes * scale.double()[:, :, None]).reshape(n, k)
    return (x.double() @ weight.T).to(x.dtype)


def _plan_cuda(
    device: torch.device,
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    group_size: int | None,
    *_: Any,
) -> Launch:
    (m, k), n = x.shape, packed.shape[0]
    chosen = fit("gemm_w4a16", device, m, n, group_size=group_size, word=f"_{_HALF[x.dtype]}_")
    splits = w4a16_splits(chosen.kernel, m, n, k, processors(device))
    return replace(chosen, grid=(*chosen.grid[:2], splits))


@register("gemm_w4a16", "cuda", _plan_cuda)
def _cuda(launch: Launch, x: Tensor, packed: Tensor, scale: Tensor, *rest: Any) -> Tensor:
    (m, k), n, splits = x.shape, packed.shape[0], launch.grid[2]
    zero_point, group_size, signed, bits = rest
    weights = kept("cuda gemm_w4a16", weights_w4a16, packed, scale, zero_point, k, group_size, signed, bits)
    rows, y = aligned_rows(x), torch.empty(m, n, dtype=x.dtype, device=x.device)
    partial = torch.empty(splits, m, n, device=x.device) if splits > 1 else None
    launch(
        x.device,
        {
            "x": rows,
            "weight": weights.codes,
            "scale": weights.scale,
            "zero_point": weights.zero,
            "y": y,
            "partial": partial,
            "m": m,
            "n": n,
            "k": rows.shape[1],
            "groups": weights.scale.shape[0],
            "group_size": group_size or k,
        },
    )
    if partial is not None:
        (adding,) = [kernel for kernel in KERNELS if kernel.entry == f"gemm_w4a16_sum_{_HALF[x.dtype]}"]
        grid = (-(-m * n // adding.block), 1, 1)
        both = {"partial": partial, "y": y, "count": m * n, "splits": splits}
        Launch(adding, launch.target, grid)(x.device, both)
    return y
