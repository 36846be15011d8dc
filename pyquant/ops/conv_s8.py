"""conv_s8: 8-bit convolution over NHWC codes with the requantising epilogue."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

from pyquant import reference
from pyquant.errors import BackendError, DTypeError, ShapeError
from pyquant.ops.backend import extension, register, run
from pyquant.ops.section import SectionData, SectionWriter

INT32_MAX = 2**31 - 1


def conv_s8(
    x: Tensor,
    weight: Tensor,
    multiplier: Tensor,
    bias: Tensor,
    *,
    x_zero: int,
    y_zero: int,
    low: int = 0,
    high: int = 255,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    backend: str = "auto",
) -> Tensor:
    """Convolve codes: ``y = clamp(round(float(acc) * multiplier + bias) + y_zero, low, high)``.

    Here ``acc = sum (x - x_zero) * weight`` over a window, exact.

    Args:
        x: ``[B, H, W, C]`` uint8 codes.
        weight: ``[N, KH, KW, C / groups]`` int8 codes, zero point 0.
        multiplier: ``[N]`` float32, ``s_x s_w / s_y``.
        bias: ``[N]`` float32, ``bias / s_y``.
        x_zero: zero point of ``x``, 0..255; the padding is filled with it.
        y_zero: zero point of the result, 0..255.
        low, high: clamp bounds in codes, 0..255; an activation is one of them.
        stride, dilation: ``(vertical, horizontal)``.
        padding: ``(top, left, bottom, right)``.
        groups: divides ``C`` and ``N``.
        backend: ``"auto"``, ``"reference"`` or ``"cpu"``; all give the same bytes.

    Returns:
        ``[B, OH, OW, N]`` uint8.

    Raises:
        ShapeError: shapes do not fit each other, the batch is empty, or sums could leave int32.
        DTypeError: a dtype is not the one above.
        BackendError: a code parameter is outside 0..255, or the backend cannot serve here.

    Source: :func:`pyquant.reference.accumulate_conv` and :func:`pyquant.reference.requantize`.
    """
    check_dtypes(
        x=(x, torch.uint8),
        weight=(weight, torch.int8),
        multiplier=(multiplier, torch.float32),
        bias=(bias, torch.float32),
    )
    check_code_range(x_zero=x_zero, y_zero=y_zero, low=low, high=high)
    if x.dim() != 4 or weight.dim() != 4 or min(x.shape) == 0:
        raise ShapeError(
            "conv_s8 takes x [B, H, W, C] and weight [N, KH, KW, C / groups], "
            f"not {list(x.shape)} and {list(weight.shape)}."
        )
    n, kh, kw, c = weight.shape
    if c * groups != x.shape[3] or n % groups or multiplier.shape != (n,) or bias.shape != (n,):
        raise ShapeError(
            f"conv_s8: weight {list(weight.shape)}, multiplier {list(multiplier.shape)} "
            f"and bias {list(bias.shape)} do not fit {x.shape[3]} channels in {groups} groups."
        )
    check_accumulator(kh * kw * c, x_zero, weight, "conv_s8")
    if min(_output_size(x.shape, weight.shape, stride, padding, dilation)) < 1:
        raise ShapeError(
            f"conv_s8: a {kh} x {kw} kernel does not fit a {x.shape[1]} x {x.shape[2]} input; add padding."
        )
    codes, geometry = (x_zero, y_zero, low, high), (stride, padding, dilation, groups)
    arguments = (x, weight, multiplier, bias, *codes, *geometry)
    return torch.ops.pyquant.conv_s8(*arguments) if backend == "auto" else run("conv_s8", backend, *arguments)


# -------------------------------------------------------------------------------------------------- schema
torch.library.define(
    "pyquant::conv_s8",
    "(Tensor x, Tensor weight, Tensor multiplier, Tensor bias, int x_zero, int y_zero, int low, int high, "
    "int[2] stride, int[4] padding, int[2] dilation, int groups) -> Tensor",
)


@torch.library.impl("pyquant::conv_s8", ("cpu", "cuda"))
def _dispatch(*arguments: Any) -> Tensor:
    return run("conv_s8", "auto", *arguments)


@torch.library.register_fake("pyquant::conv_s8")
def _fake(
    x: Tensor,
    weight: Tensor,
    multiplier: Tensor,
    bias: Tensor,
    x_zero: int,
    y_zero: int,
    low: int,
    high: int,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    return x.new_empty(
        x.shape[0], *_output_size(x.shape, weight.shape, stride, padding, dilation), weight.shape[0]
    )


# ------------------------------------------------------------------------------------------------ backends
@register("conv_s8", "reference")
def _reference(
    x: Tensor,
    weight: Tensor,
    multiplier: Tensor,
    bias: Tensor,
    x_zero: int,
    y_zero: int,
    low: int,
    high: int,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    zero = torch.zeros(weight.shape[0], dtype=torch.int32, device=weight.device)
    oihw = weight.permute(0, 3, 1, 2)
    acc = reference.accumulate_conv(x, x_zero, oihw, zero, stride, padding, dilation, groups)
    return reference.requantize(acc, multiplier, bias, y_zero, low, high)


@register("conv_s8", "cpu")
def _cpu(
    x: Tensor,
    weight: Tensor,
    multiplier: Tensor,
    bias: Tensor,
    x_zero: int,
    y_zero: int,
    low: int,
    high: int,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    layer = packed(
        weight,
        multiplier,
        bias,
        tuple(x.shape[1:]),
        stride=tuple(stride),
        padding=tuple(padding),
        dilation=tuple(dilation),
        groups=groups,
        x_zero=x_zero,
        y_zero=y_zero,
        low=low,
        high=high,
    )
    return layer(x)


class PackedConv:
    """A convolution whose weight lies in the kernels' order; made once, called often.

    Args:
        weight: ``[N, KH, KW, C / groups]`` int8, or ``[N, C]``.
        multiplier, bias: ``[N]`` float32.
        shape: ``(H, W, C)`` of an input.
        to_float: write ``float(acc) * multiplier + bias`` as float32 ``[B, N, OH, OW]`` instead of codes; then there is no
            ``y_zero, low, high``.
        isa: ``"auto"``, ``"amx"``, ``"avx512"``, ``"avx_vnni"``, ``"avx2"`` or ``"portable"``.
        options: ``stride, padding, dilation, groups, x_zero, y_zero, low, high`` of :func:`conv_s8`.

    Raises:
        BackendError: the engine cannot run it.
    """

    def __init__(
        self,
        weight: Tensor,
        multiplier: Tensor,
        bias: Tensor,
        shape: tuple[int, ...],
        *,
        to_float: bool = False,
        isa: str = "auto",
        **options: Any,
    ) -> None:
        if weight.dim() == 2:
            # A matrix is a 1 x 1 kernel.
            weight = weight[:, None, None, :]
        n, kh, kw, _ = weight.shape
        sizes = _output_size(
            (1, *shape), weight.shape, options["stride"], options["padding"], options["dilation"]
        )
        self.shape = (n, *sizes) if to_float else (*sizes, n)
        self.dtype = torch.float32 if to_float else torch.uint8
        data = SectionData()
        codes = weight.reshape(n, -1)
        # The bytes of 8-bit codes are their words, where rows are whole words.
        tensors = {
            "weight": functional.pad(codes, (0, -codes.shape[1] % 4)),
            "multiplier": multiplier,
            "bias": bias,
        }
        attributes = {**options, "kernel": (kh, kw), "weight_bits": 8, "weight_signed": True}
        writer = SectionWriter()
        writer.input("x", "codes", shape)
        output = ("y", "float" if to_float else "codes", self.shape)
        writer.op("conv", "conv_s8", ("x",), output, attributes, {k: data.add(t) for k, t in tensors.items()})
        try:
            self.engine = extension().Engine(*data.finish(writer, ("y",)), isa)  # type: ignore[union-attr]
        except ValueError as error:
            raise BackendError(f"{error}.") from None

    def __call__(self, x: Tensor, threads: int | None = None) -> Tensor:
        """Convolve ``[B, H, W, C]`` uint8 codes to ``[B, OH, OW, N]``."""
        x = x.contiguous()
        y = torch.empty(x.shape[0], *self.shape, dtype=self.dtype)
        self.engine.run([x.data_ptr()], [y.data_ptr()], x.shape[0], threads or torch.get_num_threads())
        return y


_layers: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def packed(
    weight: Tensor, multiplier: Tensor, bias: Tensor, shape: tuple[int, ...], **options: Any
) -> PackedConv:
    """The packed form of ``weight``, kept until the weight dies, changes, or is called with other options."""
    key = (shape, tuple(options.items()), *((t.data_ptr(), t._version) for t in (weight, multiplier, bias)))
    kept = _layers.get(weight)
    if kept is None or kept[0] != key:
        # The tensors are kept too: a freed one could leave its address to another.
        kept = (key, PackedConv(weight, multiplier, bias, shape, **options), multiplier, bias)
        _layers[weight] = kept
    return kept[1]


# -------------------------------------------------------------------------------------------------- checks
def _output_size(x: Any, weight: Any, stride: Any, padding: Any, dilation: Any) -> tuple[int, int]:
    top, left, bottom, right = padding
    return (
        (x[1] + top + bottom - dilation[0] * (weight[1] - 1) - 1) // stride[0] + 1,
        (x[2] + left + right - dilation[1] * (weight[2] - 1) - 1) // stride[1] + 1,
    )


def check_dtypes(**tensors: tuple[Tensor, torch.dtype]) -> None:
    """Raise DTypeError unless each ``name=(tensor, dtype)`` fits."""
    for name, (tensor, dtype) in tensors.items():
        if tensor.dtype != dtype:
            raise DTypeError(f"{name} is {tensor.dtype}; give {dtype}.")


def check_code_range(**codes: int) -> None:
    """Raise BackendError unless each code is within 0..255."""
    for name, code in codes.items():
        if code not in range(256):
            raise BackendError(f"{name}={code} is no uint8 code; use 0..255.")


def check_accumulator(length: int, x_zero: int, weight: Tensor, site: str) -> None:
    """Raise ShapeError if sums of ``length`` products could leave int32.

    Args:
        length: products a sum, ``K``.
        x_zero: zero point of the uint8 activations.
        weight: int8 codes less their zero point.
        site: name for the message.
    """
    if length * max(x_zero, 255 - x_zero) * 128 <= INT32_MAX:
        return
    largest = max(x_zero, 255 - x_zero) * int(weight.to(torch.int32).abs().max())
    if length * largest > INT32_MAX:
        raise ShapeError(
            f"{site!r} sums K={length} products of up to {largest}; "
            f"int32 holds at most K={INT32_MAX // largest}."
        )
