"""Breaks the code on purpose and sees the tests go red: ``python tools/mutate.py [WORD]`` (``make mutants``).

``tests/mutations.toml`` lists the mutations. Each is applied, alone, to a copy of the project, where the test it names must
fail; the same tests must pass there before. ``--table`` rewrites the table of CONTRIBUTING.md instead.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIST, PAGE = ROOT / "tests" / "mutations.toml", ROOT / "CONTRIBUTING.md"
BLOCK = re.compile(r"(<!-- mutations -->\n).*?(<!-- /mutations -->)", re.DOTALL)
FAILED = 1  # pytest's exit code for tests that ran and failed; an import that broke gives another


def main() -> int:
    """Run the mutations whose file or test holds a word, or all; 1 if any survives."""
    parser = argparse.ArgumentParser(prog="python tools/mutate.py", description=__doc__)
    parser.add_argument("word", nargs="?", default="", help="only mutations whose file or test holds this")
    parser.add_argument(
        "--table", action="store_true", help="write the table of CONTRIBUTING.md and run nothing"
    )
    args = parser.parse_args()
    if args.table:
        PAGE.write_text(tabled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return 0
    chosen = [m for m in mutations() if args.word in m["file"] or args.word in m["test"]]
    if not chosen:
        parser.error(f"no mutation's file or test holds {args.word!r}; they are in {LIST.relative_to(ROOT)}")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "pyquant"
        _copy(copy)
        unchanged = _pytest(copy, *sorted({m["test"] for m in chosen}))
        if unchanged.returncode != 0:
            print(f"{unchanged.stdout}the tests named do not pass unchanged")
            return 1
        survivors = [m for m in chosen if not _caught(copy, m)]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutations caught")
    return int(bool(survivors))


def mutations() -> list[dict[str, str]]:
    """All mutations: ``file``, ``change`` in words, ``old`` and ``new`` text, ``test``."""
    return tomllib.loads(LIST.read_text(encoding="utf-8"))["mutation"]


def tabled(text: str) -> str:
    """CONTRIBUTING.md with its table written anew."""
    rows = [f"| `{m['file']}` | {m['change']} | `{m['test']}` |" for m in mutations()]
    table = "\n".join(["| file | change | test that goes red |", "|---|---|---|", *rows])
    return BLOCK.sub(lambda found: f"{found[1]}{table}\n{found[2]}", text)


def _copy(to: Path) -> None:
    """Tracked files and new ones, as they stand, with the data and the built extension."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    paths = [ROOT / line for line in listed.stdout.splitlines()] + list((ROOT / "pyquant").glob("*.so"))
    for path in paths:
        if path.is_file():
            target = to / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    (to / ".data").symlink_to(ROOT / ".data")
    # Some tests ask git for the files of the project.
    subprocess.run(["git", "init", "-q"], cwd=to, check=True)
    subprocess.run(["git", "add", "-A"], cwd=to, check=True)


def _caught(copy: Path, mutation: dict[str, str]) -> bool:
    path = copy / mutation["file"]
    before = path.read_text(encoding="utf-8")
    if before.count(mutation["old"]) != 1:
        print(
            f"{mutation['file']}: the text to change occurs {before.count(mutation['old'])} times, not once"
        )
        return False
    built = {so: so.read_bytes() for so in (copy / "pyquant").glob("*.so")}
    path.write_text(before.replace(mutation["old"], mutation["new"]), encoding="utf-8")
    try:
        # The tests of the CUDA kernels build them themselves.
        if mutation["file"].startswith("csrc/") and not mutation["file"].startswith("csrc/cuda/"):
            _build(copy)
        red = _pytest(copy, mutation["test"]).returncode == FAILED
    finally:
        path.write_text(before, encoding="utf-8")
        for so, data in built.items():
            so.write_bytes(data)
    said = "caught  " if red else f"SURVIVED {mutation['test']}:"
    print(f"{said} {mutation['file']}: {mutation['change']}", flush=True)
    return red


def _build(copy: Path) -> None:
    """Build the extension anew. It is optional, so that a build that failed shows only by the file it did not write."""
    for so in (copy / "pyquant").glob("_C*.so"):
        so.unlink()
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--force", "--no-cuda"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    if not list((copy / "pyquant").glob("_C*.so")):
        raise SystemExit(f"{done.stderr}the mutated extension does not compile")


def _pytest(copy: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    # The copy comes before the installed package, in processes that tests start too. Compiled files are told apart by
    # size and second, which a mutation and its undoing may share.
    env = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        command, cwd=copy, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, check=False
    )


if __name__ == "__main__":
    sys.exit(main())
