"""The CUDA kernels over many shapes drawn at random, and once more with the compiler's sanitizers built in."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pyquant.ops.cuda_configurations import KERNELS
from tests.gpu import test_executor_gemm_s8 as s8
from tests.gpu import test_executor_low_bit as low_bit
from tests.gpu import test_executor_w4a16 as w4a16
from tests.gpu.executor import COMPILER, CSRC

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def shapes(kernel, count=40):
    """M, N and K around the kernel's tile, and seeds."""
    draw = random.Random(kernel.entry)
    m, n, k = kernel.tile
    for seed in range(count):
        yield draw.randint(1, 2 * m + 1), draw.randint(1, n + 9), draw.randint(1, 5 * k), seed


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k.op.startswith("gemm_s8")], ids=lambda k: k.entry)
def test_gemm_s8(executor, kernel):
    for m, n, k, seed in shapes(kernel):
        case = s8.drawn(m, n, k, seed)
        if kernel.op == "gemm_s8":
            got = s8.run_codes(executor, kernel, *case, seed, 3, 0, 255, seed=seed)
            want = s8.gemm_s8(*case, x_zero=seed, y_zero=3, low=0, high=255, backend="reference")
        else:
            got = s8.run_floats(executor, kernel, *case, seed, seed=seed).view(torch.int32)
            want = s8.gemm_s8_float(*case, x_zero=seed, backend="reference").view(torch.int32)
        assert torch.equal(got, want), (m, n, k)


@pytest.mark.parametrize(("kernel", "group_size"), low_bit.LOW_BIT, ids=lambda v: getattr(v, "entry", str(v)))
def test_low_bit(executor, kernel, group_size):
    for m, n, drawn_k, seed in shapes(kernel, 20):
        k = drawn_k if group_size is None else (drawn_k // group_size + 1) * group_size
        signed, bits, zeros, x_zeros = (
            bool(seed % 2),
            2 + seed % 3,
            ("none", "each")[seed // 2 % 2],
            seed % 5 > 2,
        )
        case = low_bit.drawn(kernel, (m, n, k), group_size, signed, bits, zeros, x_zeros, seed)
        got = low_bit.run(executor, kernel, case, k, group_size, signed, bits, seed)
        assert low_bit.same_bytes(got, low_bit.wanted(kernel, case, k, group_size, signed, bits)), (m, n, k)


@pytest.mark.parametrize("kernel", w4a16.MULTIPLY, ids=lambda k: k.entry)
def test_w4a16(executor, kernel):
    for m, n, drawn_k, seed in shapes(kernel):
        group_size = kernel.group_sizes[seed % 4]
        k = drawn_k if group_size is None else (drawn_k // group_size + 1) * group_size
        signed, zeros, splits = bool(seed % 2), ("none", "each")[seed // 2 % 2], 1 + seed % 5
        case = w4a16.weights(n, k, group_size, signed, 4, zeros, seed)
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(m, k, generator=generator).to(w4a16.HALF[w4a16.dtype_of(kernel)])
        got = w4a16.run(executor, kernel, x, case, group_size, signed, 4, splits, seed)
        want, terms = w4a16.exact(x, case, group_size, signed, 4)
        assert w4a16.within_the_bound(got, want, terms, k, case["scale"].shape[1], splits), (m, n, k, splits)


def under_sanitizers(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own with AddressSanitizer and UndefinedBehaviorSanitizer loaded first."""
    found = [
        subprocess.run(
            [str(COMPILER), f"-print-file-name={name}"], capture_output=True, text=True, check=True
        )
        for name in ("libasan.so", "libubsan.so")
    ]
    if any(os.sep not in done.stdout for done in found):
        pytest.skip("the compiler has no sanitizers")
    env = {
        **os.environ,
        "PQ_SANITIZED": "1",
        "LD_PRELOAD": ":".join(done.stdout.strip() for done in found),
        "ASAN_OPTIONS": "detect_leaks=0:handle_segv=0",
        "UBSAN_OPTIONS": "halt_on_error=1",
    }
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def test_nothing_is_read_or_written_out_of_bounds():
    """The fast tests again, sanitized."""
    tests = [f"tests/gpu/test_executor_{name}.py" for name in ("gemm_s8", "low_bit", "w4a16")]
    done = under_sanitizers("-m", "pytest", "-q", "-x", *tests)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


BEHIND_THE_END = """
import sys
from pathlib import Path

import torch

from tests.gpu import test_executor_w4a16 as w4a16
from tests.gpu.executor import SANITIZE, Executor

kernel = w4a16.MULTIPLY[0]
case = w4a16.weights(9, 64, None, True, 4, "none", seed=1)
sources = Path(sys.argv[2])
executor = Executor(Path(sys.argv[1]), "gemm_w4a16.cu", sources, SANITIZE)
w4a16.run(executor, kernel, torch.ones(5, 64).half(), case, None, True, 4, 1)
"""


def test_a_store_behind_the_end_is_seen(tmp_path):
    """The last of an odd number of columns has no neighbour: without the check the sanitizer ends the process."""
    csrc = tmp_path / "csrc"
    for part in ("cuda", "cpu"):
        shutil.copytree(CSRC / part, csrc / part)
    assert under_sanitizers("-c", BEHIND_THE_END, str(tmp_path), str(csrc)).returncode == 0
    source, check = csrc / "cuda" / "gemm_w4a16.cu", "if (column + 1 < args_.n) to[1]"
    text = source.read_text(encoding="utf-8")
    assert text.count(check) == 1
    source.write_text(text.replace(check, "to[1]"), encoding="utf-8")
    done = under_sanitizers("-c", BEHIND_THE_END, str(tmp_path), str(csrc))
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr, done.stderr[-3000:]
