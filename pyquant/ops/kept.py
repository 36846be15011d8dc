"""What is made of a tensor once and kept for as long as it lives: the GPU kernels' layouts of a weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_kept: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def kept(kind: str, make: Callable[..., Any], of: Tensor, *others: Any) -> Any:
    """``make(of, *others)``, made again when a tensor among the arguments has been written to, or another is given.

    Args:
        kind: a name for what is made; a tensor keeps one of each kind.
        make: a function of the arguments alone. The tensor itself, or a view of it, is not kept: it would keep the tensor alive.
        of: the tensor that it is kept with.
        others: further arguments; what is neither tensor nor None has to be hashable.
    """
    key = tuple((a.data_ptr(), a._version) if isinstance(a, Tensor) else a for a in (of, *others))
    found = _kept.setdefault(of, {})
    if kind not in found or found[kind][0] != key:
        made = make(of, *others)
        if isinstance(made, Tensor) and (made is of or made._base is of):
            return made
        # The other tensors are kept too: a freed one could leave its address to another.
        found[kind] = (key, made, others)
    return found[kind][1]
