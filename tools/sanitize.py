"""Builds the C++ code under the compiler's sanitizers and runs the native tests on it: ``make sanitize``.

AddressSanitizer and UndefinedBehaviorSanitizer see the loader take every malformed section, and runs stay in their memory;
ThreadSanitizer sees many callers on one program, and the thread pool. Everything is built below ``build/``, and stays there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"],
    "thread": ["-fsanitize=thread"],
}
# Name of a test, its arguments before the files, and whether it takes files. A child that is made in the midst of runs can
# find a sanitizer's own locks held for ever.
TESTS = {
    "address": [
        ("thread_pool", [], False),
        ("fuzz_section", ["3000", "20000"], True),
        ("concurrent_runs", ["no-fork"], True),
    ],
    "thread": [("thread_pool", ["no-fork"], False), ("concurrent_runs", ["no-fork"], True)],
}


def main() -> int:
    """Run all native tests under one sanitizer, or under each; 1 if one finds something."""
    parser = argparse.ArgumentParser(prog="python tools/sanitize.py", description=__doc__)
    parser.add_argument(
        "sanitizer", nargs="*", choices=[*SANITIZERS, []], help="which; all, if none is named"
    )
    chosen = parser.parse_args().sanitizer or list(SANITIZERS)
    samples = ROOT / "build" / "samples"
    samples.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "tests.native.samples", str(samples)])
    files = sorted(map(str, samples.glob("*.pq")))
    found = [name for name in chosen for test in TESTS[name] if not _passes(name, *test, files)]
    return int(bool(found))


def build(sanitizer: str) -> Path:
    """Build extension and library below ``build/<sanitizer>``; returns the folder that they are in."""
    folder = ROOT / "build" / sanitizer
    flags = " ".join([*SANITIZERS[sanitizer], "-g1"])
    env = {**os.environ, "CFLAGS": flags, "CXXFLAGS": flags, "LDFLAGS": flags}
    where = ["--no-cuda", "--build-lib", str(folder), "--build-temp", str(folder / "objects")]
    _run([sys.executable, "setup.py", "-q", "build_ext", *where], env=env)
    return folder / "pyquant"


def _passes(sanitizer: str, name: str, arguments: list[str], takes_files: bool, files: list[str]) -> bool:
    library = build(sanitizer) / "libpyquant.so"
    program = library.parent / name
    _run([
        os.environ.get("CXX", "c++"), "-std=c++17", "-O1", "-g1", "-pthread", *SANITIZERS[sanitizer],
        f"tests/native/{name}.cpp", "csrc/cpu/threads.cpp", "-Icsrc", "-Icsrc/include", str(library),
        f"-Wl,-rpath,{library.parent}", "-o", str(program),
    ])  # fmt: skip
    env = {**os.environ, "UBSAN_OPTIONS": "print_stacktrace=1", "TSAN_OPTIONS": "halt_on_error=1"}
    print(f"{sanitizer}: {name}", flush=True)
    return _run([str(program), *arguments, *(files if takes_files else [])], env=env, check=False) == 0


def _run(command: list[str], env: dict[str, str] | None = None, check: bool = True) -> int:
    return subprocess.run(command, cwd=ROOT, env=env, check=check).returncode


if __name__ == "__main__":
    sys.exit(main())
