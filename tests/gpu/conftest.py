"""The CUDA kernels, built for a CPU once for all tests."""

from __future__ import annotations

import os

import pytest

from tests.gpu.executor import COMPILER, SANITIZE, Executor


@pytest.fixture(scope="session")
def executor(tmp_path_factory: pytest.TempPathFactory) -> Executor:
    """The kernels of this checkout, as a library for this machine; sanitized where the process is."""
    if COMPILER is None:
        pytest.skip("no C++ compiler is on PATH to build the CUDA kernels' executor with")
    flags = SANITIZE if "PQ_SANITIZED" in os.environ else ()
    return Executor(tmp_path_factory.mktemp("executor"), flags=flags)
