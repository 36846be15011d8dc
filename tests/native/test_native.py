"""Programs in C++ that test the library from outside, and the thread pool from inside. `make sanitize` runs them, for
longer, under the sanitizers of the compiler."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pyquant.ops.backend import missing
from pyquant.runtime.embed import include
from tests.native.samples import write_samples

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COMPILER = shutil.which("c++")
LIBRARY = ROOT / "pyquant" / "libpyquant.so"
pytestmark = pytest.mark.skipif(
    missing("cpu") is not None or COMPILER is None or not LIBRARY.exists(),
    reason="libpyquant.so or a compiler is missing",
)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_samples(tmp_path_factory.mktemp("samples"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Builds a native test and runs it; returns what it prints."""
    folder = tmp_path_factory.mktemp("native")

    def build_and_run(name: str, *arguments: object) -> str:
        command = [
            str(COMPILER), "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", str(HERE / f"{name}.cpp"),
            str(ROOT / "csrc/cpu/threads.cpp"), "-I", include(), "-I", str(ROOT / "csrc"), str(LIBRARY),
            f"-Wl,-rpath,{LIBRARY.parent}", "-o", str(folder / name),
        ]  # fmt: skip
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stderr
        words = [str(folder / name), *map(str, arguments)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, f"{done.returncode}: {done.stderr}"
        return done.stdout

    return build_and_run


def test_the_thread_pool(run: Callable[..., str]) -> None:
    assert run("thread_pool") == "fine\n"


def test_a_run_allocates_nothing_but_the_first(run: Callable[..., str], samples: list[Path]) -> None:
    assert run("no_allocation", *samples) == "fine\n"


def test_eight_callers_get_what_one_gets(run: Callable[..., str], samples: list[Path]) -> None:
    assert run("concurrent_runs", *samples) == "fine\n"


def test_a_malformed_section_is_refused_or_runs(run: Callable[..., str], samples: list[Path]) -> None:
    """Within seconds, 2,000 rounds of random damage, and few megabytes."""
    assert run("fuzz_section", 120, 2000, samples[0]).startswith("refused ")
