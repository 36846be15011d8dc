"""Suites of long cases: their rows are kept as they come, and a run that was cut off goes on where it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from bench.record import Row, append, last_run


class Study(Protocol):
    """A suite that is measured case by case."""

    def cases(self, quick: bool) -> Iterator[Any]:
        """What to measure; each case has a ``name`` of its own."""

    def measure(self, case: Any, threads: int, quick: bool) -> Iterator[Row]:
        """The rows of one case."""


def resumed(
    suite: str, study: Study, threads: Sequence[int], quick: bool, path: Path | None, where: Row
) -> Iterator[Row]:
    """Rows of a suite; those of a case are in the file once the case has ended.

    Args:
        suite: its name.
        study: what is measured.
        threads: how many, in turn.
        quick: fewer cases.
        path: the file; None keeps nothing.
        where: the machine, commit and date, as in every row. Cases of the same commit that the file has are not run again, and the
            date stays that of the first, so that readers see one run. A checkout with changes is no version and starts anew.
    """
    known = [] if path is None or where["commit"].endswith("+") else last_run(path)
    known = [row for row in known if row["commit"] == where["commit"]]
    yield from known
    if known:
        where = where | {"date": known[0]["date"]}
    done = {(row["of_case"], row["threads"]) for row in known}
    for count in threads:
        for case in study.cases(quick):
            if (case.name, count) in done:
                continue
            found = [
                {"suite": suite, "of_case": case.name, "threads": count, **row, **where}
                for row in study.measure(case, count, quick)
            ]
            if path is not None:
                append(path, found)
            yield from found
