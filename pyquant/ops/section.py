"""The program section: an integer program as bytes, which the C++ engine loads. Written here, read in csrc/engine/section.cpp.

Everything is 32-bit little-endian words: a float is the word of its bits, a name its length in bytes and then its UTF-8, filled up
with zeros to whole words, a 64-bit number its low word and its high one.

========  ==================================================================================================
head      version, number of inputs, of ops, of outputs, bytes of data (64 bits), CRC-32 of the data.
input     name, value.
op        kind (its place in :data:`KINDS`), name, value it makes, number of values it reads, their indices, its fields in the order
          of :data:`FIELDS` (0 where it has none), then of each of its :data:`TENSORS` the first byte and the number of bytes
          (64 bits each) in the data.
output    name, index of its value.
foot      bytes of the whole section, CRC-32 of all before this word, :data:`MAGIC`. Where a section ends a file, the last 16 bytes
          therefore tell where it begins.
========  ==================================================================================================

A value is its kind (0 codes, 1 float), its rank and its sizes without the batch, as in :mod:`pyquant.runtime.program`. Value ``i`` is
input ``i``, or what op ``i - inputs`` makes, so no op can read what is made later. The data are any bytes: what matters is that the
tensors are in them, little-endian.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

VERSION = 1
MAGIC = b"pq\x00prog\n"
KINDS = ("aten", "quantize", "dequantize", "conv", "add", "avg_pool", "max_pool", "lookup", "flatten")
_CLAMP = {"y_zero": "I", "low": "I", "high": "I"}
# Formats as of the struct module. Of an aten op the engine reads the name only, to refuse it by that.
FIELDS: Mapping[str, Mapping[str, str]] = {
    "aten": {},
    "quantize": {"scale": "f", "zero_point": "I", "low": "I", "high": "I"},
    "dequantize": {"scale": "f", "zero_point": "I"},
    "conv": {
        "kernel": "2I", "stride": "2I", "padding": "4I", "dilation": "2I", "groups": "I", "x_zero": "I",
        "weight_bits": "I", "weight_signed": "I", **_CLAMP, "residual_zero": "I", "residual_scale": "f",
    },
    "add": {"a_zero": "I", "a_scale": "f", "b_zero": "I", "b_scale": "f", **_CLAMP},
    "avg_pool": {"window": "2I", "stride": "2I", "x_zero": "I", "multiplier": "f", **_CLAMP},
    "max_pool": {"window": "2I", "stride": "2I", "padding": "4I"},
    "lookup": {},
    "flatten": {},
}  # fmt: skip
TENSORS: Mapping[str, tuple[str, ...]] = {
    "conv": ("weight", "weight_zero", "multiplier", "bias"),
    "lookup": ("table",),
}

# First byte and number of bytes of a tensor in the data.
Extent = tuple[int, int]
NOWHERE: Extent = (0, 0)


class SectionWriter:
    """Writes one section: first the inputs, then the ops in the order they run, then :meth:`finish`."""

    def __init__(self) -> None:
        self._index: dict[str, int] = {}
        self._inputs: list[bytes] = []
        self._ops: list[bytes] = []

    def input(self, name: str, kind: str, shape: Sequence[int]) -> None:
        """Declare an input: ``kind`` is ``"codes"`` or ``"float"``, ``shape`` leaves out the batch."""
        self._index[name] = len(self._index)
        self._inputs.append(_name(name) + _value(kind, shape))

    def op(
        self,
        kind: str,
        name: str,
        inputs: Sequence[str],
        output: tuple[str, str, Sequence[int]],
        attributes: Mapping[str, Any],
        tensors: Mapping[str, Extent],
    ) -> None:
        """Add an op that makes ``output``: a value's name, kind and shape. Raises struct.error or OverflowError
        if an attribute does not fit its word."""
        parts = [_words(KINDS.index(kind)), _name(name), _value(*output[1:]), _words(len(inputs))]
        parts += [_words(self._index[value]) for value in inputs]
        parts += [_field(form, attributes.get(field, 0)) for field, form in FIELDS[kind].items()]
        parts += [struct.pack("<2Q", *tensors.get(role, NOWHERE)) for role in TENSORS.get(kind, ())]
        self._index[output[0]] = len(self._index)
        self._ops.append(b"".join(parts))

    def finish(self, outputs: Sequence[str], data_bytes: int, data_checksum: int) -> bytes:
        """The section of a program that gives ``outputs``, for data of this size and CRC-32."""
        counts = (len(self._inputs), len(self._ops), len(outputs))
        head = struct.pack("<4IQI", VERSION, *counts, data_bytes, data_checksum)
        ends = [_name(name) + _words(self._index[name]) for name in outputs]
        body = b"".join([head, *self._inputs, *self._ops, *ends])
        body += _words(len(body) + 8 + len(MAGIC))
        return body + _words(zlib.crc32(body)) + MAGIC


class SectionData:
    """Tensors one after the other, in memory."""

    def __init__(self) -> None:
        self.data = bytearray()

    def add(self, tensor: Tensor) -> Extent:
        """Append a CPU tensor; returns where it is."""
        begin = len(self.data)
        self.data += tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return begin, len(self.data) - begin

    def finish(self, writer: SectionWriter, outputs: Sequence[str]) -> tuple[bytes, bytearray]:
        """Section and data, as ``_C.Engine`` takes them."""
        return writer.finish(outputs, len(self.data), zlib.crc32(self.data)), self.data


def _words(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def _name(name: str) -> bytes:
    text = name.encode()
    return _words(len(text)) + text + bytes(-len(text) % 4)


def _value(kind: str, shape: Sequence[int]) -> bytes:
    return _words(("codes", "float").index(kind), len(shape), *shape)


def _field(form: str, value: Any) -> bytes:
    items = value if isinstance(value, list | tuple) else (value,) * int(form[:-1] or 1)
    return struct.pack("<" + form, *(items if form.endswith("f") else map(int, items)))
