"""Builds ``libpyquant.so`` for aarch64 on an x86-64 machine, and says how to run programs on it: what ``make aarch64`` needs.

A cross compiler and an emulator that are not installed come as Debian packages, unpacked below ``build/aarch64``; no root is
needed. ``python tools/aarch64.py`` fetches and builds; the tests in tests/native/test_aarch64.py then compare bytes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "aarch64"
PACKAGES = ("g++-aarch64-linux-gnu", "qemu-user-static")


class Unavailable(Exception):
    """There is no way to build for aarch64 here, and why, in one sentence."""


@dataclass(frozen=True)
class Toolchain:
    """A cross compiler and an emulator: installed, or unpacked below ``root``."""

    root: Path

    def environment(self) -> dict[str, str]:
        """What the compiler needs to find its own libraries, and setup.py to find the compiler."""
        c, cxx = (" ".join(self.compiler(language)) for language in ("gcc", "g++"))
        own = ":".join(map(str, (self.root / "usr" / "lib").glob("*-linux-gnu")))
        libraries = {"LD_LIBRARY_PATH": own} if self.root != Path("/") else {}
        linkers = {"LDSHARED": f"{c} -shared", "LDCXXSHARED": f"{cxx} -shared"}
        return {**os.environ, **libraries, "CC": c, "CXX": cxx, **linkers}

    def compiler(self, language: str) -> list[str]:
        """``gcc`` or ``g++``."""
        return [str(self.root / f"usr/bin/aarch64-linux-gnu-{language}"), f"--sysroot={self.root}"]

    def emulator(self) -> list[str]:
        """The words before a program's own."""
        return [str(_qemu(self.root)), "-L", str(self.root / "usr" / "aarch64-linux-gnu")]


def toolchain() -> Toolchain:
    """The installed compiler and emulator, or those below ``build/aarch64``, fetched if need be; raises Unavailable."""
    unpacked = FOLDER / "root"
    for root in (Path("/"), unpacked):
        if _whole(root):
            return Toolchain(root)
    _fetch(unpacked)
    if not _whole(unpacked):
        raise Unavailable(
            f"the packages {' and '.join(PACKAGES)} hold no compiler and no emulator for aarch64."
        )
    return Toolchain(unpacked)


def build(chain: Toolchain) -> Path:
    """The library for aarch64, built unless it is newer than every source; the objects lie below ``build/aarch64/objects``."""
    library = FOLDER / "lib" / "pyquant" / "libpyquant.so"
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    newest = max(path.stat().st_mtime for path in [*sources, ROOT / "setup.py"])
    if library.exists() and library.stat().st_mtime > newest:
        return library
    for stale in (FOLDER / "lib", FOLDER / "objects"):
        shutil.rmtree(stale, ignore_errors=True)
    where = ["--no-cuda", "--build-lib", str(FOLDER / "lib"), "--build-temp", str(FOLDER / "objects")]
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", *where],
        cwd=ROOT,
        env=chain.environment(),
        check=True,
    )
    # An extension that cannot be built is no failure to setup.py.
    if not library.exists():
        raise RuntimeError("csrc does not build for aarch64; what the compiler said is above.")
    return library


def _qemu(root: Path) -> Path:
    return next(
        (
            path
            for path in (root / "usr/bin/qemu-aarch64-static", root / "usr/bin/qemu-aarch64")
            if path.exists()
        ),
        root / "usr/bin/qemu-aarch64",
    )


def _whole(root: Path) -> bool:
    return (root / "usr/bin/aarch64-linux-gnu-g++").exists() and _qemu(root).exists()


def _fetch(root: Path) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise Unavailable(f"neither {' and '.join(PACKAGES)} nor apt-get to fetch them with are here.")
    packages = FOLDER / "packages"
    (packages / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (packages / "cache").mkdir(exist_ok=True)
    # Package lists of our own: the system's may be absent or stale, and only root could renew those.
    own = [
        "apt-get", "-qq", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20",
        "-o", f"Dir::State::Lists={packages}/lists", "-o", f"Dir::Cache={packages}/cache", "-o", "Debug::NoLocking=1",
        "-o", "Acquire::Languages=none", "-o", "APT::Update::Error-Mode=any",
    ]  # fmt: skip

    def apt(*words: str) -> str:
        done = subprocess.run(
            [*own, *words], cwd=packages, capture_output=True, text=True, timeout=900, check=False
        )
        if done.returncode != 0:
            said = done.stderr.strip().splitlines() or ["no reason given"]
            raise Unavailable(f"{' and '.join(PACKAGES)} could not be fetched: {said[-1]}")
        return done.stdout

    try:
        apt("update")
        # With all they depend on, but for what is installed.
        plan = apt("-s", "install", "--no-install-recommends", *PACKAGES)
        apt("download", *(line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")))
        for package in sorted(packages.glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", str(package), str(root)], check=True)
    finally:
        shutil.rmtree(packages)
    # It comes for every machine there is, and each takes megabytes.
    for other in set((root / "usr" / "bin").glob("qemu-*")) - {_qemu(root)}:
        other.unlink()


if __name__ == "__main__":
    try:
        print(build(toolchain()))
    except Unavailable as reason:
        sys.exit(str(reason))
