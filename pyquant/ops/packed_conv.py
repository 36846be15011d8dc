"""A convolution whose weight lies in the CPU kernels' order: packed once, called often."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.weak import WeakTensorKeyDictionary

from pyquant.errors import BackendError
from pyquant.ops.backend import extension
from pyquant.ops.conv_call import output_size
from pyquant.ops.section import SectionData, SectionWriter


class PackedConv:
    """A convolution whose weight lies in the kernels' order; made once, called often.

    Args:
        weight: ``[N, KH, KW, C / groups]`` int8, or ``[N, C]``.
        multiplier, bias: ``[N]`` float32.
        shape: ``(H, W, C)`` of an input.
        to_float: write ``float(acc) * multiplier + bias`` as float32 ``[B, N, OH, OW]`` instead of codes; then there is no
            ``y_zero, low, high``.
        isa: ``"auto"``, ``"amx"``, ``"avx512"``, ``"avx_vnni"``, ``"avx2"`` or ``"portable"``.
        options: ``stride, padding, dilation, groups, x_zero, y_zero, low, high`` of :func:`pyquant.ops.conv_s8.conv_s8`; with
            ``residual_zero, residual_scale`` it takes a residual too.

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
        sizes = output_size(shape[:2], (kh, kw), options["stride"], options["padding"], options["dilation"])
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
        inputs: tuple[str, ...] = ("x",)
        if "residual_scale" in options:
            writer.input("residual", "codes", self.shape)
            inputs = ("x", "residual")
        output = ("y", "float" if to_float else "codes", self.shape)
        writer.op("conv", "conv_s8", inputs, output, attributes, {k: data.add(t) for k, t in tensors.items()})
        try:
            self.engine = extension().Engine(*data.finish(writer, ("y",)), isa)  # type: ignore[union-attr]
        except ValueError as error:
            raise BackendError(f"{error}.") from None

    def __call__(self, x: Tensor, residual: Tensor | None = None, threads: int | None = None) -> Tensor:
        """Convolve ``[B, H, W, C]`` uint8 codes to ``[B, OH, OW, N]``."""
        given = [t.contiguous() for t in (x, residual) if t is not None]
        y = torch.empty(x.shape[0], *self.shape, dtype=self.dtype)
        addresses = [t.data_ptr() for t in given]
        self.engine.run(addresses, [y.data_ptr()], x.shape[0], threads or torch.get_num_threads())
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
