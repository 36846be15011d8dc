"""A file of measured numbers that is never half written: one line an entry, on disk before the next is begun."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pyquant.errors import DataError


class Journal:
    """Numbers by key, added one after the other; a process that is killed loses the one it is measuring.

    Several processes may add to one file. A line cut short, as a full disk leaves it, counts as not written.

    Args:
        path: the file; it and its folder are made with the first entry.

    Raises:
        DataError: the file cannot be read; in :meth:`put`, it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._known: dict[str, Any] = {}
        try:
            text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"the file of measurements {str(self.path)!r} cannot be read; remove it."
            ) from error
        self._whole = not text or text.endswith("\n")
        for line in text.splitlines():
            entry = _entry(line)
            if entry is not None:
                self._known.setdefault(*entry)

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Any:
        return self._known[key]

    def put(self, key: str, value: Any) -> None:
        """Write one entry, whole; floats come back to the last bit."""
        line = json.dumps({"key": key, "value": value}, allow_nan=False) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                # One write to the end of the file: no other process comes between, and no kill cuts it.
                os.write(file, (line if self._whole else "\n" + line).encode())
            finally:
                os.close(file)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise DataError(
                f"measurements cannot be written to {str(self.path)!r}: {reason}; give another folder."
            ) from error
        self._whole = True
        self._known[key] = value


def _entry(line: str) -> tuple[str, Any] | None:
    try:
        entry = json.loads(line)
        return entry["key"], entry["value"]
    except (ValueError, TypeError, KeyError):
        return None
