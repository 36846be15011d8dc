"""Rows of results: what was measured, on what, of which commit; one JSON object a line."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.timing import Timing
from pyquant.ops.backend import extension

RESULTS = Path(__file__).with_name("results")
ROOT = Path(__file__).resolve().parents[1]
# What all rows of a run share.
MACHINE = ("device", "isa", "cores", "torch", "python", "commit", "date")
Row = dict[str, Any]


def machine() -> Row:
    """Where and when, by :data:`MACHINE`; the date is UTC, to the second."""
    native = extension()
    found = (
        _processor(),
        native.available_isas()[0] if native is not None else None,
        os.cpu_count(),
        torch.__version__,
        platform.python_version(),
        commit(),
        now(),
    )
    return dict(zip(MACHINE, found, strict=True))


def figures(
    timing: Timing,
    operations: float | None = None,
    traffic: float | None = None,
    limit: str | None = None,
    limit_rate: float | None = None,
    by_bytes: bool = False,
) -> Row:
    """The columns that every suite has.

    Args:
        timing: of one call.
        operations, traffic: of one call; a multiply-add is two operations, traffic is in bytes.
        limit: what bounds it, by name.
        limit_rate: that limit, in operations or in bytes a second.
        by_bytes: whether the limit is one of bytes.
    """
    tops = None if operations is None else operations / timing.us / 1e6
    gbps = None if traffic is None else traffic / timing.us / 1e3
    reached, unit = (gbps, 1e9) if by_bytes else (tops, 1e12)
    rate = None if limit_rate is None else limit_rate / unit
    return {
        "us": timing.us,
        "spread": timing.spread,
        "clock": timing.clock,
        "tops": tops,
        "gbps": gbps,
        "limit": limit,
        "limit_rate": rate,
        "share": None if rate is None or reached is None else reached / rate,
        "peers": {},
    }


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add rows to a JSONL file, all in one write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def last_run(path: Path) -> Sequence[Row]:
    """Rows of the last run in a JSONL file; none where there is no file."""
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return [row for row in rows if row["date"] == rows[-1]["date"]]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def now() -> str:
    """The date and time, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def commit() -> str:
    """Short hash, with ``+`` behind it where files differ from it; ``unknown`` outside a checkout."""
    git = shutil.which("git")
    if git is None:
        return "unknown"

    def ask(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([git, "-C", str(ROOT), *words], capture_output=True, text=True, check=False)

    head = ask("rev-parse", "--short", "HEAD")
    if head.returncode:
        return "unknown"
    changed = ask("status", "--porcelain", "--untracked-files=no").stdout.strip()
    return head.stdout.strip() + ("+" if changed else "")
