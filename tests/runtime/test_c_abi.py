"""The C library: Python's bytes without Python, refusals instead of faults, and a C program that is built and run."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import threading
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

import pyquant as pq
from pyquant import zoo
from pyquant.ops.backend import extension, missing
from pyquant.runtime.checkpoint import save
from pyquant.runtime.compare import same_bytes
from pyquant.runtime.execute_cpu import CpuExecutor
from pyquant.runtime.net import Net
from tests.runtime import c_library as clib
from tests.runtime.c_library import CProgram, Description, Refused, c
from tests.runtime.random_program import random_network
from tests.runtime.small_networks import CASES, inputs_of, program

ROOT = Path(__file__).resolve().parents[2]
COMPILER = shutil.which("cc")
pytestmark = pytest.mark.skipif(
    missing("cpu") is not None or not (ROOT / "pyquant" / "libpyquant.so").exists(),
    reason="libpyquant.so is not built",
)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler is on PATH")
ISAS = extension().available_isas() if extension() is not None else []
CASE = "pools_then_linear-w4a4"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("c") / "net.pq"
    save(program(CASE), path, {})
    return path


# ------------------------------------------------------------------------------------------------- same bytes
@pytest.mark.parametrize("case", CASES)
def test_every_network_gives_pythons_bytes_or_names_its_float_node(case: str, tmp_path: Path) -> None:
    path = tmp_path / "net.pq"
    save(program(case), path, {})
    floats = [op.name for op in program(case).ops if op.kind == "aten"]
    if floats:
        with pytest.raises(Refused, match=re.escape(f"'{floats[0]}' runs in floating point")) as caught:
            CProgram(path)
        assert caught.value.status == clib.BAD_PROGRAM
        return
    inputs = inputs_of(case, 3)
    want = Net(program(case), backend="cpu", threads=1)(*inputs)
    got = CProgram(path)(*inputs, threads=2)
    assert all(map(same_bytes, got, want if isinstance(want, tuple) else (want,)))


@pytest.mark.parametrize("isa", ISAS)
def test_codes_images_and_several_outputs(isa: str, tmp_path: Path) -> None:
    for seed in range(12):
        given, inputs = random_network(seed)
        save(given, tmp_path / "net.pq", {})
        loaded = CProgram((tmp_path / "net.pq").read_bytes(), isa)
        assert c().pq_isa(loaded.handle).decode() == isa
        assert all(map(same_bytes, loaded(*inputs), CpuExecutor(given, threads=1)(*inputs)))


def test_descriptions(tmp_path: Path) -> None:
    given, _ = random_network(1)
    save(given, tmp_path / "net.pq", {})
    loaded = CProgram(tmp_path / "net.pq")
    for names, described in ((given.inputs, loaded.inputs()), (given.outputs, loaded.outputs())):
        for name, tensor in zip(names, described, strict=True):
            value = given.values[name]
            assert tensor.name.decode() == name and tensor.sizes() == value.shape
            assert tensor.dtype == (0 if value.kind == "float" else 1)
            assert tensor.layout == (0 if len(value.shape) < 3 else 1 if value.kind == "float" else 2)


def test_eight_threads_on_one_program(saved: Path) -> None:
    loaded, x = CProgram(saved), inputs_of(CASE, 4)[0]
    (want,) = loaded(x)
    wrong = []

    def call(threads: int) -> None:
        wrong.extend(i for i in range(30) if not same_bytes(loaded(x, threads=threads)[0], want))

    callers = [threading.Thread(target=call, args=(1 + i % 2,)) for i in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_runs_after_a_fork(saved: Path) -> None:
    loaded, x = CProgram(saved), inputs_of(CASE, 4)[0]
    (want,) = loaded(x, threads=2)
    child = os.fork()
    if child == 0:
        os._exit(0 if same_bytes(loaded(x, threads=2)[0], want) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert same_bytes(loaded(x, threads=2)[0], want)


# --------------------------------------------------------------------------------------------------- refusals
def test_files_that_are_none(saved: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "none.pq", tmp_path):
        with pytest.raises(Refused, match=re.escape(f"'{path}' cannot be read: ")) as caught:
            CProgram(path)
        assert caught.value.status == clib.BAD_FILE
    data = saved.read_bytes()
    for other in (b"", b"text", bytes(400), data + b"\0", data[: -int.from_bytes(data[-16:-12], "little")]):
        with pytest.raises(Refused, match="no whole file of pyquant's, or one from before") as caught:
            CProgram(other)
        assert caught.value.status == clib.BAD_PROGRAM


def test_every_flipped_bit_is_noticed(saved: Path) -> None:
    data, x = saved.read_bytes(), inputs_of(CASE, 2)[0]
    (want,) = CProgram(data)(x)
    # The JSON behind the first eight bytes is not read.
    begin = 8 + int.from_bytes(data[:8], "little")
    bits = torch.randint(
        8 * begin, 8 * len(data), (1500,), generator=torch.Generator().manual_seed(1)
    ).tolist()
    for bit in [*range(64), *bits]:
        altered = bytearray(data)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Refused) as caught:
            CProgram(bytes(altered))
        assert caught.value.status == clib.BAD_PROGRAM, bit
    altered = bytearray(data)
    altered[begin - 20] ^= 1
    assert same_bytes(CProgram(bytes(altered))(x)[0], want)


def test_truncated_files(saved: Path) -> None:
    data = saved.read_bytes()
    for length in range(0, len(data), 97):
        for part in (data[:length], data[len(data) - length :]):
            with pytest.raises(Refused) as caught:
                CProgram(part)
            assert caught.value.status == clib.BAD_PROGRAM


def test_bad_arguments(saved: Path) -> None:
    lib, loaded, x = c(), CProgram(saved), inputs_of(CASE, 1)[0]
    place, y = ctypes.c_void_p(), torch.zeros(1, 5)
    inputs, outputs = clib.addresses([x]), clib.addresses([y])
    tensor = ctypes.byref(Description())
    some = (ctypes.c_void_p * 1)(None)
    for status, words in (
        (lambda: lib.pq_load(None, None, ctypes.byref(place)), "path is null"),
        (lambda: lib.pq_load(b"a", None, None), "address of the program is null"),
        (lambda: lib.pq_load(str(saved).encode(), b"sse9", ctypes.byref(place)), "instruction set 'sse9'"),
        (lambda: lib.pq_load_memory(None, 3, None, ctypes.byref(place)), "bytes of the file are null"),
        (lambda: lib.pq_input(loaded.handle, 1, tensor), "no input or output"),
        (lambda: lib.pq_output(loaded.handle, -1, tensor), "no input or output"),
        (lambda: lib.pq_output(loaded.handle, 0, None), "tensor is null"),
        (lambda: lib.pq_input(None, 0, tensor), "program is null"),
        (lambda: lib.pq_output(None, 0, tensor), "program is null"),
        (lambda: lib.pq_run(None, 1, inputs, outputs, 1), "program is null"),
        (lambda: lib.pq_run(loaded.handle, 0, inputs, outputs, 1), "batch"),
        (lambda: lib.pq_run(loaded.handle, 1 << 40, inputs, outputs, 1), "batch"),
        (lambda: lib.pq_run(loaded.handle, 1, inputs, outputs, 0), "threads"),
        (lambda: lib.pq_run(loaded.handle, 1, None, outputs, 1), "input is null"),
        (lambda: lib.pq_run(loaded.handle, 1, some, outputs, 1), "input is null"),
        (lambda: lib.pq_run(loaded.handle, 1, inputs, some, 1), "output is null"),
    ):
        assert status() == clib.BAD_ARGUMENT and words in lib.pq_last_error().decode(), words
    lib.pq_free(None)
    assert lib.pq_input_count(None) == lib.pq_output_count(None) == 0 and lib.pq_isa(None) == b""


def test_the_last_error_is_this_threads(saved: Path) -> None:
    with pytest.raises(Refused, match=r"none\.pq"):
        CProgram(saved.with_name("none.pq"))

    def elsewhere() -> None:
        with pytest.raises(Refused, match=r"other\.pq"):
            CProgram(saved.with_name("other.pq"))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "none.pq" in c().pq_last_error().decode()


# ------------------------------------------------------------------------------------------- the library itself
def test_version_and_instruction_sets() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert c().pq_version().decode() == pyproject["project"]["version"]
    header = (ROOT / "csrc" / "include" / "pyquant.h").read_text(encoding="utf-8")
    assert f"#define PQ_ABI_VERSION {c().pq_abi_version()}\n" in header
    assert c().pq_isas().decode().split(",") == ISAS


@pytest.mark.skipif(shutil.which("readelf") is None, reason="no readelf")
def test_the_library_is_small_and_needs_nothing_of_python() -> None:
    path = pq.library()
    assert Path(path).stat().st_size < 3e6

    def elf(what: str) -> str:
        return subprocess.run(
            ["readelf", "-W", what, path], capture_output=True, text=True, check=True
        ).stdout

    needed = re.findall(r"NEEDED.*\[(.+?)\]", elf("-d"))
    assert needed and all(
        re.match(r"(libstdc\+\+|libm|libgcc_s|libc|libpthread|ld-linux.*)\.so", name) for name in needed
    )
    rows = [line.split() for line in elf("--dyn-syms").splitlines()]
    exported = {
        row[7] for row in rows if len(row) > 7 and row[6] != "UND" and row[4] != "LOCAL" and row[0] != "Num:"
    }
    assert exported == set(re.findall(r"\b(pq_\w+)\(", (ROOT / "csrc/include/pyquant.h").read_text()))


# ----------------------------------------------------------------------------------------------- the C program
@pytest.fixture(scope="module")
def classify(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("bin") / "classify"
    folder = str(Path(pq.library()).parent)
    command = [
        str(COMPILER), "-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", str(ROOT / "csrc/examples/classify.c"),
        "-I", pq.include(), "-L", folder, "-lpyquant", f"-Wl,-rpath,{folder}", "-o", str(built),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return built


@needs_compiler
def test_a_c_program_gives_resnet20s_scores(classify: Path, tmp_path: Path) -> None:
    images = torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(4))
    net = pq.deploy(pq.calibrate(pq.prepare(zoo.load("resnet20"), images[:1]), [images]), backend="cpu")
    net.save(tmp_path / "net.pq")
    for image in images:
        image.numpy().tofile(tmp_path / "image.f32")
        done = subprocess.run(
            [classify, tmp_path / "net.pq", tmp_path / "image.f32", "10"],
            capture_output=True,
            text=True,
            check=True,
        )
        rows = [line.split() for line in done.stdout.splitlines()]
        want = net(image[None])[0]
        scores = torch.empty(10)
        for index, score in rows:
            scores[int(index)] = float(np.float32(score))
        assert same_bytes(scores, want)
        assert [int(index) for index, _ in rows] == sorted(range(10), key=lambda i: (-want[i].item(), i))


@needs_compiler
@pytest.mark.skipif(shutil.which("ldd") is None, reason="no ldd")
def test_the_c_program_is_linked_with_neither_python_nor_torch(classify: Path) -> None:
    linked = subprocess.run(["ldd", classify], capture_output=True, text=True, check=True).stdout
    assert str(Path(pq.library())) in linked
    assert not re.search(r"python|torch|c10|gomp|mkl", linked.replace(str(ROOT), ""), re.IGNORECASE)


@needs_compiler
def test_the_c_program_says_what_is_wrong(classify: Path, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "short.f32").write_bytes(bytes(8))

    def says(*words: object) -> str:
        done = subprocess.run([classify, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 1 and done.stdout == ""
        return done.stderr

    assert "give a saved network" in says()
    assert "cannot be read" in says(tmp_path / "none.pq", "x", "1")
    assert "another size" in says(saved, tmp_path / "short.f32", "1")
    assert "image cannot be read" in says(saved, tmp_path / "none.f32", "1")
