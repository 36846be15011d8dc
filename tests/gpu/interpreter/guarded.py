"""Tensors between guards: what a kernel reads past an end is poison, and what it writes there is seen."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor

# Elements on either side; the start stays aligned to 16 bytes.
GUARD = 1 << 15
POISON = 0x7B


def poisoned(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """An uninitialised tensor as a kernel may find it, and the buffer around it."""
    count = 1
    for size in shape:
        count *= size
    whole = torch.empty(count + 2 * GUARD, dtype=dtype, device=device)
    whole.view(torch.uint8).fill_(POISON)
    if dtype.is_floating_point:
        whole.fill_(float("nan"))
    return whole[GUARD : GUARD + count].reshape(shape), whole


def inside(tensor: Tensor, device: str) -> Tensor:
    """A copy of ``tensor`` with poison on both sides."""
    copy, _ = poisoned(tuple(tensor.shape), tensor.dtype, device)
    return copy.copy_(tensor)


def run(launch: Callable, *args: object, **options: object) -> object:
    """Call ``launch`` with every ``torch.empty`` poisoned; writes outside those tensors raise AssertionError."""
    real, made = torch.empty, []

    def empty(*shape, dtype=torch.float32, device="cpu"):
        with mock.patch.object(torch, "empty", real):
            tensor, whole = poisoned(shape, dtype, device)
        made.append((whole, whole.clone(), tensor.numel()))
        return tensor

    with mock.patch.object(torch, "empty", empty):
        result = launch(*args, **options)
    assert made, "nothing was allocated through torch.empty"
    for whole, before, count in made:
        for part in (slice(0, GUARD), slice(GUARD + count, None)):
            left, right = (t[part].contiguous().view(torch.uint8) for t in (whole, before))
            assert torch.equal(left, right), "written outside its tensor"
    return result


def same_bytes(got: Tensor, want: Tensor) -> None:
    """Assert equal shape, dtype and bytes."""
    assert got.shape == want.shape and got.dtype == want.dtype, (got.shape, got.dtype, want.shape, want.dtype)
    got, want = got.cpu().contiguous(), want.cpu().contiguous()
    different = (got.view(torch.uint8) != want.view(torch.uint8)).nonzero()
    assert len(different) == 0, f"{len(different)} bytes differ, the first at {different[0].tolist()}"
