"""The program in a file for those without Python: where it lies, what it holds, and files from before."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch

from pyquant.errors import BackendError
from pyquant.ops.backend import extension, missing
from pyquant.ops.section import MAGIC, VERSION, SectionData, SectionWriter
from pyquant.runtime.checkpoint import load, save
from pyquant.runtime.execute_cpu import CpuExecutor
from pyquant.runtime.section import file_section
from tests.runtime.random_program import Writer
from tests.runtime.small_networks import program
from tests.runtime.test_checkpoint import rewrite, same_program

needs_cpu = pytest.mark.skipif(missing("cpu") is not None, reason=str(missing("cpu")))
CASE = "silu_lookups-w4a4"


def parts(path: Path) -> tuple[dict[str, Any], bytes, bytes]:
    """Header, data and section of a file, by the section's own account."""
    file = path.read_bytes()
    begin = 8 + int.from_bytes(file[:8], "little")
    section = struct.unpack("<I", file[-16:-12])[0]
    return json.loads(file[8:begin]), file[begin:-section], file[-section:]


@pytest.mark.parametrize("case", [CASE, "residual_blocks-asymmetric", "mask-w8a8"])
def test_the_section_ends_the_file_and_refers_to_the_tensors_before_it(case: str, tmp_path: Path) -> None:
    path = tmp_path / "net.pq"
    save(program(case), path, {})
    header, data, section = parts(path)
    assert section[-8:] == MAGIC and zlib.crc32(section[:-12]) == struct.unpack("<I", section[-12:-8])[0]
    assert struct.unpack("<4IQI", section[:28])[0::4] == (VERSION, len(data))
    ends = {
        key: item["data_offsets"] for key, item in header.items() if key not in ("__metadata__", "section")
    }
    assert section == file_section(program(case), ends, data)
    with safetensors.safe_open(path, "pt") as file:
        assert bytes(file.get_tensor("section").tolist()) == section
        for key, (begin, end) in ends.items():
            tensor = file.get_tensor(key)
            assert data[begin:end] == tensor.numpy().tobytes()
    # Each tensor once.
    assert len(data) == sum(t.nbytes for op in program(case).ops for t in op.tensors.values())


def test_a_file_from_before_sections_loads(tmp_path: Path) -> None:
    path = tmp_path / "net.pq"
    save(program(CASE), path, {"top1": 0.5})
    rewrite(path, lambda header: header["tensors"].pop("section"), lambda tensors: tensors.pop("section"))
    again, info = load(path)
    assert info == {"top1": 0.5} and same_program(program(CASE), again)


def written(**attributes: Any) -> tuple[SectionWriter, SectionData]:
    writer, data = SectionWriter(), SectionData()
    writer.input("x", "codes", (4, 4, 2))
    tensors = {
        "weight": torch.zeros(3, 2, dtype=torch.int32),
        "multiplier": torch.ones(3),
        "bias": torch.zeros(3),
    }
    fields = {
        "kernel": (2, 2), "stride": (1, 1), "padding": (0, 0, 1, 1), "dilation": (1, 1), "groups": 1, "x_zero": 3,
        "weight_bits": 8, "weight_signed": True, "y_zero": 9, "low": 0, "high": 255, **attributes,
    }  # fmt: skip
    places = {role: data.add(tensor) for role, tensor in tensors.items()}
    writer.op("conv", "first", ("x",), ("y", "codes", (4, 4, 3)), fields, places)
    return writer, data


@needs_cpu
def test_the_engine_refuses_what_is_altered() -> None:
    writer, data = written()
    section, tensors = data.finish(writer, ("y",))
    engine = extension().Engine  # type: ignore[union-attr]
    engine(section, tensors)
    for i in range(len(section)):
        with pytest.raises(ValueError, match=r"altered|no section"):
            engine(section[:i] + bytes([section[i] ^ 4]) + section[i + 1 :], tensors)
    for i in range(len(tensors)):
        with pytest.raises(ValueError, match="altered data"):
            engine(section, tensors[:i] + bytes([tensors[i] ^ 4]) + tensors[i + 1 :])
    with pytest.raises(ValueError, match="data of another size"):
        engine(section, tensors + b"\0")


@needs_cpu
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight_bits": 9}, "weight_bits=9"),
        ({"weight_bits": 2}, "weight of 24 bytes; its shapes ask for 12"),
        ({"groups": 2}, "groups that do not divide"),
        ({"low": 200, "high": 100}, "high=100; it should be 200..255"),
        ({"stride": (0, 1)}, "stride=0"),
        ({"stride": (2, 1)}, "another shape than its value"),
        ({"kernel": (9, 9)}, "window that does not fit"),
        ({"padding": (0, 0, 65537, 1)}, "padding=65537"),
        ({"residual_scale": 0.5}, "scale of no residual"),
        ({"x_zero": 256}, "x_zero=256"),
    ],
)
def test_the_engine_says_which_op_makes_no_sense(change: dict[str, Any], words: str) -> None:
    writer, data = written(**change)
    with pytest.raises(ValueError, match=f"^op 'first' .*{words}"):
        extension().Engine(*data.finish(writer, ("y",)))  # type: ignore[union-attr]


@needs_cpu
def test_what_does_not_fit_its_word_is_refused() -> None:
    writer = Writer(0)
    x = writer.codes_input(4, 4, 3)
    given = writer.program(writer.avg_pool(x, (2, 2), (1, 1)))
    given.ops[0].attributes["multiplier"] = 1e300
    with pytest.raises(BackendError, match="too large"):
        CpuExecutor(given)
