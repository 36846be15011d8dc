"""Second moments of a site: all that its linear objective needs of the data, gathered once in fixed memory.

For a site with input rows ``x_q`` (quantised), a 1 appended for the bias, and float targets ``y``, the objective is

    || W' x_q' - y ||^2 = W' H W'^T - 2 <W', T> + yy,    H = sum x_q' x_q'^T,  T = sum y x_q'^T,  yy = sum y^2

so every later step on the weights costs no pass over the data. A convolution's rows are its patches; a grouped one has one H
per group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pyquant.data import Batch
from pyquant.graph import SITE_OPS, FloatView, Graph, Node, compute, run
from pyquant.model import QModel, QuantView
from pyquant.ops.fake_quantize import dequantize, quantize

# Output positions of an image that are looked at, about: more of a large map costs time and adds next to nothing.
POSITIONS = 128


@dataclass(frozen=True)
class Moments:
    """Sums over the rows of one site, float64; ``G`` groups, ``n`` outputs and ``K`` inputs a group.

    Args:
        h: ``[G, K + 1, K + 1]``. t: ``[G, n, K + 1]``. yy: ``[G, n]``.
        rows: how many rows were summed.
    """

    h: Tensor
    t: Tensor
    yy: Tensor
    rows: int

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.h + other.h, self.t + other.t, self.yy + other.yy, self.rows + other.rows)

    def error(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Mean squared error a row of each output for dequantised weights ``[G, n, K]`` and bias ``[G, n]``; ``[G, n]``."""
        w = torch.cat([weight.double(), bias.double()[..., None]], -1)
        total = ((w @ self.h) * w).sum(-1) - 2 * (w * self.t).sum(-1) + self.yy
        return total.clamp(min=0.0) / self.rows

    def centred(self) -> tuple[Tensor, Tensor]:
        """``H`` and ``T`` a row with the bias solved away: covariances ``[G, K, K]`` and ``[G, n, K]``."""
        h, t, n = self.h / self.rows, self.t / self.rows, self.h[..., -1, -1:] / self.rows
        mean = h[..., :-1, -1]
        cov = h[..., :-1, :-1] - mean[..., :, None] * mean[..., None, :] / n[..., None]
        cross = t[..., :-1] - t[..., -1:] * mean[..., None, :] / n[..., None]
        return cov, cross

    def best_bias(self, weight: Tensor) -> Tensor:
        """The bias ``[G, n]`` of least error for dequantised weights ``[G, n, K]``."""
        mean = self.h[..., :-1, -1]
        return (self.t[..., -1] - (weight.double() * mean[:, None, :]).sum(-1)) / self.h[..., -1, -1][:, None]


def thin_out(out: tuple[int, int]) -> int:
    """Every how many-th output position, in both directions, to take of a feature map: neighbours say nearly the same."""
    return max(1, math.ceil(math.sqrt(out[0] * out[1] / POSITIONS)))


def gather(node: Node, x: Tensor, y: Tensor, kernel: tuple[int, int], turn: int = 0) -> Moments:
    """Moments of one batch.

    Args:
        node: the site.
        x: quantised input, ``[B, C, H, W]`` or ``[B, ..., F]``.
        y: float target, the site's output before any activation.
        kernel: ``(KH, KW)`` of a convolution.
        turn: number of the batch; batches take turns at which positions of a large map they look at.
    """
    if node.op == "linear":
        rows, target = x.reshape(1, -1, x.shape[-1]), y.reshape(1, -1, y.shape[-1])
        return _sums(rows, target)
    a, groups = node.attrs, node.attrs["groups"]
    every = thin_out((y.shape[2], y.shape[3]))
    v, h = turn % min(every, y.shape[2]), (turn // every) % min(every, y.shape[3])
    target = y[:, :, v::every, h::every]
    top, left, bottom, right = a["padding"]
    sv, sh = a["stride"]
    padded = F.pad(x, (left, right, top, bottom))[:, :, v * sv :, h * sh :]
    stride = (sv * every, sh * every)
    if kernel == (1, 1):
        patches = padded[:, :, :: stride[0], :: stride[1]].flatten(2)
    else:
        patches = F.unfold(padded, kernel, a["dilation"], 0, stride)
    b, _, positions = patches.shape
    rows = patches.reshape(b, groups, -1, positions).permute(1, 0, 3, 2).reshape(groups, b * positions, -1)
    return _sums(
        rows,
        target.flatten(2)
        .reshape(b, groups, -1, positions)
        .permute(1, 0, 3, 2)
        .reshape(groups, b * positions, -1),
    )


def _sums(rows: Tensor, target: Tensor) -> Moments:
    """Moments of rows ``[G, R, K]`` and targets ``[G, R, n]``."""
    xq = torch.cat([rows, torch.ones(*rows.shape[:2], 1)], -1)
    return Moments(
        (xq.mT @ xq).double(), (target.mT @ xq).double(), target.double().square().sum(1), xq.shape[1]
    )


def kernel_of(q: QModel, site: str) -> tuple[int, int]:
    """``(KH, KW)`` of a site's weight; (1, 1) for a linear layer."""
    weight = q.state[f"{site}.weight"]
    return (weight.shape[2], weight.shape[3]) if weight.dim() == 4 else (1, 1)


class _Gather(FloatView):
    """The float network that adds up the moments of some sites while it runs."""

    def __init__(self, q: QModel, sites: Sequence[str]) -> None:
        super().__init__(q.state)
        self.q, self.sites, self.quant = q, frozenset(sites), QuantView(q)
        self.inputs: dict[str, Tensor] = {}
        self.found: dict[str, Moments] = {}
        self.turn = 0

    def site_input(self, node: Node, value: Tensor) -> Tensor:
        if node.name in self.sites:
            self.inputs[node.name] = value
        return value

    def value(self, node: Node, value: Any) -> Any:
        if node.name in self.inputs:
            x = self.quant.quantized_input(node.name, self.inputs.pop(node.name))
            new = gather(node, x, value, kernel_of(self.q, node.name), self.turn)
            self.found[node.name] = self.found[node.name] + new if node.name in self.found else new
        return value


def parallel_moments(q: QModel, batches: Sequence[Batch], sites: Sequence[str]) -> dict[str, Moments]:
    """Moments of several sites on the float network's own inputs, each quantised to its grid: one pass over the data."""
    view = _Gather(q, sites)
    with torch.no_grad():
        for view.turn, batch in enumerate(batches):
            run(q.graph, view, batch)
    return view.found


def site_groups(q: QModel, budget: int) -> list[list[str]]:
    """Cut the sites into groups whose moments (fit and held out) fit ``budget`` bytes; one site alone may exceed it."""
    groups: list[list[str]] = [[]]
    used = 0
    for site in q.graph.sites:
        weight, g = q.state[f"{site}.weight"], q.graph.by_name[site].attrs.get("groups", 1)
        k = weight[0].numel() + 1
        need = 2 * 8 * (g * k * k + weight.shape[0] * k)
        if groups[-1] and used + need > budget:
            groups.append([])
            used = 0
        groups[-1].append(site)
        used += need
    return groups


def walk(
    q: QModel,
    parts: Sequence[Sequence[Batch]],
    on_site: Callable[[QModel, str, list[Moments]], QModel],
    cache_bytes: int = 2 << 30,
) -> QModel:
    """Go through the network once, site by site, with inputs from the quantised prefix and targets from the float network.

    Args:
        q: a calibrated model.
        parts: streams of batches, such as rows to fit and rows held out.
        on_site: given the model so far, a site and its moments on each part, returns the model with that site's weights decided.
        cache_bytes: what the live values of both networks may take; past it they are recomputed from the inputs at every site.

    Returns:
        The model after the last site.
    """
    batches = [(part, batch) for part, stream in enumerate(parts) for batch in stream]
    rows = sum(batch[0].shape[0] for _, batch in batches)
    frontier: _Frontier = (_Held if _peak_bytes(q) * rows <= cache_bytes else _Recomputed)(
        q, [b for _, b in batches]
    )
    with torch.no_grad():
        for chain in _chains(q.graph):
            site = chain[0]
            if site.op in SITE_OPS:
                sums: list[Moments | None] = [None] * len(parts)
                for i, (part, _) in enumerate(batches):
                    x, y = frontier.at_site(q, chain, i)
                    new, old = gather(site, x, y, kernel_of(q, site.name), i), sums[part]
                    sums[part] = new if old is None else old + new
                q = on_site(q, site.name, [s for s in sums if s is not None])
            frontier.advance(q, chain)
    return q


def _chains(graph: Graph) -> list[list[Node]]:
    """Nodes in order, a clamp or lookup together with the node it alone reads: what lies between them need not be kept."""
    chains: list[list[Node]] = []
    for node in graph.nodes:
        if chains and node.op in ("clamp", "unary") and graph.only_consumer(chains[-1][-1].name) is node:
            chains[-1].append(node)
        else:
            chains.append([node])
    return chains


def _peak_bytes(q: QModel) -> int:
    """What both networks keep live for one row, at most: float values in full, quantised ones as codes."""
    graph, grids = q.graph, QuantView(q).grids
    remaining = {name: len(users) for name, users in graph.consumers.items()}
    live = peak = 0
    size: dict[str, int] = {}
    for chain in _chains(graph):
        last = chain[-1]
        size[last.name] = math.prod(last.shape or ()) * (4 + (1 if last.name in grids else 4))
        live += size[last.name]
        for name in chain[0].inputs:
            remaining[name] -= 1
            live -= 0 if remaining[name] else size[name]
        peak = max(peak, live)
    return peak


class _Frontier(Protocol):
    """Float and quantised values of every batch, at the chain that is being processed."""

    def at_site(self, q: QModel, chain: Sequence[Node], i: int) -> tuple[Tensor, Tensor]:
        """The quantised input and the float output of the site that heads a chain, on batch ``i``; asked once a batch."""

    def advance(self, q: QModel, chain: Sequence[Node]) -> None:
        """Go past a chain, whose weights are now decided."""


class _Held:
    """Keeps live values; a quantised one is kept as codes, which loses nothing."""

    def __init__(self, q: QModel, batches: Sequence[Batch]) -> None:
        self.batches = batches
        self.grids = QuantView(q).grids
        self.float_values: list[dict[str, Any]] = [{} for _ in batches]
        self.quant_values: list[dict[str, Any]] = [{} for _ in batches]
        order = [(chain[0].inputs, chain[-1].name) for chain in _chains(q.graph)]
        self.last_use = {name: last for inputs, last in order for name in inputs}

    def at_site(self, q: QModel, chain: Sequence[Node], i: int) -> tuple[Tensor, Tensor]:
        x = QuantView(q, ()).site_input_of(chain[0].name, self._read(q, i, chain[0].inputs[0]))
        return x, self._advance_float(q, chain, i)

    def advance(self, q: QModel, chain: Sequence[Node]) -> None:
        head, last = chain[0], chain[-1].name
        view, qparams = QuantView(q, (head.name,)), q.ranges.get(last)
        for i, batch in enumerate(self.batches):
            if head.op not in SITE_OPS:
                self._advance_float(q, chain, i)
            inputs = {name: self._read(q, i, name) for name in head.inputs}
            value = (
                batch[q.graph.inputs.index(head.name)]
                if head.op == "input"
                else compute(view, head, inputs, len(batch[0]))
            )
            for node in chain[1:]:
                value = compute(view, node, {node.inputs[0]: value}, len(batch[0]))
            # Fake-quantised already where it has a grid, so its codes are exact.
            if qparams is not None:
                value = quantize(value, qparams.scale, qparams.zero_point, self.grids[last])
            self.quant_values[i][last] = value
            self._free(self.quant_values[i], head, last)

    def _advance_float(self, q: QModel, chain: Sequence[Node], i: int) -> Any:
        """Compute a chain of the float network; returns the head's value."""
        view, batch, values = FloatView(q.state), self.batches[i], self.float_values[i]
        head, last = chain[0], chain[-1].name
        first = value = (
            batch[q.graph.inputs.index(head.name)]
            if head.op == "input"
            else compute(view, head, values, len(batch[0]))
        )
        for node in chain[1:]:
            value = compute(view, node, {node.inputs[0]: value}, len(batch[0]))
        values[last] = value
        self._free(values, head, last)
        return first

    def _read(self, q: QModel, i: int, name: str) -> Any:
        value, qparams = self.quant_values[i][name], q.ranges.get(name)
        return (
            value
            if qparams is None
            else dequantize(value, qparams.scale, qparams.zero_point, self.grids[name])
        )

    def _free(self, values: dict[str, Any], head: Node, last: str) -> None:
        for name in set(head.inputs):
            if self.last_use[name] == last:
                del values[name]


class _Recomputed:
    """Keeps nothing: runs both networks up to the site for every batch. Slower with depth, and never more than one batch."""

    def __init__(self, q: QModel, batches: Sequence[Batch]) -> None:
        self.batches = batches

    def at_site(self, q: QModel, chain: Sequence[Node], i: int) -> tuple[Tensor, Tensor]:
        site = chain[0]
        y = run(up_to(q.graph, site.name), FloatView(q.state), self.batches[i])[site.name]
        view, name = QuantView(q), site.inputs[0]
        return view.site_input_of(site.name, run(up_to(q.graph, name), view, self.batches[i])[name]), y

    def advance(self, q: QModel, chain: Sequence[Node]) -> None:
        pass


def up_to(graph: Graph, name: str) -> Graph:
    """The part of a graph that computes one value; all inputs stay."""
    needed = {name}
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update(node.inputs)
    needed.update(graph.inputs)
    return Graph(tuple(n for n in graph.nodes if n.name in needed), graph.inputs, (name,))
