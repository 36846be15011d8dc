"""Ops on the triton backend in Triton's interpreter, which needs a process of its own."""

from __future__ import annotations

import pytest

from tests.gpu.interpreter import dispatch, programs, tuning
from tests.gpu.test_interpreter import assert_right


@pytest.mark.parametrize("case", dispatch.CASES)
def test_ops_on_triton(case: str) -> None:
    assert_right("dispatch", case)


@pytest.mark.parametrize("case", programs.CASES)
def test_programs_on_triton(case: str) -> None:
    assert_right("programs", case)


@pytest.mark.parametrize("case", tuning.CASES)
def test_tuned_programs_on_triton(case: str) -> None:
    assert_right("tuning", case)
