"""What the engine's loader refuses: one section for each of its checks, whose checksums fit."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyquant.ops.backend import extension, missing
from pyquant.ops.section import MAGIC, SectionData, SectionWriter

pytestmark = pytest.mark.skipif(missing("cpu") is not None, reason=str(missing("cpu")))
CLAMP = {"y_zero": 9, "low": 0, "high": 255}
POINT = {
    "kernel": (1, 1), "stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1, "x_zero": 3,
    "weight_bits": 8, "weight_signed": True, **CLAMP,
}  # fmt: skip


class Draft:
    """A section of which any part may be wrong."""

    def __init__(self) -> None:
        self.writer, self.tensors, self.outputs = SectionWriter(), SectionData(), ("y",)
        self.places: dict[str, tuple[int, int]] = {}
        self.edit: Callable[[bytes], bytes] = lambda body: body

    def codes(self, *shape: int, name: str = "x") -> Draft:
        self.writer.input(name, "codes", shape)
        return self

    def floats(self, *shape: int, name: str = "x") -> Draft:
        self.writer.input(name, "float", shape)
        return self

    def tensor(self, **tensors: Tensor) -> Draft:
        self.places |= {role: self.tensors.add(tensor) for role, tensor in tensors.items()}
        return self

    def op(
        self,
        kind: str,
        shape: tuple[int, ...],
        gives: str = "codes",
        inputs: tuple[str, ...] = ("x",),
        **fields: Any,
    ) -> Draft:
        self.writer.op(kind, "it", inputs, ("y", gives, shape), fields, self.places)
        return self

    def conv(
        self, rows: int, words: int, shape: tuple[int, ...], gives: str = "codes", **fields: Any
    ) -> Draft:
        own = {
            name: fields.pop(name)
            for name in ("weight", "multiplier", "bias", "weight_zero")
            if name in fields
        }
        inputs = fields.pop("inputs", ("x",))
        weight = torch.zeros(rows, words, dtype=torch.int32)
        self.tensor(**{"weight": weight, "multiplier": torch.ones(rows), "bias": torch.zeros(rows), **own})
        return self.op("conv", shape, gives, inputs, **{**POINT, **fields})

    def load(self) -> Any:
        section, data = self.tensors.finish(self.writer, self.outputs)
        body = self.edit(section[:-16])
        body += struct.pack("<I", len(body) + 16)
        section = body + struct.pack("<I", zlib.crc32(body)) + MAGIC
        return extension().Engine(section, data)  # type: ignore[union-attr]


def word(place: int, value: int) -> Callable[[bytes], bytes]:
    return lambda body: body[: 4 * place] + struct.pack("<I", value) + body[4 * place + 4 :]


def edited(draft: Draft, edit: Callable[[bytes], bytes]) -> Draft:
    draft.edit = edit
    return draft


def placed(draft: Draft, **places: tuple[int, int]) -> Draft:
    draft.places |= places
    return draft


def giving(draft: Draft, *outputs: str) -> Draft:
    draft.outputs = outputs
    return draft


def knowing(draft: Draft, name: str, index: int) -> Draft:
    draft.writer._index[name] = index
    return draft


def fine() -> Draft:
    """A 1 x 1 conv of three channels of two."""
    return Draft().codes(4, 4, 2).conv(3, 1, (4, 4, 3))


def two_shapes() -> Draft:
    return Draft().codes(4, 4, 2).codes(4, 3, 3, name="skip")


def quantize(**fields: Any) -> Draft:
    return (
        Draft().floats(5).op("quantize", (1, 1, 5), **{"scale": 0.5, "zero_point": 3, "high": 255, **fields})
    )


def pool(kind: str, shape: tuple[int, ...], gives: tuple[int, ...], **fields: Any) -> Draft:
    return Draft().codes(*shape).op(kind, gives, **fields)


AVERAGE = {"window": (2, 2), "stride": (1, 1), "multiplier": 0.25, **CLAMP}
REFUSALS = {
    "version": (edited(fine(), word(0, 2)), "format version 2 and this library reads version 1"),
    "many-ops": (edited(fine(), word(2, 1 << 15)), "number of ops=32768"),
    "no-ops": (edited(fine(), word(2, 0)), "number of ops=0"),
    "trailing": (edited(fine(), lambda body: body + bytes(4)), "goes on behind its last output"),
    "short": (edited(fine(), lambda body: body[:-4]), "ends too early"),
    "long-name": (edited(fine(), word(7, 1 << 30)), "name that is longer than the section"),
    "control-name": (Draft().codes(1, 1, 1, name="a\nb").op("flatten", (1, 1, 1), inputs=("a\nb",)), "control characters"),
    "rank": (Draft().codes(4, 4).conv(3, 1, (1, 4, 3)), "input 'x' has rank=2"),
    "large-value": (Draft().codes(1 << 16, 1 << 15, 1).op("flatten", (1, 1, 1 << 31)), "too large a value"),
    "size-0": (Draft().codes(4, 0, 2).conv(3, 1, (4, 4, 3)), "size=0"),
    "float-node": (Draft().floats(3).op("aten", (), "float"), "'it' runs in floating point"),
    "kind": (edited(fine(), word(14, 9)), "kind=9"),
    "reads-itself": (knowing(Draft().codes(4, 4, 2), "y", 1).conv(3, 1, (4, 4, 3), inputs=("y",)), "input=1; .*0..0"),
    "three-inputs": (fine().op("add", (4, 4, 3), inputs=("x", "x", "x")), "number of inputs=3"),
    "input-kind": (Draft().floats(2, 4, 4).conv(3, 1, (4, 4, 3)), "a value of the wrong kind"),
    "output-kind": (Draft().codes(1, 1, 2).op("flatten", (2,), "float"), "gives the wrong kind of value"),
    "float-residual": (
        Draft().codes(4, 4, 2).codes(4, 4, 3, name="s").conv(3, 1, (3, 4, 4), "float", inputs=("x", "s")),
        "gives the wrong kind of value",
    ),
    "output-is-input": (giving(fine(), "x"), "output=0; it should be 1..1"),
    "shape": (Draft().codes(4, 4, 2).conv(3, 1, (4, 5, 3)), "another shape than its value"),
    "residual-shape": (two_shapes().conv(3, 1, (4, 4, 3), inputs=("x", "skip"), residual_scale=1.0), "another shape"),
    "residual-scale": (two_shapes().conv(3, 1, (4, 4, 3), inputs=("x", "skip")), "residual_scale that is no positive"),
    "clamp-of-float": (Draft().codes(4, 4, 2).conv(3, 1, (3, 4, 4), "float"), "clamp of a float=9"),
    "tensor-beyond": (placed(Draft().codes(1, 1, 1), table=(1, 256)).tensor(more=torch.zeros(64))
                      .op("lookup", (1, 1, 1)), "table outside the data"),
    "tensor-far": (placed(Draft().codes(1, 1, 1), table=(2**64 - 128, 256)).tensor(more=torch.zeros(64))
                   .op("lookup", (1, 1, 1)), "table outside the data"),
    "no-tensor": (Draft().codes(1, 1, 1).op("lookup", (1, 1, 1)), "has no table"),
    "bias-nan": (Draft().codes(4, 4, 2).conv(3, 1, (4, 4, 3), bias=torch.full((3,), float("nan"))), "bias .*finite"),
    "multiplier-size": (Draft().codes(4, 4, 2).conv(3, 1, (4, 4, 3), multiplier=torch.ones(2)), "ask for 12"),
    "zero-point": (
        Draft().codes(4, 4, 2).conv(3, 1, (4, 4, 3), weight_zero=torch.tensor([0, 300, 0], dtype=torch.int32)),
        "weight zero point of 300 outside its grid -128..127",
    ),
    "sums": (
        Draft().codes(1, 1, 70000).conv(1, 17500, (1, 1, 1), weight=torch.full((1, 17500), 0x7F7F7F7F, dtype=torch.int32)),
        "'it' sums K=70000 products",
    ),
    "padding": (
        Draft().codes(1, 1, 32768).conv(3, 8192, (3, 1, 3), padding=(65536, 0, 65536, 0), stride=(65536, 1)),
        "pads its input beyond measure",
    ),
    "growth": (
        Draft().codes(1001, 1, 65536).conv(65536, 1, (1, 1, 65536), kernel=(2, 1), dilation=(1000, 1), groups=65536),
        "grow beyond measure",
    ),
    "arena": (
        Draft().codes(1, 1, 1).conv(3, 1, (3, 20001, 20001), "float", y_zero=0, high=0, padding=(10000,) * 4),
        "more than 4 GiB an image",
    ),
    "scale-0": (quantize(scale=0.0), "scale that is no positive"),
    "scale-subnormal": (quantize(scale=1e-40), "scale that is no positive"),
    "scale-inf": (quantize(scale=float("inf")), "scale that is no positive"),
    "quantize-shape": (Draft().floats(5).op("quantize", (1, 1, 6), scale=0.5), "another shape"),
    "add-shapes": (
        two_shapes().op("add", (4, 4, 2), inputs=("x", "skip"), a_scale=1.0, b_scale=1.0),
        "another shape",
    ),
    "flatten": (pool("flatten", (2, 3, 4), (1, 1, 23)), "another shape"),
    "pool-fits": (pool("avg_pool", (1, 1, 2), (1, 1, 2), **AVERAGE), "window that does not fit"),
    "pool-sums": (
        pool("avg_pool", (4096, 4096, 1), (1, 1, 1), **{**AVERAGE, "window": (4096, 4096)}),
        "sums more codes than int32 holds",
    ),
    "pool-padding": (
        pool("max_pool", (4, 4, 2), (4, 3, 2), window=(2, 2), stride=(2, 2), padding=(2, 0, 2, 2)),
        "padding only",
    ),
}  # fmt: skip


def test_the_draft_itself_loads() -> None:
    assert fine().load().isa
    assert quantize().load() and pool("avg_pool", (3, 3, 2), (2, 2, 2), **AVERAGE).load()


@pytest.mark.parametrize(("draft", "words"), REFUSALS.values(), ids=REFUSALS)
def test_each_check_refuses_in_words(draft: Draft, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        draft.load()
    assert "\n" not in str(caught.value)
