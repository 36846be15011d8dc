"""Triton's launches: on the device of their tensors, and one sentence where they fail."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from pyquant.errors import BackendError, ShapeError
from pyquant.ops import backend
from pyquant.ops.triton_guard import guarded
from tests.ops.test_devices import OPS

X = SimpleNamespace(device=torch.device("cuda", 1))


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """The devices that were made the current one, innermost last."""
    entered: list[torch.device] = []

    @contextmanager
    def device(which: torch.device):
        entered.append(which)
        try:
            yield
        finally:
            entered.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    return entered


def test_a_launch_is_on_the_device_of_its_tensors(current: list[torch.device]) -> None:
    launch = guarded("double", lambda plan, x, times: (plan, x, times, *current))
    assert launch("a tile", X, 3) == ("a tile", X, 3, torch.device("cuda", 1)) and current == []
    x = torch.ones(2)
    assert launch("a tile", x, 3) == ("a tile", x, 3)


def test_planned_kernels_of_triton_are_guarded(
    current: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_kernels", {})
    monkeypatch.setattr(backend, "_plans", {})
    monkeypatch.setattr(backend, "missing", lambda name: None)
    for name in ("triton", "cuda"):
        backend.register("double", name, lambda device, x: "a tile")(lambda plan, x: list(current))
    assert backend.choose("double", "cuda:1", "triton", (X,)).kernel(X) == [torch.device("cuda", 1)]
    assert backend.choose("double", "cuda:1", "cuda", (X,)).kernel(X) == []


FAILURES = {
    "Triton Error [CUDA]: out of memory": (
        r"cuda:1 has no memory left for double by triton \(Triton Error \[CUDA\]: out of memory\); free tensors, or"
    ),
    "Triton Error [CUDA]: an illegal memory access was encountered": (
        r"double: Triton could not launch a tile on cuda:1 \(Triton Error \[CUDA\]: an illegal memory access .*\); use"
    ),
}


@pytest.mark.parametrize("said", FAILURES)
def test_a_failed_launch_is_one_sentence(current: list[torch.device], said: str) -> None:
    def fail(plan: str, x: object) -> None:
        raise RuntimeError(said)

    with pytest.raises(BackendError, match=FAILURES[said]) as caught:
        guarded("double", fail)("a tile", X)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".") and current == []


def test_a_tile_that_does_not_fit_is_one_sentence(current: list[torch.device]) -> None:
    errors = pytest.importorskip("triton.runtime.errors", reason="pip install 'pyquant-engine[gpu]'")

    def fail(plan: str, x: object) -> None:
        raise errors.OutOfResources(262_144, 101_376, "shared memory")

    sentence = (
        r"^double: cuda:1 cannot hold a tile \(out of resource: shared memory, Required: 262144, Hardware limit: 101376\); "
        r"use backend='cuda' or backend='reference'\.$"
    )
    with pytest.raises(BackendError, match=sentence):
        guarded("double", fail)("a tile", X)


@pytest.mark.parametrize(
    "error", [ShapeError("x is empty."), RuntimeError("Expected all tensors"), ValueError("no")]
)
def test_other_errors_pass(current: list[torch.device], error: Exception) -> None:
    def fail(plan: str, x: object) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        guarded("double", fail)("a tile", X)
    assert caught.value is error


@pytest.mark.parametrize("op", OPS)
def test_an_unsupported_architecture_names_who_serves(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="pip install 'pyquant-engine[gpu]'")
    monkeypatch.setattr(backend, "missing", lambda name: "not built" if name == "cuda" else None)
    monkeypatch.setattr(backend, "architecture", lambda device: "sm_75")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    sentence = (
        rf"^backend='triton' cannot serve {op} on sm_75: cuda:0 is a sm_75; Triton kernels are there for sm_80, .*, gfx942; "
        r"use reference\.$"
    )
    with pytest.raises(BackendError, match=sentence):
        backend.choose(op, "cuda:0", "triton", OPS[op])
    assert backend.choose(op, "cuda:0", "auto", OPS[op]).backend == "reference"
