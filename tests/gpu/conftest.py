"""The CUDA kernels, built for a CPU and written as PTX, once for all tests; and what the emulator tells besides their being green."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.gpu.emulated_cuda import NVCC, compile_ptx
from tests.gpu.executor import COMPILER, SANITIZE, Executor

TOLD = pytest.StashKey[list[str]]()


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Has a line printed at the end of the run: coverage, mutants caught."""
    return request.config.stash.setdefault(TOLD, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    told = config.stash.get(TOLD, [])
    if told:
        terminalreporter.section("compiled GPU kernels on the emulator")
        terminalreporter.write_line("\n".join(told))


@pytest.fixture(scope="session")
def executor(tmp_path_factory: pytest.TempPathFactory) -> Executor:
    """The kernels of this checkout, as a library for this machine; sanitized where the process is."""
    if COMPILER is None:
        pytest.skip("no C++ compiler is on PATH to build the CUDA kernels' executor with")
    flags = SANITIZE if "PQ_SANITIZED" in os.environ else ()
    return Executor(tmp_path_factory.mktemp("executor"), flags=flags)


@pytest.fixture(scope="session")
def ptx(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What nvcc makes of this checkout's kernels for sm_80."""
    if NVCC is None:
        pytest.skip("nvcc is not on PATH: nothing writes the CUDA kernels' PTX")
    return compile_ptx(tmp_path_factory.mktemp("ptx"))
