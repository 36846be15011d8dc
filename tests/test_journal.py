"""Kept numbers: exact, added one by one, whole after any kill, shared by several processes."""

import itertools
import math
import os
import signal
import time

import pytest

from pyquant.errors import DataError
from pyquant.journal import Journal

FLOATS = {"pi": math.pi, "tiny": 5e-324, "third": 1 / 3, "minus zero": -0.0}


def test_numbers_come_back_to_the_last_bit(tmp_path):
    journal = Journal(tmp_path / "new" / "kept.jsonl")
    assert "pi" not in journal
    for key, value in FLOATS.items():
        journal.put(key, value)
    for opened in (journal, Journal(journal.path)):
        assert {key: opened[key].hex() for key in FLOATS} == {k: v.hex() for k, v in FLOATS.items()}


def test_a_line_cut_short_was_not_written(tmp_path):
    """Wherever it is cut: the entries before it stay, and the next one starts a line of its own."""
    path = tmp_path / "kept.jsonl"
    Journal(path).put("a", 1.5)
    whole = path.read_bytes()
    Journal(path).put("b", -2.25)
    longer = path.read_bytes()
    for end in range(len(whole), len(longer)):
        path.write_bytes(longer[:end])
        found = Journal(path)
        # All but the end of the line is there: nothing of the entry is lost.
        assert "a" in found and ("b" in found) == (end == len(longer) - 1)
        found.put("c", 3.0)
        again = Journal(path)
        assert (again["a"], again["c"]) == (1.5, 3.0) and ("b" in again) == ("b" in found)


def test_two_open_files_lose_nothing_of_each_other(tmp_path):
    first, second = Journal(tmp_path / "kept.jsonl"), Journal(tmp_path / "kept.jsonl")
    first.put("a", 1)
    second.put("b", 2)
    first.put("c", 3)
    found = Journal(first.path)
    assert [found[key] for key in "abc"] == [1, 2, 3]


def write_for_ever(path):
    journal = Journal(path)
    for i in itertools.count():
        if str(i) not in journal:
            journal.put(str(i), i / 7)


def test_killed_at_any_moment(tmp_path):
    """Three times kill -9 into a stream of writes: every entry is whole, and none is missing before the last."""
    path, before = tmp_path / "kept.jsonl", 0
    for _ in range(3):
        child = os.fork()
        if child == 0:
            try:
                write_for_ever(path)
            finally:
                os._exit(1)
        deadline = time.monotonic() + 100
        while not path.exists() or path.stat().st_size <= before + 2000:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        before, found = path.stat().st_size, Journal(path)
        count = len(path.read_text().splitlines())
        assert count > 20 and all(found[str(i)] == i / 7 for i in range(count - 1))


@pytest.mark.parametrize("text", [b"\xff\xfe", None], ids=["not text", "a folder"])
def test_what_cannot_be_read(tmp_path, text):
    path = tmp_path / "kept.jsonl"
    if text is None:
        path.mkdir()
    else:
        path.write_bytes(text)
    with pytest.raises(DataError, match="cannot be read; remove it"):
        Journal(path)


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written .*give another folder"):
        Journal(tmp_path / "file" / "kept.jsonl").put("a", 1)
