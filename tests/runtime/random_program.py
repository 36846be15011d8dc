"""Random integer programs: every kind of op, odd shapes, scales that use the whole range of codes."""

from __future__ import annotations

import torch
from torch import Tensor

from pyquant.ops.pack import pack
from pyquant.runtime.program import Op, Program, Value


class Writer:
    """Writes a program op by op; every method returns the name of the value it made."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.values: dict[str, Value] = {}
        self.ops: list[Op] = []
        self.inputs: list[str] = []

    def pick(self, low: int, high: int) -> int:
        """A random whole number of ``low..high``."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def chance(self, share: float) -> bool:
        return float(torch.rand((), generator=self.generator)) < share

    def program(self, *outputs: str) -> Program:
        return Program(dict(self.values), tuple(self.ops), tuple(self.inputs), outputs)

    def batch(self, size: int) -> list[Tensor]:
        """Random inputs, with NaN, infinities and ties among the floats."""
        tensors = []
        for name in self.inputs:
            value = self.values[name]
            if value.kind == "codes":
                tensors.append(
                    torch.randint(0, 256, (size, *value.shape), generator=self.generator, dtype=torch.uint8)
                )
                continue
            x = torch.randn(size, *value.shape, generator=self.generator) * 2
            flat = x.view(-1)
            for i, special in enumerate((float("nan"), float("inf"), -float("inf"), 0.025, 1e30)):
                flat[(7 * i) % flat.numel()] = special
            tensors.append(x)
        return tensors

    # ----------------------------------------------------------------------------------------- values
    def _value(self, kind: str, shape: tuple[int, ...]) -> str:
        name = f"v{len(self.values)}"
        self.values[name] = Value(kind, shape)
        return name

    def float_input(self, *shape: int) -> str:
        name = self._value("float", shape)
        self.inputs.append(name)
        return name

    def codes_input(self, *shape: int) -> str:
        name = self._value("codes", shape)
        self.inputs.append(name)
        return name

    def _emit(
        self,
        kind: str,
        inputs: tuple[str, ...],
        value: tuple[str, tuple[int, ...]],
        attributes: dict,
        tensors: dict,
    ) -> str:
        output = self._value(*value)
        self.ops.append(Op(kind, f"{kind}{len(self.ops)}", inputs, output, attributes, tensors))
        return output

    def _clamp(self) -> dict[str, int]:
        zero = self.pick(0, 255)
        low, high = (zero, 255) if self.chance(0.4) else (0, self.pick(max(zero, 40), 255))
        return {"y_zero": zero, "low": low, "high": high}

    # -------------------------------------------------------------------------------------------- ops
    def quantize(self, x: str) -> str:
        shape = self.values[x].shape
        rows = (*shape[1:], shape[0]) if len(shape) == 3 else (*(1,) * (3 - len(shape)), *shape)
        zero = self.pick(0, 255)
        attributes = {
            "scale": 0.01 + 0.05 * self.pick(0, 3),
            "zero_point": zero,
            "low": self.pick(0, 3),
            "high": 255,
        }
        return self._emit("quantize", (x,), ("codes", rows), attributes, {})

    def dequantize(self, x: str, rank: int = 3) -> str:
        h, w, c = self.values[x].shape
        shape = {3: (c, h, w), 2: (w, c), 1: (c,)}[rank]
        return self._emit(
            "dequantize", (x,), ("float", shape), {"scale": 0.037, "zero_point": self.pick(0, 255)}, {}
        )

    def conv(
        self,
        x: str,
        n: int,
        kernel: tuple[int, int] = (1, 1),
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        residual: str | None = None,
        float_rank: int | None = None,
        bits: int = 8,
        x_zero: int | None = None,
    ) -> str:
        h, w, c = self.values[x].shape
        taps = kernel[0] * kernel[1] * (c // groups)
        signed = self.chance(0.5)
        low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
        codes = torch.randint(low, high + 1, (n, taps), generator=self.generator)
        tensors = {}
        zero = torch.zeros(n, dtype=torch.int32)
        if not signed:
            zero = torch.full((n,), 1 << (bits - 1), dtype=torch.int32)
            tensors["weight_zero"] = zero
        tensors["weight"] = pack(codes, bits, zero)
        # Scales that spread the results over some 200 codes.
        spread = 80 * (1 << (bits - 1)) * 0.6 * max(taps, 1) ** 0.5
        tensors["multiplier"] = (torch.rand(n, generator=self.generator) + 0.3) * 60 / spread
        tensors["bias"] = torch.randn(n, generator=self.generator) * 30
        oh = (h + padding[0] + padding[2] - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
        ow = (w + padding[1] + padding[3] - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
        attributes = {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
            "kernel": kernel,
            "x_zero": self.zero_of(x) if x_zero is None else x_zero,
            "weight_bits": bits,
            "weight_signed": signed,
        }
        if float_rank is not None:
            shape = {3: (n, oh, ow), 2: (ow, n), 1: (n,)}[float_rank]
            return self._emit("conv", (x,), ("float", shape), attributes, tensors)
        attributes |= self._clamp()
        inputs = (x,)
        if residual is not None:
            inputs = (x, residual)
            attributes |= {"residual_zero": self.zero_of(residual), "residual_scale": 0.7}
        return self._emit("conv", inputs, ("codes", (oh, ow, n)), attributes, tensors)

    def zero_of(self, x: str) -> int:
        """The zero point of a value: its producer's, or an arbitrary one."""
        for op in self.ops:
            if op.output == x:
                return op.attributes.get("y_zero", op.attributes.get("zero_point", 17))
        return 17

    def add(self, a: str, b: str) -> str:
        attributes = {
            "a_zero": self.zero_of(a),
            "a_scale": 0.61,
            "b_zero": self.zero_of(b),
            "b_scale": 0.83,
            **self._clamp(),
        }
        return self._emit("add", (a, b), ("codes", self.values[a].shape), attributes, {})

    def avg_pool(self, x: str, window: tuple[int, int], stride: tuple[int, int]) -> str:
        h, w, c = self.values[x].shape
        shape = ((h - window[0]) // stride[0] + 1, (w - window[1]) // stride[1] + 1, c)
        scaling = {"x_zero": self.zero_of(x), "multiplier": 1.1 / (window[0] * window[1])}
        attributes = {"window": window, "stride": stride, **scaling, **self._clamp()}
        return self._emit("avg_pool", (x,), ("codes", shape), attributes, {})

    def max_pool(
        self, x: str, window: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int, int, int]
    ) -> str:
        h, w, c = self.values[x].shape
        oh = (h + padding[0] + padding[2] - window[0]) // stride[0] + 1
        ow = (w + padding[1] + padding[3] - window[1]) // stride[1] + 1
        attributes = {"window": window, "stride": stride, "padding": padding}
        return self._emit("max_pool", (x,), ("codes", (oh, ow, c)), attributes, {})

    def lookup(self, x: str) -> str:
        table = torch.randint(0, 256, (256,), generator=self.generator, dtype=torch.uint8)
        return self._emit("lookup", (x,), ("codes", self.values[x].shape), {}, {"table": table})

    def flatten(self, x: str) -> str:
        h, w, c = self.values[x].shape
        return self._emit("flatten", (x,), ("codes", (1, 1, h * w * c)), {}, {})

    def aten(self, x: str, op: str, attrs: dict) -> str:
        return self._emit("aten", (x,), ("float", self.values[x].shape), {"op": op, "attrs": attrs}, {})


def random_conv(seed: int) -> tuple[Program, list[Tensor]]:
    """One convolution of random geometry between codes, or codes and floats."""
    writer = Writer(seed)
    kernel = (writer.pick(1, 7), writer.pick(1, 7))
    stride = (writer.pick(1, 3), writer.pick(1, 3))
    dilation = (writer.pick(1, 2), writer.pick(1, 2))
    padding = tuple(writer.pick(0, k - 1) for k in (*kernel, *kernel))
    least = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    h, w = (max(1, size - p) + writer.pick(0, 9) for size, p in zip(least, padding, strict=False))
    kind = writer.pick(0, 3)
    if kind == 0:
        c = n = groups = writer.pick(1, 50)
    elif kind == 1:
        groups = writer.pick(2, 5)
        c, n = groups * writer.pick(1, 7), groups * writer.pick(1, 21)
    else:
        groups, c, n = 1, writer.pick(1, 40), writer.pick(1, 67)
    x = writer.codes_input(h, w, c)
    to_float = writer.chance(0.2)
    bits = writer.pick(2, 8)
    residual = None
    if not to_float and writer.chance(0.3):
        size = [
            (extent + padding[i] + padding[i + 2] - least[i]) // stride[i] + 1
            for i, extent in enumerate((h, w))
        ]
        residual = writer.codes_input(*size, n)
    y = writer.conv(x, n, kernel, stride, padding, dilation, groups, residual, 3 if to_float else None, bits)
    return writer.program(y), writer.batch(writer.pick(1, 3))


def random_network(seed: int) -> tuple[Program, list[Tensor]]:
    """Some ten ops with residuals and branches, floats or codes in and out, a float detour in the middle."""
    writer = Writer(seed)
    size, channels = writer.pick(7, 14), writer.pick(1, 5)
    x = writer.quantize(writer.float_input(channels, size, size + 1))
    x = writer.conv(x, writer.pick(3, 40), (3, 3), (1, 1), (1, 1, 1, 1))
    tap = x
    for _ in range(writer.pick(2, 4)):
        c = writer.values[x].shape[2]
        wide = writer.conv(x, writer.pick(5, 70), bits=writer.pick(2, 8))
        n = writer.values[wide].shape[2]
        deep = writer.conv(wide, n, (3, 5), (1, 1), (1, 2, 1, 2), groups=n)
        narrow = writer.conv(deep, c, residual=x if writer.chance(0.6) else None)
        x = writer.add(narrow, x) if writer.chance(0.5) else narrow
        if writer.chance(0.3):
            x = writer.lookup(x)
    if writer.chance(0.4):
        x = writer.quantize(writer.dequantize(x))
    pooled = writer.max_pool(x, (3, 3), (2, 2), (1, 1, 0, 1))
    pooled = writer.avg_pool(pooled, (2, 2), (1, 1))
    flat = writer.flatten(pooled)
    logits = writer.conv(flat, writer.pick(1, 20), float_rank=1)
    return writer.program(logits, tap, pooled, writer.dequantize(x), flat), writer.batch(writer.pick(1, 3))
