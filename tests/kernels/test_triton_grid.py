"""The Triton home of the grid, in Triton's interpreter; its own process, as the mode is fixed at import."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_bytes_equal_the_reference():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed; pip install 'pyquant-engine[gpu]'")
    script = Path(__file__).with_name("grid_in_interpreter.py")
    run = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_pyquant_imports_without_triton():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import pyquant, pyquant.kernels, pyquant.ops.fake_quantize\n"
        "try:\n    import pyquant.kernels.grid\n"
        "except ImportError:\n    raise SystemExit(0)\n"
        "raise SystemExit('pyquant.kernels.grid was imported without triton')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
