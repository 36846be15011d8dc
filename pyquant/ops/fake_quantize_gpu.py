"""Quantize and fake-quantize on the triton backend; the contract is on the page of fake_quantize."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyquant.ops.backend import register
from pyquant.ops.grid_layout import layout_of
from pyquant.ops.triton_launch import FLOATS, target_of


def _plan(device: torch.device, x: Tensor, scale: Tensor, zero_point: Tensor, *grid: Any) -> Any:
    target = target_of(device)
    from pyquant.kernels import fake_quantize as kernel

    if x.numel() == 0:
        return "nothing to launch"
    return kernel.choose(kernel.Description(*layout_of(x.shape, *grid[2:4]), FLOATS[x.dtype]), target)


def _plan_backward(device: torch.device, dy: Tensor, *arguments: Any) -> Any:
    return _plan(device, *arguments)


@register("fake_quantize", "triton", _plan)
@register("quantize", "triton", _plan)
def _triton(chosen: Any, x: Tensor, scale: Tensor, zero_point: Tensor, *grid_and_out: Any) -> None:
    from pyquant.kernels import fake_quantize as kernel

    qmin, qmax, axis, group_size, out = grid_and_out
    kernel.launch(
        x, scale, zero_point, out, layout=layout_of(x.shape, axis, group_size), qmin=qmin, qmax=qmax
    )


@register("fake_quantize_backward", "triton", _plan_backward)
def _backward_triton(
    chosen: Any, dy: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor, *grid_and_gradients: Any
) -> None:
    from pyquant.kernels import fake_quantize as kernel

    qmin, qmax, axis, group_size, dx, dscale, dzero = grid_and_gradients
    # Empty sums are sums that nobody wants.
    sums = (dscale, dzero) if dscale.numel() else (None, None)
    where = layout_of(x.shape, axis, group_size)
    kernel.launch_backward(dy, x, scale, zero_point, dx, *sums, layout=where, qmin=qmin, qmax=qmax)
