"""The arguments of the op conv_s8 by name, and what its backends ask of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

# Codes to add to the result, their zero point, and s_r / s_y.
Residual = tuple[Tensor, int, float]


class ConvCall(NamedTuple):
    """In the op's order; what they are is on the page of :func:`pyquant.ops.conv_s8.conv_s8`. The last three may be left out."""

    x: Tensor
    weight: Tensor
    multiplier: Tensor
    bias: Tensor
    x_zero: int
    y_zero: int
    low: int
    high: int
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int
    residual: Tensor | None = None
    residual_zero: int = 0
    residual_scale: float = 1.0

    @property
    def added(self) -> Residual | None:
        """The residual, as the kernels take it."""
        return None if self.residual is None else (self.residual, self.residual_zero, self.residual_scale)

    @property
    def bounds(self) -> tuple[int, int, int]:
        """``y_zero, low, high``."""
        return self.y_zero, self.low, self.high

    @property
    def out(self) -> tuple[int, int]:
        """Height and width of the result."""
        sizes, kernel = self.x.shape[1:3], self.weight.shape[1:3]
        return output_size(sizes, kernel, self.stride, self.padding, self.dilation)

    @property
    def geometry(self) -> dict[str, tuple[int, ...]]:
        """Stride, padding and dilation."""
        return {name: tuple(getattr(self, name)) for name in ("stride", "padding", "dilation")}

    @property
    def in_place(self) -> bool:
        """Whether every output sees one pixel, and every pixel is seen by one."""
        pixel = tuple(self.weight.shape[1:3]) == tuple(self.stride) == (1, 1)
        return pixel and not any(self.padding)

    @property
    def product(self) -> bool:
        """Whether this is a product of matrices as they lie, with nothing to add."""
        return self.in_place and self.groups == 1 and self.residual is None


def output_size(
    sizes: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    """Height and width of a convolution's result; of all but the padding the vertical comes first."""
    oh, ow = (
        (sizes[i] + padding[i] + padding[i + 2] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    )
    return oh, ow


# Bytes of a grouped weight as one of all channels, up to which a matrix product is still a way to compute with it.
DENSE = 64 << 20


def dense(weight: Tensor, groups: int) -> Tensor:
    """A grouped weight as one of all channels.

    Args:
        weight: ``[N, KH, KW, C / groups]``.

    Returns:
        ``[N, KH, KW, C]``, 0 at the channels of other groups; ``weight`` itself where there is one group.
    """
    if groups == 1:
        return weight
    n, kh, kw, c = weight.shape
    wide, each = weight.new_zeros(groups, n // groups, kh, kw, groups, c), range(groups)
    wide[each, :, :, :, each] = weight.reshape(groups, n // groups, kh, kw, c)
    return wide.reshape(n, kh, kw, groups * c)


def windows(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    x_zero: int,
) -> Tensor:
    """What each output of a convolution sees, as rows of a product of matrices.

    Args:
        x: ``[B, H, W, C]`` codes.
        kernel, stride, dilation: ``(vertical, horizontal)``.
        padding: ``(top, left, bottom, right)``, filled with ``x_zero``.

    Returns:
        ``[B, OH, OW, KH KW C]``; a view of ``x`` where every output sees one pixel.
    """
    top, left, bottom, right = padding
    if any(padding):
        x = functional.pad(x, (0, 0, left, right, top, bottom), value=x_zero)
    x = x.contiguous()
    batch, height, width, channels = x.shape
    oh, ow = output_size((height, width), kernel, stride, (0, 0, 0, 0), dilation)
    image, row, column, one = x.stride()
    strides = (image, stride[0] * row, stride[1] * column, dilation[0] * row, dilation[1] * column, one)
    return x.as_strided((batch, oh, ow, *kernel, channels), strides).flatten(3)
