"""How a backend is chosen: by device and op, printable, and only `auto` may move on."""

import pytest
import torch

from pyquant.errors import BackendError
from pyquant.ops import backend


@pytest.fixture
def kernels(monkeypatch):
    """A table of its own with one op on two backends, both present."""
    table = {}
    monkeypatch.setattr(backend, "_kernels", table)
    monkeypatch.setattr(
        backend, "missing", {"reference": None, "cpu": None, "triton": "no GPU", "cuda": "no GPU"}.get
    )
    backend.register("double", "reference")(lambda x: x + x)
    backend.register("double", "cpu")(lambda x: 2 * x)
    return table


def test_auto_takes_the_best(kernels):
    choice = backend.choose("double", "cpu")
    assert choice.backend == "cpu" and choice.kernel is kernels["double", "cpu"]
    assert str(choice) == "double -> cpu (best of those available for cpu tensors)"


def test_auto_moves_on_when_the_best_is_missing(kernels, monkeypatch):
    monkeypatch.setattr(backend, "missing", lambda name: "not built" if name == "cpu" else None)
    assert backend.choose("double", "cpu").backend == "reference"


def test_auto_moves_on_when_the_best_does_not_serve_the_op(kernels):
    del kernels["double", "cpu"]
    assert backend.choose("double", "cpu").backend == "reference"


def test_auto_falls_back_to_the_reference_on_another_device(kernels):
    assert backend.choose("double", "meta").backend == "reference"
    assert backend.choose("double", torch.device("cuda")).backend == "reference"


def test_auto_with_nothing_left(kernels):
    kernels.clear()
    with pytest.raises(BackendError, match=r"double has no backend for cpu tensors; it has no backend\."):
        backend.choose("double", "cpu")


def test_pinned_is_taken_and_says_so(kernels):
    choice = backend.choose("double", "cpu", "reference")
    assert choice.kernel is kernels["double", "reference"]
    assert str(choice) == "double -> reference (pinned)"


def test_unknown_name(kernels):
    with pytest.raises(
        BackendError, match=r"backend='gpu' is unknown; use auto, reference, cpu, triton, cuda\."
    ):
        backend.choose("double", "cpu", "gpu")


def test_pinned_and_missing_raises_with_the_reason(kernels):
    with pytest.raises(BackendError, match=r"backend='triton' cannot serve double: no GPU\."):
        backend.choose("double", "cpu", "triton")


def test_pinned_without_the_op_raises(kernels):
    del kernels["double", "cpu"]
    with pytest.raises(BackendError, match=r"backend='cpu' does not serve double; use reference\."):
        backend.choose("double", "cpu", "cpu")


def test_pinned_to_the_wrong_device_raises(kernels):
    with pytest.raises(
        BackendError, match=r"backend='cpu' cannot serve double on cuda tensors; use cpu or reference\."
    ):
        backend.choose("double", "cuda", "cpu")


def test_missing_names_the_cure(monkeypatch):
    monkeypatch.setattr(backend, "extension", lambda: None)
    monkeypatch.setattr(backend.shutil, "which", lambda name: None)
    why = backend.missing.__wrapped__
    assert why("reference") is None
    assert "no C++ compiler is on PATH; install g++" in why("cpu")
    monkeypatch.setattr(backend.shutil, "which", lambda name: "/usr/bin/g++" if name == "g++" else None)
    assert "not built although g++ is on PATH" in why("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert why("triton") == why("cuda") == "no CUDA device is visible to torch"
