"""Programs as sections: those of the regions that Python runs, and that of a whole file."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

from pyquant.ops.section import Extent, SectionWriter
from pyquant.runtime.program import Op, Program

_CLAMP = ("y_zero", "low", "high")


def write_section(
    program: Program, ops: Sequence[Op], inputs: Sequence[str], places: Sequence[Mapping[str, Extent]]
) -> SectionWriter:
    """Write inputs and ops of a program.

    Args:
        program: describes the values.
        ops: those to write, in an order they can run in.
        inputs: values that come from outside.
        places: of every op, where its tensors lie in the data.
    """
    writer = SectionWriter()
    for name in inputs:
        writer.input(name, program.values[name].kind, program.values[name].shape)
    for op, place in zip(ops, places, strict=True):
        value = program.values[op.output]
        attributes = op.attributes
        if op.kind == "conv" and value.kind == "float":
            attributes = {name: item for name, item in attributes.items() if name not in _CLAMP}
        writer.op(op.kind, op.name, op.inputs, (op.output, value.kind, value.shape), attributes, place)
    return writer


def file_section(program: Program, ends: Mapping[str, Sequence[int]], data: bytes) -> bytes:
    """The section of a file. The engine refuses one with float nodes, by the name of the first.

    Args:
        program: valid.
        ends: first byte in ``data`` of the tensor ``"<output>.<role>"``, and the first one behind it.
        data: all tensors of the file.
    """
    places = []
    for op in program.ops:
        extents = {role: ends[f"{op.output}.{role}"] for role in op.tensors}
        places.append({role: (begin, end - begin) for role, (begin, end) in extents.items()})
    writer = write_section(program, program.ops, program.inputs, places)
    return writer.finish(program.outputs, len(data), zlib.crc32(data))
