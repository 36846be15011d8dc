"""gemm_w4a16: float activations times weights of 2, 3 or 4 bits, which are dequantised on the way. For few rows, on a GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyquant.errors import DTypeError
from pyquant.ops.backend import call, register, run
from pyquant.ops.checks import check_matrix
from pyquant.ops.cuda_configurations import KERNELS, w4a16_splits
from pyquant.ops.cuda_launch import Launch, fit, processors
from pyquant.ops.cuda_layouts import aligned_rows, weights_w4a16
from pyquant.ops.kept import kept
from pyquant.ops.pack import unpack
from pyquant.ops.packed_w4 import check_weights
from pyquant.ops.triton_launch import FLOATS, Planned, planned

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
        backend: ``"auto"``, ``"reference"``, ``"triton"`` or ``"cuda"``.

    Returns:
        ``[M, N]``, dtype of ``x``. No gradient.

    Raises:
        ShapeError, GridError, BackendError: as ``gemm_w4``.
        DTypeError: a dtype is not one of those above.
    """
    if x.dtype not in _HALF:
        raise DTypeError(f"x is {x.dtype}; gemm_w4a16 takes float16 or bfloat16.")
    check_matrix("gemm_w4a16", x)
    check_weights("gemm_w4a16", x.shape[1], packed, scale, zero_point, group_size, bits)
    arguments = (x, packed, scale, zero_point, group_size, signed, bits)
    return call("gemm_w4a16", backend, *arguments)


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


@dataclass(frozen=True)
class _Split:
    """Triton's kernel, and how many programs share a tile's sum; ``str`` is one line."""

    plan: Planned
    splits: int

    def __str__(self) -> str:
        return f"{self.plan}, K in {self.splits} part{'s' if self.splits > 1 else ''}"


def _plan_triton(
    device: torch.device,
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    group_size: int | None,
    *_: Any,
) -> _Split:
    sizes = {"m": x.shape[0], "n": packed.shape[0], "k": x.shape[1], "group": group_size or 0}
    plan = planned("gemm_w4a16", device, **sizes, dtype=FLOATS[x.dtype])
    from pyquant.kernels import gemm_w4a16 as kernel

    return _Split(plan, kernel.choose_splits(plan.description, plan.configuration)[0])


@register("gemm_w4a16", "triton", _plan_triton)
def _triton(plan: _Split, x: Tensor, packed: Tensor, *rest: Any) -> Tensor:
    from pyquant.kernels import gemm_w4a16 as kernel

    weight = kept(f"triton gemm_w4a16 {x.dtype}", _repacked, packed, *rest, x.shape[1], x.dtype)
    return kernel.launch(x.contiguous(), weight, splits=plan.splits)


def _repacked(
    packed: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    group_size: int | None,
    signed: bool,
    bits: int,
    length: int,
    dtype: torch.dtype,
) -> Any:
    from pyquant.kernels import gemm_w4a16 as kernel

    return kernel.repack(unpack(packed, bits, signed, length), scale, zero_point, group_size, signed, dtype)
