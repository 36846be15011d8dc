"""Runs the kernels' tests on an extension built under AddressSanitizer and UndefinedBehaviorSanitizer: a part of ``make sanitize``.

The extension goes to ``build/kernels``, never over the ordinary one, and every instruction set of this machine is forced in turn
by the tests themselves. Their slow walks over all shapes between guard pages run too, and the CUDA kernels' own source on this
CPU. More arguments go to pytest.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "kernels"
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g1"
TESTS = [
    "tests/ops",
    "tests/gpu/test_executor_gemm_s8.py",
    "tests/gpu/test_executor_low_bit.py",
    "tests/gpu/test_executor_w4a16.py",
    "tests/runtime/test_execute_cpu.py",
    "tests/runtime/test_net.py",
]
# These are about torch's tracing, not about a kernel, and take minutes under a sanitizer.
LEFT_OUT = "not opcheck and not traces_without_a_break"
INSIDE = "PQ_SANITIZED"


def main() -> int:
    """Build, then run pytest in a process that the sanitizers' libraries are loaded into first."""
    if INSIDE in os.environ:
        return _inside(sys.argv[1:])
    env = {**os.environ, "CFLAGS": FLAGS, "CXXFLAGS": FLAGS, "LDFLAGS": FLAGS}
    where = ["--no-cuda", "--build-lib", str(FOLDER), "--build-temp", str(FOLDER / "objects")]
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", *where], cwd=ROOT, env=env, check=True)
    libraries = [_library(name) for name in ("libasan.so", "libubsan.so")]
    env = {
        **os.environ,
        INSIDE: "1",
        "LD_PRELOAD": ":".join(libraries),
        # Python and torch leave memory to the end of the process, and the walks want a fault to be a fault.
        "ASAN_OPTIONS": "detect_leaks=0:handle_segv=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, __file__, *sys.argv[1:]], cwd=ROOT, env=env, check=False
    ).returncode


def _library(name: str) -> str:
    compiler = os.environ.get("CXX", "c++")
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def _inside(arguments: list[str]) -> int:
    """Put the sanitized extension in the ordinary one's place, for this process and those it forks, and run pytest."""
    sys.path.insert(0, str(ROOT))
    import pytest

    import pyquant
    from pyquant.ops.backend import extension

    (path,) = (FOLDER / "pyquant").glob("_C*.so")
    spec = importlib.util.spec_from_file_location("pyquant._C", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["pyquant._C"] = pyquant._C = module  # type: ignore[attr-defined]
    assert extension() is module, "the ordinary extension was loaded first"
    return int(pytest.main(["-k", LEFT_OUT, *(arguments or TESTS)]))


if __name__ == "__main__":
    sys.exit(main())
