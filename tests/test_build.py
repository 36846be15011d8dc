"""The build: an extension wherever there is a compiler, a package that works without it, and a wheel that holds everything."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pyquant.ops.backend import extension

ROOT = Path(__file__).resolve().parents[1]
COMPILER = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
TORCH_HEADER = re.compile(r'^\s*#\s*include\s*[<"](torch|ATen|c10|caffe2)\b', re.MULTILINE)


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is on PATH, so the reference backend serves")
def test_a_compiler_means_an_extension():
    assert extension() is not None, (
        f"{COMPILER} is on PATH but pyquant._C is not built; run `pip install -v -e .`"
    )


def test_native_code_includes_no_torch_header():
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".h", ".cuh", ".cpp", ".cu"}]
    assert len(sources) > 10
    assert [path.name for path in sources if TORCH_HEADER.search(path.read_text(encoding="utf-8"))] == []
    assert TORCH_HEADER.search("  # include <torch/extension.h>\n")


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is on PATH")
@pytest.mark.parametrize("name", ["kernels_amx", "gemm_w4_amx", "kernels_avx_vnni", "gemm_w4_avx_vnni"])
def test_a_compiler_that_knows_no_newer_flag_compiles_their_sources(name, tmp_path):
    """setup.py then leaves the flags out."""
    words = [COMPILER, "-std=c++17", "-O1", "-Icsrc", "-c", f"csrc/cpu/{name}.cpp", "-o", str(tmp_path / "o")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


BLOCKED = """
import sys
sys.modules["pyquant._C"] = None
import torch
from torch import nn
import pyquant as pq
from pyquant.cli import main
from pyquant.errors import BackendError

torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
images = torch.randn(6, 3, 9, 9)
net = pq.quantize(model, images, pq.Recipe.nearest(0.25))
net.save("net.pq")
again = pq.load("net.pq")
assert again.choice.backend == "reference", again.choice
assert torch.equal(again(images), net(images))
assert (net(images) - model(images)).norm() < 0.1 * model(images).norm()
try:
    pq.load("net.pq", backend="cpu")
except BackendError as error:
    print(error)
else:
    raise AssertionError("a pinned backend that is not there served")
sys.exit(main(["backends"]))
"""


@pytest.mark.parametrize("compiler", [True, False], ids=["compiler", "no-compiler"])
def test_without_the_extension_everything_runs_on_the_reference(tmp_path, compiler):
    """And what is missing is said, with the reason and the remedy."""
    here, tools = tmp_path / "here", tmp_path / "tools"
    here.mkdir()
    tools.mkdir()
    if compiler:
        (tools / "g++").write_text("#!/bin/sh\n")
        (tools / "g++").chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED],
        capture_output=True,
        text=True,
        cwd=here,
        env={"PATH": str(tools), "COLUMNS": "300", "OMP_NUM_THREADS": "1"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    refusal, table = done.stdout.split("\n", 1)
    why = (
        "although g++ is on PATH; run `pip install -v .`"
        if compiler
        else "no C++ compiler is on PATH; install g++"
    )
    assert why in refusal and why in table
    rows = {
        line.split("│")[1].strip(): line.split("│")[2].strip()
        for line in table.splitlines()
        if line.count("│") > 2
    }
    assert rows["reference"] == "yes" and rows["cpu"] == "no"


INSTALLED = """
import pathlib, sys
import torch
import ctypes
import pyquant, pyquant.kernels
from pyquant import zoo
from pyquant.ops.backend import missing

home = pathlib.Path(sys.argv[1])
assert pathlib.Path(pyquant.__file__).is_relative_to(home), pyquant.__file__
assert missing("cpu") is None, missing("cpu")
model = zoo.load("resnet20")
images = torch.randn(4, 1, 28, 28)
net = pyquant.quantize(model, images, pyquant.Recipe.nearest(0.25), backend="cpu")
assert torch.equal(net(images), net.with_backend("reference")(images))
assert ctypes.CDLL(pyquant.library()).pq_abi_version() == 1
assert (pathlib.Path(pyquant.include()) / "pyquant.h").is_file() and pathlib.Path(pyquant.include()).is_relative_to(home)
print("fine")
"""


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is on PATH")
def test_a_wheel_holds_kernels_data_and_extension(tmp_path):
    """Built from what is committed, unpacked elsewhere, and run from an empty folder."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("this is not a git checkout, so there is no clean copy to build")
    source, wheels, home, empty = (tmp_path / name for name in ("source", "wheels", "home", "empty"))
    for folder in (source, empty):
        folder.mkdir()

    def run(*words: str, **options):
        done = subprocess.run(words, capture_output=True, text=True, timeout=900, check=False, **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(git, "-C", str(ROOT), "archive", "--output", str(tmp_path / "source.tar"), "HEAD")
    shutil.unpack_archive(tmp_path / "source.tar", source, filter="data")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "-w", str(wheels))
    run(sys.executable, "-m", "pip", "wheel", *options, ".", cwd=source)
    (wheel,) = wheels.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(home)
    kernels = sorted(path.name for path in (source / "kernels").glob("*.py"))
    assert sorted(Path(n).name for n in names if n.startswith("pyquant/kernels/")) == kernels
    assert {
        f"pyquant/zoo/{name}_fashion_mnist.safetensors" for name in ("resnet20", "mobilenet_v2_small")
    } <= set(names)
    assert "pyquant/zoo/tux_labels.json" in names
    assert any(re.fullmatch(r"pyquant/_C\..*\.so", name) for name in names)
    assert {"pyquant/libpyquant.so", "pyquant/include/pyquant.h"} <= set(names)
    assert not [n for n in names if n.startswith(("tests/", "bench/", "kernels/", "csrc/"))]
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(home), "OMP_NUM_THREADS": "1"}
    assert run(sys.executable, "-c", INSTALLED, str(home), cwd=empty, env=env) == "fine\n"
