"""Fake-quantize for a gradient of ``x`` alone: forward leaves one bit an element, whether it was in range, and ``x`` is not kept.

Backward then reads 4.125 bytes an element in place of 8, and on a CPU both passes are bound by memory. Result and gradient are those
of :mod:`pyquant.ops.fake_quantize`, byte for byte; where a scale learns, the op there serves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyquant.grid import Grid
from pyquant.ops.backend import choose, native
from pyquant.ops.checks import FLOATS, check_values
from pyquant.ops.grid_layout import cpu_grid, layout_of, prepare
from pyquant.ops.results import result_like


def serves(x: Tensor, scale: Tensor, zero_point: Tensor, grid: Grid, backend: str) -> bool:
    """Whether this form gives the gradients that are wanted of checked arguments; of the backends only cpu has it."""
    wanted = (
        torch.is_grad_enabled() and x.requires_grad and not (scale.requires_grad or zero_point.requires_grad)
    )
    if not wanted or x.numel() == 0 or choose("fake_quantize", x.device, backend).backend != "cpu":
        return False
    return native().fake_quantize_masks(*layout_of(x.shape, grid.axis, grid.group_size))


# ------------------------------------------------------------------------------------------ torch.library ops
_library = torch.library.Library("pyquant", "FRAGMENT")
_library.define(
    "fake_quantize_masked(Tensor x, Tensor scale, Tensor zero_point, int qmin, int qmax, int? axis, int? group_size)"
    " -> (Tensor y, Tensor inside)"
)
_library.define("keep_inside(Tensor dy, Tensor inside) -> Tensor")


def _fake_quantize_masked(x, scale, zero_point, qmin, qmax, axis, group_size) -> tuple[Tensor, Tensor]:
    """``inside``: one bit an element, 32 in a word, in an order that only the kernels know."""
    x, scale, zero_point = prepare(x, scale, zero_point)
    check_values(scale, zero_point)
    y, inside = result_like(x), _words_for(x)
    pointers = x.data_ptr(), y.data_ptr(), inside.data_ptr()
    grid = cpu_grid(x, scale, zero_point, qmin, qmax, axis, group_size)
    native().fake_quantize_masked(FLOATS[x.dtype], *pointers, *grid)
    return y, inside


def _keep_inside(dy: Tensor, inside: Tensor) -> Tensor:
    """``dy`` where ``inside``, else 0."""
    dy = dy.contiguous()
    dx = result_like(dy)
    pointers = dy.data_ptr(), inside.data_ptr(), dx.data_ptr()
    native().keep_inside(FLOATS[dy.dtype], *pointers, dy.numel(), torch.get_num_threads())
    return dx


def _words_for(x: Tensor) -> Tensor:
    return x.new_empty((x.numel() + 31) // 32, dtype=torch.int32)


_library.impl("fake_quantize_masked", _fake_quantize_masked, "CPU")
_library.impl("keep_inside", _keep_inside, "CPU")


@torch.library.register_fake("pyquant::fake_quantize_masked", lib=_library)
def _(x, scale, zero_point, qmin, qmax, axis, group_size):
    return torch.empty_like(x, memory_format=torch.contiguous_format), _words_for(x)


@torch.library.register_fake("pyquant::keep_inside", lib=_library)
def _(dy, inside):
    return torch.empty_like(dy, memory_format=torch.contiguous_format)


# --------------------------------------------------------------------------------------------------- gradient
def _remember(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, dy: Tensor, _: Any) -> tuple:
    (inside,) = ctx.saved_tensors
    return torch.ops.pyquant.keep_inside(dy, inside), None, None, None, None, None, None


torch.library.register_autograd(
    "pyquant::fake_quantize_masked", _backward, setup_context=_remember, lib=_library
)
