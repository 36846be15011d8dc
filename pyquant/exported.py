"""What the nodes of an exported program say of themselves: their shape, and the module they come from."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx

FxNode = Any  # an fx.Node: what its arguments are depends on its target


def shape_of(node: FxNode) -> tuple[int, ...] | None:
    """A value's shape without its batch; None where its first dimension is not the batch, or another one depends on it."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not value.dim() or str(value.shape[0]) not in _batches(node.graph):
        return None
    return tuple(value.shape[1:]) if all(isinstance(size, int) for size in value.shape[1:]) else None


@lru_cache(maxsize=1)
def _batches(graph: fx.Graph) -> frozenset[str]:
    """The exporter's symbols for the batch: the first dimensions of all inputs."""
    values = [node.meta.get("val") for node in graph.nodes if node.op == "placeholder"]
    first = [value.shape[0] for value in values if isinstance(value, Tensor) and value.dim()]
    return frozenset(str(size) for size in first if isinstance(size, torch.SymInt))


def size_of(node: FxNode) -> tuple[int, ...]:
    """The same, empty where there is none."""
    return shape_of(node) or ()


def module_path(node: FxNode) -> str:
    """Qualified name of the innermost module a node comes from; empty for the top one."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0].split("@")[0] if stack else ""


def where(node: FxNode) -> str:
    """The module of a node, for messages."""
    return module_label(module_path(node))


def module_label(path: str) -> str:
    """How messages name a module."""
    return f"module {path!r}" if path else "the top module"
