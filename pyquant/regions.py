"""Which parts of a graph have an integer form: fused groups, and the values that get a grid. Decided by structure, never by names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from pyquant.graph import SITE_OPS, Graph, Node

# The grid goes through these unchanged: output codes are input codes, moved or picked.
SAME_GRID_OPS = ("flatten", "max_pool")
LOOKUP_OPS = ("unary", "clamp")


@dataclass(frozen=True)
class Group:
    """What runs as one integer op: a site or an add, then a residual add (sites only), then a clamp.

    Args:
        last: the node whose value leaves the group.
        residual: the other operand of the residual add, or None.
        low, high: bounds of the clamp in real units, or None.
        inner: the group's nodes after the head, in order.
    """

    last: str
    residual: str | None = None
    low: float | None = None
    high: float | None = None
    inner: tuple[str, ...] = ()


@dataclass(frozen=True)
class Regions:
    """The integer part of a graph.

    Args:
        groups: head (a site, or an add of two feature maps) -> its group.
        integer: every node that lowers to an integer op or is fused into one.
        quantized: the values that have a grid, in execution order.
    """

    groups: Mapping[str, Group]
    integer: frozenset[str]
    quantized: tuple[str, ...]


def source(graph: Graph, name: str) -> str:
    """The value whose grid ``name`` has: itself, or what it was flattened or max-pooled from."""
    node = graph.by_name[name]
    while node.op in SAME_GRID_OPS:
        node = graph.by_name[node.inputs[0]]
    return node.name


@lru_cache(maxsize=64)
def regions(graph: Graph) -> Regions:
    """Decide which nodes lower to integers.

    Walks backwards: a site always does; anything else does if an integer node reads its value, for only then would it have to
    be turned into codes anyway. A site whose value no integer node reads gives floats, and takes no tail.
    """
    found = {node.name: _follow(graph, node) for node in graph.nodes if node.op in SITE_OPS}
    taken = {name for group in found.values() for name in group.inner}
    for node in graph.nodes:
        if node.op == "add" and _is_map(node) and node.name not in taken:
            found[node.name] = _follow(graph, node)
    taken = {name for group in found.values() for name in group.inner}

    groups: dict[str, Group] = {}
    integer: set[str] = set()
    wanted: set[str] = set()
    for node in reversed(graph.nodes):
        if node.name in found:
            group = found[node.name]
            if group.last not in wanted:
                if node.op not in SITE_OPS:
                    continue
                group = Group(node.name)
            groups[node.name] = group
            integer.update((node.name, *group.inner))
            wanted.update(node.inputs)
            if group.residual is not None:
                wanted.add(group.residual)
        elif node.name in wanted and node.name not in taken and _has_integer_form(graph, node):
            integer.add(node.name)
            wanted.update(node.inputs)
    quantized = {source(graph, name) for name in wanted}
    order = {node.name: groups[node.name] for node in graph.nodes if node.name in groups}
    return Regions(order, frozenset(integer), tuple(node.name for node in graph.nodes if node.name in quantized))


def _is_map(node: Node) -> bool:
    return node.shape is not None and len(node.shape) == 3


def _has_integer_form(graph: Graph, node: Node) -> bool:
    if node.op in ("avg_pool", "max_pool"):
        return _is_map(node)
    if node.op == "flatten":
        before = graph.by_name[node.inputs[0]]
        # Codes of a flattened map are in the order (H, W, C), which the columns of a linear layer follow and nothing else does.
        reordered = _is_map(before) and (before.shape or ())[1:] != (1, 1)
        sites_only = node.name not in graph.outputs and all(user.op == "linear" for user in graph.consumers[node.name])
        return _has_rows(before) and (sites_only or not reordered)
    return node.op in LOOKUP_OPS and _has_rows(node)


def _has_rows(node: Node) -> bool:
    """Codes are ``(H, W, C)``: a value of more dimensions has none."""
    return node.shape is not None and len(node.shape) <= 3


def _follow(graph: Graph, head: Node) -> Group:
    """The longest tail that could be fused behind ``head``.

    A residual add goes to the later of the two sites that meet in it, so that the other operand is there when it runs.
    """
    order = {node.name: i for i, node in enumerate(graph.nodes)}
    last, residual = head.name, None
    inner: list[str] = []
    user = graph.only_consumer(last)
    if user is not None and head.op in SITE_OPS and user.op == "add" and _is_map(user):
        other = user.inputs[1] if user.inputs[0] == last else user.inputs[0]
        if other != last and order[_origin(graph, other)] < order[head.name]:
            residual, last = other, user.name
            inner.append(last)
            user = graph.only_consumer(last)
    low = high = None
    if user is not None and user.op == "clamp":
        low, high, last = user.attrs["low"], user.attrs["high"], user.name
        inner.append(last)
    return Group(last, residual, low, high, tuple(inner))


def _origin(graph: Graph, name: str) -> str:
    """Where the op that gives this value starts: a clamp behind a single site or add runs with it."""
    node = graph.by_name[name]
    if node.op == "clamp":
        before = graph.by_name[node.inputs[0]]
        fused = before.op in SITE_OPS or (before.op == "add" and _is_map(before))
        if fused and graph.only_consumer(before.name) is node:
            return before.name
    return name
