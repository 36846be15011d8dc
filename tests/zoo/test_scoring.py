import pytest
import torch

from pyquant.errors import DataError
from pyquant.zoo import accuracy

LOGITS = torch.tensor([[5.0, 4.0, 0.0], [0.0, 5.0, 4.0], [4.0, 0.0, 5.0], [5.0, 0.0, 4.0]])


@pytest.mark.parametrize(("k", "expected"), [(1, 0.25), (2, 0.75), (3, 1.0)])
def test_any_accepted_class_among_the_k_largest_counts(k, expected):
    accepted = [[0], [0, 2], [0], [1]]
    assert accuracy(LOGITS, accepted, k) == expected


def test_a_row_with_two_accepted_classes_counts_once():
    assert accuracy(LOGITS, [[0, 1], [0], [0], [1]], k=2) == 0.5


@pytest.mark.parametrize("accepted", [[], [[0]], [[0]] * 5])
def test_lengths_must_agree(accepted):
    with pytest.raises(DataError, match=f"4 rows of logits for {len(accepted)} labelled images"):
        accuracy(LOGITS, accepted)


def test_no_images_is_an_error_and_not_a_share():
    with pytest.raises(DataError, match="one or more"):
        accuracy(torch.empty(0, 10), [])
