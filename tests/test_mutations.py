"""The list of mutations fits the code and the tests as they are; `make mutants` runs it."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def program():
    """tools/mutate.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("mutate", ROOT / "tools" / "mutate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mutate = program()
MUTATIONS = mutate.mutations()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m['file']}: {m['change']}")
def test_a_mutation_can_be_made_and_names_a_test(mutation):
    assert mutation.keys() == {"file", "change", "old", "new", "test"}
    assert (ROOT / mutation["file"]).read_text(encoding="utf-8").count(mutation["old"]) == 1
    assert mutation["new"] != mutation["old"] and mutation["change"] and "|" not in mutation["change"]
    path, name = re.fullmatch(r"(tests/[\w/]+\.py)::(\w+)(?:\[.+\])?", mutation["test"]).groups()
    assert f"\ndef {name}(" in (ROOT / path).read_text(encoding="utf-8")


def test_no_mutation_is_listed_twice():
    assert len({(m["file"], m["old"], m["new"]) for m in MUTATIONS}) == len(MUTATIONS)


def test_the_table_of_contributing_is_that_of_the_list():
    page = mutate.PAGE.read_text(encoding="utf-8")
    assert mutate.tabled(page) == page
    # The table is there, and rewritten where it differs.
    assert mutate.tabled(page.replace(MUTATIONS[-1]["change"], "another change")) == page
