"""The file of an integer program: one safetensors file with a JSON header, all of it under a SHA-256.

The metadata has one entry, ``"pyquant"``, so that equal programs give equal files: JSON text with
``version``, ``header`` and ``sha256`` of the header's canonical form. The header holds ``program`` (values,
ops with the key of each tensor), ``info`` (any JSON) and ``tensors`` (key -> SHA-256 of dtype, shape and
bytes). safetensors alone would take most altered bytes for other weights. Nothing is ever pickled.

The last tensor, ``section``, is the same program as :mod:`pyquant.ops.section` writes it, over the tensors before it: what
programs without Python load (csrc/include/pyquant.h). Those read neither JSON nor the header, only its length: the section
ends the file, and its own last bytes say where it begins. A file without one, of an earlier pyquant, is as good to Python.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pyquant.errors import CheckpointError
from pyquant.files import write_whole
from pyquant.runtime.program import Op, Program, Value
from pyquant.runtime.section import file_section
from pyquant.runtime.validate import validate

FORMAT, VERSION = "pyquant", 1
# The keys of all other tensors have a dot.
SECTION = "section"
# JSON has no such numbers, and ATen arguments (a mask's -inf) do.
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def save(program: Program, path: str | os.PathLike[str], info: Mapping[str, Any]) -> None:
    """Write a program to one file; on any failure the folder is as it was.

    Args:
        program: the integer program.
        path: the file to write or replace, in a folder that exists.
        info: any JSON to keep with it: figures, the plan, the recipe.

    Raises:
        CheckpointError: ``info`` has no JSON form, or the file cannot be written.
    """
    target = _file(path)
    tensors = {f"{op.output}.{role}": tensor for op in program.ops for role, tensor in op.tensors.items()}
    # Tensors of a file may not share memory, as those of a module called twice do.
    tensors = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    layout, data = _laid_out(tensors)
    section = file_section(program, {key: layout[key]["data_offsets"] for key in tensors}, data)
    tensors[SECTION] = torch.frombuffer(bytearray(section), dtype=torch.uint8)
    header = _encode(
        {
            "program": _program_json(program),
            "info": info,
            "tensors": {key: digest(tensor) for key, tensor in tensors.items()},
        },
        "the header",
    )
    envelope = _canonical({"version": VERSION, "sha256": _header_digest(header), "header": header})
    layout["__metadata__"] = {FORMAT: envelope}
    ends = [len(data), len(data) + len(section)]
    layout[SECTION] = {"dtype": "U8", "shape": [len(section)], "data_offsets": ends}
    text = json.dumps(layout, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    _write(target, len(text).to_bytes(8, "little") + text + data + section)


def load(path: str | os.PathLike[str]) -> tuple[Program, dict[str, Any]]:
    """Read a program back, each byte checked.

    Args:
        path: a file that :func:`save` wrote.

    Returns:
        The program, validated, and the ``info`` it was saved with.

    Raises:
        CheckpointError: there is no such file, it is truncated, altered, of another format or a newer
            version, or its program makes no sense.
    """
    path = _file(path)
    tensors, metadata = _read(path)
    if FORMAT not in metadata:
        raise CheckpointError(f"{path} is a safetensors file of another format; give one that pyquant saved.")
    try:
        envelope = json.loads(metadata[FORMAT])
        version, header = envelope["version"], envelope["header"]
        altered = _header_digest(header) != envelope["sha256"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has an altered header: it is no JSON; copy the file again.") from error
    if version != VERSION:
        raise CheckpointError(
            f"{path} has format version {version!r} and this pyquant reads version {VERSION}; "
            "use the pyquant that wrote it."
        )
    if altered:
        raise CheckpointError(
            f"{path} has an altered header: its SHA-256 does not match; copy the file again."
        )
    try:
        header = _decode(header)
        expected, info = dict(header["tensors"]), dict(header["info"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} has a header that is not pyquant's ({error!r}); save it again."
        ) from error
    _check_tensors(path, tensors, expected)
    try:
        program = _program(header["program"], tensors)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path} has a header that describes no program ({error!r}); save it again."
        ) from error
    try:
        validate(program)
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be run: {error}") from error
    return program, info


def _canonical(item: Any) -> str:
    return json.dumps(item, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _header_digest(header: Any) -> str:
    return hashlib.sha256(_canonical(header).encode()).hexdigest()


def digest(tensor: Tensor) -> str:
    """SHA-256 of a contiguous CPU tensor: dtype and shape too, for the file's own header has no checksum."""
    start = f"{tensor.dtype} {list(tensor.shape)} ".encode()
    return hashlib.sha256(start + tensor.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


# --------------------------------------------------------------------------------------------------- the file
def _file(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike) or not Path(path).name:
        raise CheckpointError(f"{path!r} names no file; give a path such as 'model.pq'.")
    return Path(path)


def _write(path: Path, data: bytes) -> None:
    try:
        write_whole(path, data)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written: {error.strerror}; give a file in a folder that may be written."
        ) from error


def _laid_out(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], bytes]:
    """Where safetensors puts each tensor, as its header says it, and the bytes behind its header."""
    plain = safetensors.torch.save(dict(tensors))
    begin = 8 + int.from_bytes(plain[:8], "little")
    return json.loads(plain[8:begin]), plain[begin:]


def _read(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """Tensors and metadata. The file is read, not mapped: what was checked cannot change later."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; give a file that pyquant saved.") from None
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}; give a file that pyquant saved."
        ) from error
    try:
        tensors = safetensors.torch.load(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    except (SafetensorError, KeyError, ValueError, RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is no whole safetensors file ({reason}): it is truncated, altered or of another kind."
        ) from error
    return tensors, metadata


def _check_tensors(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, str]) -> None:
    for key in expected.keys() - tensors.keys():
        raise CheckpointError(f"{path} lacks the tensor {key!r}; copy the file again.")
    for key in tensors.keys() - expected.keys():
        raise CheckpointError(
            f"{path} has a tensor {key!r} that its header does not list; copy the file again."
        )
    for key, tensor in tensors.items():
        if digest(tensor) != expected[key]:
            raise CheckpointError(
                f"{path} has an altered tensor {key!r}: its SHA-256 does not match; copy the file again."
            )


# ------------------------------------------------------------------------------------------------- the header
def _program_json(program: Program) -> dict[str, Any]:
    ops = [
        {
            "kind": op.kind,
            "name": op.name,
            "inputs": op.inputs,
            "output": op.output,
            "attributes": op.attributes,
            "tensors": {role: f"{op.output}.{role}" for role in op.tensors},
        }
        for op in program.ops
    ]
    # A list, for the order of values is part of a program and JSON objects are sorted.
    values = [
        {"name": name, "kind": value.kind, "shape": value.shape} for name, value in program.values.items()
    ]
    return {"values": values, "ops": ops, "inputs": program.inputs, "outputs": program.outputs}


def _program(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Program:
    values = {
        _name(item["name"]): Value(_name(item["kind"]), tuple(item["shape"])) for item in header["values"]
    }
    ops = []
    for item in header["ops"]:
        attributes = dict(item["attributes"])
        if item["kind"] != "aten":
            attributes = {
                name: tuple(value) if isinstance(value, list) else value for name, value in attributes.items()
            }
        op_tensors = {role: tensors[key] for role, key in item["tensors"].items()}
        inputs = tuple(_name(name) for name in item["inputs"])
        ops.append(
            Op(
                _name(item["kind"]),
                _name(item["name"]),
                inputs,
                _name(item["output"]),
                attributes,
                op_tensors,
            )
        )
    inputs, outputs = (tuple(_name(name) for name in header[side]) for side in ("inputs", "outputs"))
    return Program(values, tuple(ops), inputs, outputs)


def _name(item: Any) -> str:
    if not isinstance(item, str):
        raise TypeError(f"{item!r} is no name")
    return item


def _encode(item: Any, where: str) -> Any:
    if item is None or isinstance(item, bool | int | str):
        return item
    if isinstance(item, float):
        return item if math.isfinite(item) else {"$float": str(item)}
    if isinstance(item, list | tuple):
        return [_encode(part, where) for part in item]
    if isinstance(item, Mapping) and all(isinstance(key, str) for key in item):
        return {key: _encode(part, f"{where}[{key!r}]") for key, part in item.items()}
    raise CheckpointError(
        f"{where} holds a {type(item).__name__}, which has no JSON form; "
        "use numbers, strings, lists, and dicts with string keys."
    )


def _decode(item: Any) -> Any:
    if isinstance(item, list):
        return [_decode(part) for part in item]
    if isinstance(item, dict):
        if item.keys() == {"$float"}:
            return _NOT_FINITE[item["$float"]]
        return {key: _decode(part) for key, part in item.items()}
    return item
