"""What is kept with a tensor lives as long as the tensor, and no longer."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyquant.ops.kept import kept


def test_what_is_made_is_made_once_and_anew_after_a_write() -> None:
    of, other, made = torch.ones(3), torch.ones(2), []

    def make(of: Tensor, other: Tensor, number: int) -> Tensor:
        made.append(number)
        return of * 2

    first = kept("double", make, of, other, 1)
    assert kept("double", make, of, other, 1) is first and made == [1]
    kept("another kind", make, of, other, 1)
    kept("double", make, of, other, 2)
    of.add_(1)
    assert kept("double", make, of, other, 2).tolist() == [4, 4, 4]
    other.add_(1)
    kept("double", make, of, other, 2)
    assert made == [1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    "make", [lambda t: t, lambda t: t.flatten(1), lambda t: t + 1], ids=["itself", "a-view", "a-copy"]
)
def test_a_tensor_is_not_kept_alive_by_what_was_made_of_it(make: Callable[[Tensor], Tensor]) -> None:
    of = torch.ones(2, 3, 4)
    gone = weakref.ref(of)
    kept("layout", make, of)
    kept("layout", make, of)
    del of
    gc.collect()
    assert gone() is None
