"""Simplify a captured graph for quantisation: padding into convolutions, batch normalisation into sites, with memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyquant.graph import SITE_OPS, Graph, Node


@dataclass(frozen=True)
class Norm:
    """What a folded batch normalisation said its output looks like, per channel: mean ``beta`` and std ``|gamma|``; ``[C]`` each."""

    gamma: Tensor
    beta: Tensor


def fold(graph: Graph, state: dict[str, Tensor]) -> tuple[Graph, dict[str, Tensor], dict[str, Norm]]:
    """Fold zero padding into the convolutions that read it, and batch normalisation into the site before it.

    Every site gets a weight and a bias of its own in the new state (``"<site>.weight"``, ``"<site>.bias"``, float32), so a
    module that is called twice has two.

    Returns:
        The new graph, its state, and site -> :class:`Norm` for every batch normalisation folded.
    """
    graph = _fold_pads(graph)
    folded = {
        n.name: graph.by_name[n.inputs[0]]
        for n in graph.nodes
        if n.op == "batch_norm" and _foldable(graph, n)
    }
    alias = {norm: site.name for norm, site in folded.items()}
    norms: dict[str, Norm] = {}
    new_state: dict[str, Tensor] = {}
    nodes: list[Node] = []
    for old in graph.nodes:
        if old.name in folded:
            continue
        node = replace(old, inputs=tuple(alias.get(name, name) for name in old.inputs))
        if node.op in SITE_OPS:
            weight = state[node.params["weight"]].float()
            bias = (
                state[node.params["bias"]].float() if "bias" in node.params else torch.zeros(weight.shape[0])
            )
            norm = next((graph.by_name[n] for n, site in alias.items() if site == node.name), None)
            if norm is not None:
                weight, bias, norms[node.name] = _fold_norm(norm, state, weight, bias)
            new_state[f"{node.name}.weight"], new_state[f"{node.name}.bias"] = weight, bias
            node = replace(node, params={"weight": f"{node.name}.weight", "bias": f"{node.name}.bias"})
        else:
            new_state.update({key: state[key] for key in node.params.values()})
        nodes.append(node)
    outputs = tuple(alias.get(name, name) for name in graph.outputs)
    return Graph(tuple(nodes), graph.inputs, outputs), new_state, norms


def _foldable(graph: Graph, norm: Node) -> bool:
    before = graph.by_name[norm.inputs[0]]
    return (
        before.op in SITE_OPS
        and graph.only_consumer(before.name) is norm
        and (before.op == "conv2d" or len(norm.shape or ()) == 1)
    )


def _fold_norm(
    norm: Node, state: dict[str, Tensor], weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Norm]:
    """``BN(W x + b) = (g / std) W x + (b - mean) g / std + beta``, computed in float64."""
    mean, var = state[norm.params["mean"]].double(), state[norm.params["var"]].double()
    gamma = state[norm.params["weight"]].double() if "weight" in norm.params else torch.ones_like(mean)
    beta = state[norm.params["bias"]].double() if "bias" in norm.params else torch.zeros_like(mean)
    ratio = gamma / torch.sqrt(var + norm.attrs["eps"])
    shape = (-1,) + (1,) * (weight.dim() - 1)
    folded_weight = (weight.double() * ratio.reshape(shape)).float()
    folded_bias = ((bias.double() - mean) * ratio + beta).float()
    return folded_weight, folded_bias, Norm(gamma.float(), beta.float())


def _fold_pads(graph: Graph) -> Graph:
    """Zero padding that only convolutions read becomes theirs, asymmetric if need be."""
    gone = {
        node.name: node
        for node in graph.nodes
        if node.op == "pad"
        and min(node.attrs["pads"]) >= 0
        and len(node.attrs["pads"]) <= 4
        and node.name not in graph.outputs
        and all(user.op == "conv2d" for user in graph.consumers[node.name])
    }
    nodes = []
    for old in graph.nodes:
        if old.name in gone:
            continue
        node = old
        if old.op == "conv2d" and old.inputs[0] in gone:
            pad = gone[node.inputs[0]]
            left, right, top, bottom = (*pad.attrs["pads"], 0, 0)[:4]
            above, before, below, behind = node.attrs["padding"]
            attrs = {**node.attrs, "padding": (above + top, before + left, below + bottom, behind + right)}
            node = replace(node, inputs=pad.inputs, attrs=attrs)
        nodes.append(node)
    return Graph(tuple(nodes), graph.inputs, graph.outputs)
