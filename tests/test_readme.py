"""The README is executed: its Python runs, its commands run, and its figures are those of the committed results."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pyquant
from bench import table
from pyquant import zoo
from pyquant.cli import main
from pyquant.errors import MissingPackageError

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
MODULES = [block for block in PYTHON if block.startswith("# ")]
SCRIPTS = [block for block in PYTHON if not block.startswith("# ")]
COMMANDS = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with the repository's data and the modules that the README shows."""
    try:
        zoo.calibration("resnet20")
    except MissingPackageError as error:
        pytest.skip(str(error))
    if (ROOT / ".data").is_dir():
        (tmp_path / ".data").symlink_to(ROOT / ".data")
    names = []
    for block in MODULES:
        names.append(block.split("\n", 1)[0].removeprefix("# "))
        (tmp_path / names[-1]).write_text(block)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in names:
        sys.modules.pop(Path(name).stem, None)


def title(block):
    """The first call of a block, to tell the tests apart."""
    return re.search(r"pq\.(\w+)|(\w+)\(", block)[0].removeprefix("pq.").removesuffix("(")


def test_the_readme_has_blocks_to_run():
    assert len(SCRIPTS) >= 3 and len(MODULES) == 1 and len(COMMANDS) >= 7
    first = [line for line in SCRIPTS[0].splitlines() if line and not line.startswith("#")]
    assert len(first) <= 15


@pytest.mark.parametrize("block", SCRIPTS, ids=title)
def test_python(folder, block, capsys):
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    out = capsys.readouterr().out
    assert out.strip() and "nan" not in out
    if "top-1" in out:
        assert float(re.search(r"top-1 ([\d.]+)", out)[1]) > 0.9
        assert "100% of the ops run in integers" in out


def test_commands(folder, capsys):
    """In the order of the README, for later ones read what earlier ones wrote."""
    for line in COMMANDS:
        program, *words = shlex.split(line)
        assert program == "pyquant"
        assert main(words) == 0, f"{line}: {capsys.readouterr().err}"
        assert capsys.readouterr().out.strip(), line
        for place in (i for i, word in enumerate(words) if word == "-o"):
            assert Path(words[place + 1]).stat().st_size > 0


def test_the_example_in_c_is_built(folder):
    """By the README's own lines; run without arguments, it says what it wants."""
    if shutil.which("cc") is None or not Path(pyquant.library()).is_file():
        pytest.skip("no C compiler, or the extension is not built")
    (block,) = re.findall(r"^```bash\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    (folder / "csrc").symlink_to(ROOT / "csrc")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", "-e", "-c", block], check=True, env={**os.environ, "PATH": path})
    ran = subprocess.run([folder / "classify"], check=False, capture_output=True, text=True)
    assert ran.returncode == 1 and ran.stderr.startswith("classify: give a saved network")


def test_every_command_is_shown(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = set(re.findall(r"^    (\w+)  ", capsys.readouterr().out, re.MULTILINE))
    assert commands and commands <= {line.split()[1] for line in COMMANDS}


def test_every_option_of_quantize_is_shown(capsys):
    with pytest.raises(SystemExit):
        main(["quantize", "--help"])
    options = set(re.findall(r"--\w+", capsys.readouterr().out)) - {"--help", "--output"}
    assert options and all(option in TEXT for option in options)


def test_figures_are_those_of_the_results():
    assert set(re.findall(r"<!-- bench:(\w+) -->", TEXT)) == set(table.TABLES)
    assert table.filled(TEXT, table.RESULTS) == TEXT, "run `python -m bench.table`"


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target
