"""How a backend is chosen: by device and op, printable, and only `auto` may move on."""

import pytest
import torch

from pyquant.errors import BackendError, DTypeError
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
    with pytest.raises(
        BackendError, match=r"backend='triton' cannot serve double: no GPU; use reference or cpu\."
    ):
        backend.choose("double", "cpu", "triton")


def test_pinned_without_the_op_raises(kernels):
    del kernels["double", "cpu"]
    with pytest.raises(BackendError, match=r"backend='cpu' does not serve double; use reference\."):
        backend.choose("double", "cpu", "cpu")


def test_pinned_to_the_wrong_device_raises(kernels):
    with pytest.raises(
        BackendError, match=r"backend='cpu' cannot serve double on cuda tensors; use reference\."
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


def test_missing_names_the_cure_of_a_gpu(monkeypatch, tmp_path):
    why = backend.missing.__wrapped__
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    assert why("triton") == "Triton is not installed; run `pip install 'pyquant-engine[gpu]'`"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(backend.cuda_driver, "IMAGE", tmp_path / "image")
    assert why("cuda") == "the CUDA kernels are not built; reinstall pyquant-engine with nvcc on PATH"
    (tmp_path / "image").write_bytes(b"")

    def refuse():
        raise BackendError("there is no NVIDIA driver.")

    monkeypatch.setattr(backend.cuda_driver, "driver", refuse)
    assert why("cuda") == "there is no NVIDIA driver"
    monkeypatch.setattr(backend.cuda_driver, "driver", lambda: None)
    assert why("cuda") is None
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert why("cuda") == "it is for NVIDIA's devices, and torch sees AMD's; use triton"


def test_the_interpreter_serves_triton_on_the_cpu(kernels, monkeypatch):
    monkeypatch.setattr(backend, "missing", lambda name: None)
    backend.register("double", "triton")(lambda x: x)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(
        BackendError, match=r"backend='triton' cannot serve double on cpu tensors; use reference or cpu\."
    ):
        backend.choose("double", "cpu", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backend.choose("double", "cpu", "triton").backend == "triton"
    assert backend.choose("double", "cpu").backend == "cpu"


# ------------------------------------------------------------------------------------- plans: what a GPU's kernels serve
class Size(int):
    """Stands for a tensor, of which a launch asks the device."""

    device = torch.device("cpu")


@pytest.fixture
def planned(kernels, monkeypatch):
    """An op of a GPU: cuda serves up to 8 of sm_80, triton up to 64, the reference anything."""
    monkeypatch.setattr(backend, "_plans", {})
    monkeypatch.setattr(backend, "missing", lambda name: None)
    monkeypatch.setattr(backend, "architecture", lambda device: ("sm_80", "sm_75")[device.index or 0])
    ran = []

    def plan(limit):
        def plan_of(device, size):
            if backend.architecture(device) != "sm_80":
                raise backend.Unserved("the kernels begin with sm_80")
            if size > limit:
                raise backend.Unserved(f"size={size} is over {limit}")
            return f"{limit}-wide tile"

        return plan_of

    for name, limit in (("cuda", 8), ("triton", 64)):
        backend.register("double", name, plan(limit))(lambda *given, name=name: ran.append((name, *given)))
    return ran


def test_auto_moves_on_by_shape_and_by_architecture(planned):
    for size, device, served in ((8, 0, "cuda"), (9, 0, "triton"), (65, 0, "reference"), (8, 1, "reference")):
        choice = backend.choose("double", torch.device("cuda", device), arguments=(size,))
        assert choice.backend == served, (size, device)


def test_the_choice_names_the_configuration_and_launches_with_it(planned):
    choice = backend.choose("double", "cuda:0", "triton", (9,))
    assert str(choice) == "double -> triton with 64-wide tile (pinned)"
    choice.kernel(Size(9))
    assert planned == [("triton", "64-wide tile", 9)]
    backend.choose("double", "cuda:0", "cuda").kernel(3)
    assert planned[1:] == [("cuda", "8-wide tile", 3)]


def test_pinned_names_who_serves_the_shape(planned):
    with pytest.raises(
        BackendError,
        match=r"backend='cuda' cannot serve double on sm_80: size=9 is over 8; use reference or triton\.",
    ):
        backend.choose("double", "cuda:0", "cuda", (9,))
    with pytest.raises(
        BackendError, match=r"backend='triton' .* on sm_75: the kernels begin with sm_80; use reference\."
    ):
        backend.choose("double", "cuda:1", "triton", (9,))
    with pytest.raises(BackendError, match=r"cannot serve this call on sm_80: size=9 is over 8\."):
        backend.choose("double", "cuda:0", "cuda").kernel(9)


def test_auto_with_nothing_left_says_why_not(planned, kernels):
    del kernels["double", "reference"], kernels["double", "cuda"]
    with pytest.raises(
        BackendError, match=r"no backend for cuda tensors \(cuda: does not serve double; triton: .*over 64"
    ):
        backend.choose("double", "cuda:0", arguments=(65,))


def test_tensors_on_two_devices_are_refused_before_any_kernel_reads_them(kernels):
    one, other = torch.ones(2), torch.ones(2, device="meta")
    backend.register("sum", "cpu")(lambda x, scale, y: x + y)
    assert backend.run("sum", "cpu", one, 2, one).tolist() == [2, 2]
    with pytest.raises(
        DTypeError, match=r"sum was given tensors on cpu and on meta; move them to one device\."
    ):
        backend.run("sum", "cpu", one, 2, other)
