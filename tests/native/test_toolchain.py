"""Where nothing for aarch64 is installed and nothing can be fetched, one sentence says so, and nothing is left behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools import aarch64


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without the packages, an empty folder to fetch them to, and one of programs."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setattr(aarch64, "FOLDER", tmp_path / "build")
    monkeypatch.setattr(aarch64, "_whole", lambda root: False)
    monkeypatch.setenv("PATH", str(programs))
    return programs


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_without_apt(nowhere: Path) -> None:
    wanted = "neither g++-aarch64-linux-gnu and qemu-user-static nor apt-get to fetch them with are here."
    with pytest.raises(aarch64.Unavailable, match=f"^{re.escape(wanted)}$"):
        aarch64.toolchain()


def test_an_archive_that_cannot_be_reached(nowhere: Path) -> None:
    program(nowhere, "apt-get", "echo warned >&2; echo 'E: no such host' >&2; exit 100")
    program(nowhere, "dpkg-deb", "exit 1")
    with pytest.raises(aarch64.Unavailable, match=r"could not be fetched: E: no such host$"):
        aarch64.toolchain()
    assert list(aarch64.FOLDER.iterdir()) == []


def test_packages_without_a_compiler(nowhere: Path) -> None:
    program(nowhere, "apt-get", "exit 0")
    program(nowhere, "dpkg-deb", "exit 0")
    with pytest.raises(aarch64.Unavailable, match="hold no compiler and no emulator"):
        aarch64.toolchain()
