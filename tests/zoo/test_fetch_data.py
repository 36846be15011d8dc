"""tools/fetch_data.sh, without a network: what it does when all is there, and when nothing can be fetched."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools/fetch_data.sh"
PACKAGES = re.search(r'^packages="(.*)"$', SCRIPT.read_text(), re.M).group(1).split()


def run(*arguments, path):
    return subprocess.run(
        [shutil.which("sh"), SCRIPT, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={"PATH": str(path)},
        check=False,
    )


@pytest.fixture
def commands(tmp_path):
    """A folder with the plain commands only, and room for false ones."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("mkdir", "rm", "grep", "touch", "sh"):
        (folder / name).symlink_to(shutil.which(name))
    return folder


def false_command(commands, name, body):
    (commands / name).write_text(f"#!/bin/sh\n{body}\n")
    (commands / name).chmod(0o755)


def test_what_was_fetched_is_left_alone(commands, tmp_path):
    data = tmp_path / "data"
    (data / ".fetched").mkdir(parents=True)
    for package in PACKAGES:
        (data / ".fetched" / package).touch()
    result = run(data, path=commands)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_not_debian_says_so_in_one_line(commands, tmp_path):
    result = run(tmp_path / "data", path=commands)
    assert result.returncode == 0
    assert result.stdout == f"fetch_data: no apt-get and dpkg here, so left out: {' '.join(PACKAGES)}\n"


def test_offline_says_so_in_one_line_and_marks_nothing(commands, tmp_path):
    false_command(commands, "apt-get", "echo 'E: no network'; exit 100")
    false_command(commands, "dpkg", "exit 1")
    data = tmp_path / "data"
    result = run(data, path=commands)
    assert result.returncode == 0
    assert (
        result.stdout
        == f"fetch_data: the package archive cannot be reached, so left out: {' '.join(PACKAGES)}\n"
    )
    assert [entry.name for entry in data.rglob("*")] == [".fetched"]


def test_a_package_that_cannot_be_unpacked_is_fetched_again(commands, tmp_path):
    false_command(commands, "apt-get", 'for last; do :; done; : > "${last}_1_all.deb"')
    false_command(commands, "dpkg", f'case "$2" in {PACKAGES[0]}*) exit 1;; esac; : > "$3/unpacked"')
    data = tmp_path / "data"
    result = run(data, path=commands)
    assert result.returncode == 0
    assert f"{PACKAGES[0]} could not be fetched" in result.stdout
    assert sorted(entry.name for entry in (data / ".fetched").iterdir()) == sorted(PACKAGES[1:])
    assert (data / "unpacked").exists()
    false_command(commands, "dpkg", "exit 0")
    assert run(data, path=commands).stdout == f"fetch_data: {PACKAGES[0]} is in {data}\n"


def test_no_folder_is_a_usage_error(commands):
    result = run(path=commands)
    assert result.returncode == 2
    assert "usage: tools/fetch_data.sh DIR" in result.stderr
