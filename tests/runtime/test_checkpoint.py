"""Files: the same bytes back, every altered bit noticed, nothing left behind by a failure."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from pyquant.errors import CheckpointError
from pyquant.ops.backend import missing
from pyquant.runtime import checkpoint
from pyquant.runtime.checkpoint import load, save
from pyquant.runtime.compare import same_bytes
from pyquant.runtime.execute_reference import ReferenceExecutor
from pyquant.runtime.net import Net
from pyquant.runtime.program import Program
from tests.runtime.small_networks import inputs_of, program

CASES = (
    "residual_blocks-asymmetric", "pools_then_linear-w4a4", "silu_lookups-w8a8", "called_twice-w8a8",
    "split-w8a8",
    "mask-w8a8", "two_outputs-w8a8", "two_inputs-w4a4", "functional_calls-w8a8", "residual_blocks-excluded",
)  # fmt: skip
CASE = "conv_bn_relu_chain-w235"
INFO = {"plan": {"0": [2, 8]}, "top1": 0.75, "notes": [None, True, "ünïcode"], "loss": math.inf}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save(program(CASE), tmp_path / "net.pq", INFO)
    return tmp_path / "net.pq"


def refused(path: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(path)
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text and all(word in text for word in words), text
    assert str(path) in text


def same_program(a: Program, b: Program) -> bool:
    def plain(given: Program) -> Any:
        ops = [
            (op.kind, op.name, op.inputs, op.output, json.dumps(op.attributes))
            for op in map(sorted_op, given.ops)
        ]
        return list(given.values.items()), ops, given.inputs, given.outputs

    def sorted_op(op: Any) -> Any:
        return type(op)(
            op.kind, op.name, op.inputs, op.output, json.loads(json.dumps(op.attributes, sort_keys=True))
        )

    tensors = all(
        x.tensors.keys() == y.tensors.keys()
        and all(same_bytes(x.tensors[r], y.tensors[r]) for r in x.tensors)
        for x, y in zip(a.ops, b.ops, strict=True)
    )
    return tensors and plain(a) == plain(b)


# ----------------------------------------------------------------------------------------------- round trips
@pytest.mark.parametrize("case", CASES)
def test_round_trip(case: str, tmp_path: Path) -> None:
    save(program(case), tmp_path / "net.pq", {})
    again, info = load(tmp_path / "net.pq")
    assert info == {} and same_program(program(case), again)
    inputs = inputs_of(case, 3)
    for a, b in zip(
        ReferenceExecutor(program(case))(*inputs), ReferenceExecutor(again)(*inputs), strict=True
    ):
        assert same_bytes(a, b)
    if missing("cpu") is None:
        out = Net(again, backend="cpu", threads=1)(*inputs)
        for a, b in zip(
            ReferenceExecutor(again)(*inputs), (out,) if isinstance(out, torch.Tensor) else out, strict=True
        ):
            assert same_bytes(a, b)


def test_info_comes_back(saved: Path) -> None:
    assert load(saved)[1] == INFO


def test_the_same_program_gives_the_same_file(saved: Path) -> None:
    save(program(CASE), saved.with_name("other.pq"), dict(reversed(INFO.items())))
    assert saved.read_bytes() == saved.with_name("other.pq").read_bytes()


def test_saving_replaces(saved: Path) -> None:
    save(program("called_twice-w8a8"), saved, {})
    assert same_program(load(saved)[0], program("called_twice-w8a8"))
    assert os.listdir(saved.parent) == ["net.pq"]


def test_loading_needs_no_python_model(saved: Path) -> None:
    torch.save(inputs_of(CASE, 2)[0], saved.with_name("x.pt"))
    code = (
        "import sys, torch; from pyquant.runtime.net import load;"
        "x = torch.load(sys.argv[2], weights_only=True); y = load(sys.argv[1], backend='reference')(x);"
        "import hashlib; print(hashlib.sha256(y.numpy().tobytes()).hexdigest(), 'tests' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(saved), str(saved.with_name("x.pt"))],
        capture_output=True, text=True, check=True, cwd=Path(checkpoint.__file__).parents[2],
    )  # fmt: skip
    (want,) = ReferenceExecutor(program(CASE))(*inputs_of(CASE, 2))
    assert done.stdout.split() == [hashlib.sha256(want.numpy().tobytes()).hexdigest(), "False"]


# ------------------------------------------------------------------------------------------------ corruption
def test_every_flipped_bit_is_noticed(saved: Path) -> None:
    good = saved.read_bytes()
    generator = torch.Generator().manual_seed(1)
    bits = torch.randint(0, 8 * len(good), (600,), generator=generator).tolist() + list(range(8 * 24))
    harmless = 0
    for bit in bits:
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        saved.write_bytes(data)
        try:
            again, info = load(saved)
        except CheckpointError as error:
            assert str(error).endswith(".") and "\n" not in str(error)
            continue
        harmless += 1
        assert info == INFO and same_program(again, program(CASE)), bit
    # Only the blanks that pad safetensors' own header may change.
    assert harmless <= len(bits) // 100


def test_truncated_and_longer_files(saved: Path) -> None:
    good = saved.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(good) // 2, len(good) - 300, len(good) - 1):
        saved.write_bytes(good[:length])
        refused(saved, "safetensors")
    saved.write_bytes(good + b"\0")
    refused(saved, "safetensors")


def test_missing_files_folders_and_other_files(tmp_path: Path) -> None:
    refused(tmp_path / "none.pq", "does not exist")
    refused(tmp_path, "cannot be read")
    refused(tmp_path / "none.pq" / "deeper")
    (tmp_path / "text.pq").write_text("a text that is no network, and long enough to have a header length")
    refused(tmp_path / "text.pq", "safetensors")
    torch.save({"a": torch.zeros(3)}, tmp_path / "pickle.pt")
    refused(tmp_path / "pickle.pt", "safetensors")
    safetensors.torch.save_file({"a": torch.zeros(3)}, tmp_path / "other.safetensors")
    refused(tmp_path / "other.safetensors", "another format")
    safetensors.torch.save_file({"a": torch.zeros(3)}, tmp_path / "pt.safetensors", {"format": "pt"})
    refused(tmp_path / "pt.safetensors", "another format")


def rewrite(
    path: Path,
    header: Callable[[dict[str, Any]], object] = lambda header: None,
    tensors: Callable[[dict[str, torch.Tensor]], object] = lambda tensors: None,
    seal: bool = True,
    **envelope: Any,
) -> None:
    """Write a file anew with changes, its header's SHA-256 made to fit unless ``seal`` is false."""
    stored = safetensors.torch.load(path.read_bytes())
    with safetensors.safe_open(path, "pt") as file:
        kept = json.loads(file.metadata()["pyquant"])
    header(kept["header"])
    tensors(stored)
    if seal:
        text = json.dumps(kept["header"], sort_keys=True, separators=(",", ":"))
        kept["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_bytes(safetensors.torch.save(stored, {"pyquant": json.dumps({**kept, **envelope})}))


def test_an_unchanged_rewrite_loads(saved: Path) -> None:
    rewrite(saved)
    assert load(saved)[1] == INFO


def test_newer_versions(saved: Path) -> None:
    rewrite(saved, version=2)
    refused(saved, "version 2", "reads version 1")


def test_altered_headers(saved: Path) -> None:
    rewrite(saved, header=lambda h: h["info"].update(top1=0.99), seal=False)
    refused(saved, "altered header")


def test_altered_tensors(saved: Path) -> None:
    rewrite(
        saved, tensors=lambda t: t["0.bias"].add_(1.0) if "0.bias" in t else next(iter(t.values())).add_(1)
    )
    refused(saved, "altered tensor")


def test_tensors_of_another_type_with_the_same_bytes(saved: Path) -> None:
    def retype(tensors: dict[str, torch.Tensor]) -> None:
        key = next(key for key in tensors if key.endswith(".bias"))
        tensors[key] = tensors[key].view(torch.int32)

    rewrite(saved, tensors=retype)
    refused(saved, "altered tensor")


def test_missing_and_extra_tensors(saved: Path) -> None:
    good = saved.read_bytes()
    rewrite(saved, tensors=lambda t: t.pop(sorted(t)[0]))
    refused(saved, "lacks the tensor")
    saved.write_bytes(good)
    rewrite(saved, tensors=lambda t: t.update(more=torch.zeros(1)))
    refused(saved, "'more'")


def test_headers_that_describe_no_program(saved: Path) -> None:
    good = saved.read_bytes()

    def forget(h: dict[str, Any]) -> None:
        h["program"]["ops"][0].pop("kind")

    changes: list[Callable[[dict[str, Any]], object]] = [
        lambda h: h.pop("program"),
        lambda h: h.pop("info"),
        lambda h: h.pop("tensors"),
        lambda h: h.update(tensors=3),
        lambda h: h.update(info=[1]),
        lambda h: h.update(program=[]),
        forget,
        lambda h: h["program"]["ops"][1]["tensors"].update(bias="nowhere"),
        lambda h: h["program"]["ops"][1].update(name=7),
        lambda h: h["program"].update(ops=[1]),
        lambda h: h["program"].update(values=None),
        lambda h: h["program"]["ops"][1]["attributes"].update(stride=[0, 0]),
        lambda h: h["program"]["ops"][1].update(kind="python"),
        lambda h: h["program"]["ops"][0]["attributes"].update(scale={"$float": "nan"}),
        lambda h: h["program"]["ops"][0]["attributes"].update(scale={"$float": "other"}),
    ]
    for change in changes:
        saved.write_bytes(good)
        rewrite(saved, header=change)
        refused(saved)


def test_no_target_outside_the_whitelist_is_run(tmp_path: Path) -> None:
    path = tmp_path / "net.pq"
    save(program("mask-w8a8"), path, {})

    def evil(h: dict[str, Any]) -> None:
        op = next(op for op in h["program"]["ops"] if op["kind"] == "aten")
        op["attributes"]["attrs"]["target"] = "aten.from_file.default"

    rewrite(path, header=evil)
    refused(path, "aten.from_file.default")


# --------------------------------------------------------------------------------------------- failed writes
@pytest.mark.parametrize("name", ["replace", "fsync"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_folder_as_it_was(
    name: str, error: BaseException, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = saved.read_bytes()

    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(checkpoint.os, name, fail)
    with pytest.raises(CheckpointError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        save(program("called_twice-w8a8"), saved, {})
    monkeypatch.undo()
    assert os.listdir(saved.parent) == ["net.pq"] and saved.read_bytes() == good
    if isinstance(error, OSError):
        assert "No space left" in str(caught.value) and str(caught.value).endswith(".")


def test_the_file_is_synced_before_it_is_named_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            checkpoint.os, name, lambda *a, real=real, name=name: (calls.append(name), real(*a))[1]
        )
    save(program(CASE), tmp_path / "net.pq", {})
    assert calls == ["fsync", "replace", "fsync"]


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    def fails(path: Path) -> None:
        with pytest.raises(CheckpointError) as caught:
            save(program(CASE), path, {})
        assert str(caught.value).endswith(".") and str(path) in str(caught.value)

    fails(tmp_path / "none" / "net.pq")
    (tmp_path / "folder").mkdir()
    fails(tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"]
    (tmp_path / "folder").chmod(0o500)
    if not os.access(tmp_path / "folder", os.W_OK):
        fails(tmp_path / "folder" / "net.pq")
    (tmp_path / "folder").chmod(0o700)
    assert os.listdir(tmp_path / "folder") == []


@pytest.mark.parametrize("path", [None, 3, b"net.pq", ["net.pq"], "", Path()])
def test_what_names_no_file(path: Any) -> None:
    for attempt in (lambda: load(path), lambda: save(program(CASE), path, {})):
        with pytest.raises(
            CheckpointError, match=r"^[^\n]* names no file; give a path such as 'model.pq'\.$"
        ) as caught:
            attempt()
        assert repr(path) in str(caught.value)


@pytest.mark.parametrize("info", [{"x": torch.zeros(1)}, {"x": {1: 2}}, {"x": [object()]}, {"x": {1, 2}}])
def test_info_without_a_json_form(info: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no JSON form.*\.$"):
        save(program(CASE), tmp_path / "net.pq", info)
    assert os.listdir(tmp_path) == []
