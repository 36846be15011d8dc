"""The Triton kernels in Triton's interpreter: every kernel in its own process, as the mode is fixed at import."""

import importlib.util
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.gpu.interpreter import conv_s8, fake_quantize, gemm_s8, gemm_w4a8, gemm_w4a16, quantize_rows

ROOT = Path(__file__).resolve().parents[2]


@cache
def results(kernel: str) -> dict[str, str]:
    """Case -> what went wrong."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed; pip install 'pyquant-engine[gpu]'")
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.interpreter", kernel],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def assert_right(kernel: str, case: str) -> None:
    said = results(kernel)[case]
    assert not said, said


@pytest.mark.parametrize("case", gemm_s8.CASES)
def test_gemm_s8(case):
    assert_right("gemm_s8", case)


@pytest.mark.parametrize("case", [*fake_quantize.CASES, *fake_quantize.ON_A_GPU])
def test_fake_quantize(case):
    if case in fake_quantize.ON_A_GPU:
        pytest.skip(fake_quantize.WHY_ON_A_GPU)
    assert_right("fake_quantize", case)


@pytest.mark.parametrize("case", quantize_rows.CASES)
def test_quantize_rows(case):
    assert_right("quantize_rows", case)


@pytest.mark.parametrize("case", gemm_w4a8.CASES)
def test_gemm_w4a8(case):
    assert_right("gemm_w4a8", case)


@pytest.mark.parametrize("case", conv_s8.CASES)
def test_conv_s8(case):
    assert_right("conv_s8", case)


@pytest.mark.parametrize("case", [*gemm_w4a16.CASES, *gemm_w4a16.ON_A_GPU])
def test_gemm_w4a16(case):
    if case in gemm_w4a16.ON_A_GPU:
        pytest.skip(gemm_w4a16.WHY_ON_A_GPU)
    assert_right("gemm_w4a16", case)
