"""The captured network: nodes in order, who feeds whom, and how to run it seen as float or as quantised."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor

from pyquant.errors import SiteError
from pyquant.layers import evaluate

SITE_OPS = ("conv2d", "linear")


@dataclass(frozen=True)
class Node:
    """One operation.

    Args:
        name: unique; for a site, the qualified name of its module (``"body.0.conv1"``; ``"fc@1"`` for a second call).
        op: kind, see :mod:`pyquant.layers`.
        inputs: names of the nodes whose values it takes.
        attrs: JSON attributes of the kind.
        params: role -> key into the state.
        shape: shape of the value, without the batch; None where the value is not one tensor.
    """

    name: str
    op: str
    inputs: tuple[str, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in execution order; ``inputs`` and ``outputs`` are names of nodes. Two graphs are equal only if they are one."""

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        """Node of each name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[Node, ...]]:
        """Nodes that take each value; a node that takes it twice stands twice."""
        table: dict[str, list[Node]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in node.inputs:
                table[name].append(node)
        return {name: tuple(nodes) for name, nodes in table.items()}

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites, in execution order."""
        return tuple(node.name for node in self.nodes if node.op in SITE_OPS)

    def site(self, name: str) -> Node:
        """Return the site's node.

        Raises:
            SiteError: there is no such site; the message lists near names.
        """
        if name not in self.sites:
            near = [s for s in self.sites if name.rsplit(".", maxsplit=1)[-1] in s][:4] or list(
                self.sites[:4]
            )
            raise SiteError(
                f"site {name!r} does not exist in this model of {len(self.sites)} sites; near names: {', '.join(near)}."
            )
        return self.by_name[name]

    def only_consumer(self, name: str) -> Node | None:
        """The one node that takes this value, or None if there are several, none, or it is an output."""
        users = self.consumers[name]
        return users[0] if len(users) == 1 and name not in self.outputs else None


class View(Protocol):
    """How a network is seen while it runs."""

    def params(self, node: Node) -> Mapping[str, Tensor]:
        """Tensors of a node by role."""

    def site_input(self, node: Node, value: Tensor) -> Tensor:
        """What a site makes of the value it takes."""

    def value(self, node: Node, value: Tensor) -> Tensor:
        """What becomes of a value once computed."""


@dataclass(frozen=True)
class FloatView:
    """The network as captured: nothing is quantised."""

    state: Mapping[str, Tensor]

    def params(self, node: Node) -> Mapping[str, Tensor]:
        """Tensors of the state."""
        return {role: self.state[key] for role, key in node.params.items()}

    def site_input(self, node: Node, value: Tensor) -> Tensor:
        """The value itself."""
        return value

    def value(self, node: Node, value: Tensor) -> Tensor:
        """The value itself."""
        return value


def compute(view: View, node: Node, values: Mapping[str, Any], batch: int) -> Any:
    """Compute one node under a view, from the values of its inputs."""
    inputs = [values[name] for name in node.inputs]
    if node.op in SITE_OPS:
        inputs[0] = view.site_input(node, inputs[0])
    return view.value(node, evaluate(node.op, node.attrs, inputs, view.params(node), batch))


def run(
    graph: Graph,
    view: View,
    inputs: Iterable[Tensor],
    *,
    keep: Collection[str] | None = (),
    start: Mapping[str, Any] | None = None,
    on_value: Callable[[Node, Any], None] | None = None,
) -> dict[str, Any]:
    """Run the network on one batch.

    Args:
        graph: the network.
        view: float or quantised.
        inputs: one tensor ``[B, ...]`` per graph input.
        keep: names of values to return beside the outputs; None keeps all. Other values are freed after their last use.
        start: values already known (float prefix): their nodes are not computed again.
        on_value: called with every node and its value as it is computed.

    Returns:
        name -> value, of the outputs and of ``keep``.
    """
    given = dict(zip(graph.inputs, inputs, strict=True))
    batch = next(iter(given.values())).shape[0]
    values: dict[str, Any] = dict(start or {})
    remaining = {name: len(users) for name, users in graph.consumers.items()}
    kept = set(graph.by_name if keep is None else keep) | set(graph.outputs)
    for node in graph.nodes:
        if node.name not in values:
            if node.op == "input":
                values[node.name] = view.value(node, given[node.name])
            else:
                values[node.name] = compute(view, node, values, batch)
            if on_value is not None:
                on_value(node, values[node.name])
        for name in node.inputs:
            remaining[name] -= 1
            if not remaining[name] and name not in kept:
                values.pop(name, None)
    return {name: value for name, value in values.items() if name in kept}


def outputs(graph: Graph, view: View, inputs: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Run the network and return its outputs, in order."""
    values = run(graph, view, inputs)
    return tuple(values[name] for name in graph.outputs)
