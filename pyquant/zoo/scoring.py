"""How many predictions are right, where an image may have several right answers."""

from collections.abc import Sequence

import torch

from pyquant.errors import DataError


def accuracy(logits: torch.Tensor, accepted: Sequence[Sequence[int]], k: int = 1) -> float:
    """Share of images with an accepted class among the ``k`` largest logits.

    Args:
        logits: ``[n, classes]`` float.
        accepted: for each image, the classes that count as right.
        k: 1 or more.

    Raises:
        DataError: there are no images, or the two have different lengths.
    """
    if len(logits) != len(accepted) or not accepted:
        raise DataError(
            f"{len(logits)} rows of logits for {len(accepted)} labelled images; give as many, one or more."
        )
    top = logits.topk(k, dim=1).indices.tolist()
    return sum(not set(row).isdisjoint(right) for row, right in zip(top, accepted, strict=True)) / len(top)
