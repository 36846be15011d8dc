"""QModel: a network with its plan and what each step found out, as a frozen value. A step returns a new one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from pyquant.capture import capture
from pyquant.errors import DataError, GridError, SiteError
from pyquant.fold import Norm, fold
from pyquant.graph import SITE_OPS, Graph, Node
from pyquant.grid import Grid, Plan, QParams, SiteGrids
from pyquant.ops.fake_quantize import dequantize, fake_quantize, quantize
from pyquant.quantizer import Observation, choose_range, weight_qparams
from pyquant.regions import regions, source

# Values that adds, pools and lookups read keep 8 bits, whatever the sites that read them ask for.
STORED_BITS = 8


@dataclass(frozen=True)
class SiteWeights:
    """A site's weights on their grid.

    Args:
        codes: ``[N, ...]`` int8 or uint8, shaped like the float weight.
        qparams: scale and zero point of the weight grid.
        bias: ``[N]`` float32.
    """

    codes: Tensor
    qparams: QParams
    bias: Tensor

    def dequantized(self, grid: Grid) -> Tensor:
        """The float weight that the codes stand for."""
        return dequantize(self.codes, self.qparams.scale, self.qparams.zero_point, grid)


@dataclass(frozen=True)
class QModel:
    """A network on its way to integers. Never change its tensors in place; ``dataclasses.replace`` makes the next one.

    Args:
        graph: structure, batch normalisation folded.
        state: float tensors by name.
        plan: site -> grids.
        norms: what folded batch normalisations knew.
        observed: value -> what calibration saw; empty before ``calibrate``.
        ranges: value, or ``"<site>:input"`` where a site reads it on a narrower grid -> scale and zero point.
        weights: site -> weights on their grid.
        log: one dict a step, for reports.
    """

    graph: Graph
    state: Mapping[str, Tensor]
    plan: Plan
    norms: Mapping[str, Norm] = field(default_factory=dict)
    observed: Mapping[str, Observation] = field(default_factory=dict)
    ranges: Mapping[str, QParams] = field(default_factory=dict)
    weights: Mapping[str, SiteWeights] = field(default_factory=dict)
    log: tuple[Mapping[str, Any], ...] = ()

    def logged(self, step: str, **facts: Any) -> QModel:
        """The same model with one more entry in its log."""
        return replace(self, log=(*self.log, {"step": step, **facts}))

    def check_calibrated(self, step: str) -> None:
        """Raise DataError unless ranges and weights are there."""
        if not self.ranges or not self.weights:
            raise DataError(f"{step} needs a calibrated model; call calibrate(model, data) first.")


def prepare(
    model: nn.Module,
    example: Tensor | Sequence[Tensor],
    *,
    weights: Grid | None = None,
    inputs: Grid | None = None,
    bits: Mapping[str, tuple[int, int]] | None = None,
    exclude: Collection[str] = (),
) -> QModel:
    """Capture a model and give every site its grids.

    Args:
        model: the trained model; left unchanged.
        example: one batch of inputs ``[B, ...]`` float32, ``B`` may be 1; one tensor per argument of ``forward``.
        weights: grid of the weights; per output channel with a zero point by default, which is free when the network runs and
            halves the error of many 4-bit depthwise weights. 8 bits have no room for one and stay symmetric.
        inputs: grid of the activations; per tensor, unsigned. Default 8 bits.
        bits: site -> (weight bits, input bits), for sites that differ.
        exclude: sites that stay float.

    Returns:
        A model with a plan and no ranges yet.

    Raises:
        CaptureError, SiteError, GridError, DataError: as their names say, in one sentence each.
    """
    weights = Grid(8, axis=0, symmetric=False) if weights is None else weights
    inputs = Grid(8, signed=False) if inputs is None else inputs
    if not isinstance(weights, Grid):
        raise GridError(f"weights={weights!r} is no grid; use one such as Grid(4, axis=0).")
    if not isinstance(inputs, Grid):
        raise GridError(f"inputs={inputs!r} is no grid; use one such as Grid(8, signed=False).")
    if inputs.axis is not None or inputs.signed:
        raise DataError(
            f"activations need a per-tensor unsigned grid, and {inputs} was given; use Grid(bits, signed=False)."
        )
    if isinstance(exclude, str):
        raise SiteError(f"exclude={exclude!r} is one string; give the names of sites, such as [{exclude!r}].")
    if not isinstance(exclude, Collection) or not all(isinstance(site, str) for site in exclude):
        raise SiteError(f"exclude={exclude!r} holds no names of sites; give them, such as ['fc'], or ().")
    bits = {} if bits is None else bits
    graph, state, norms = fold(*capture(model, example))
    for site in exclude:
        graph.site(site)
    check_bits(graph, bits)
    graph = _exclude(graph, frozenset(exclude) | _without_codes(graph))
    if not graph.sites:
        raise SiteError("the model has no convolution or linear layer left to quantise.")
    for site in graph.sites:
        if not bool(
            torch.isfinite(state[f"{site}.weight"]).all() and torch.isfinite(state[f"{site}.bias"]).all()
        ):
            raise DataError(
                f"site {site!r} has NaN or infinite weights after batch normalisation was folded; repair the model."
            )
        if weights.group_size is not None:
            weights.scale_shape(tuple(state[f"{site}.weight"].shape))
    plan = Plan({site: SiteGrids(weights, inputs) for site in graph.sites})
    return replace(QModel(graph, state, plan, norms), plan=with_bits(plan, bits))


def check_bits(graph: Graph, bits: Any) -> None:
    """Raise SiteError or GridError unless it is a mapping, every name is a site's and every value is a pair of bits."""
    if not isinstance(bits, Mapping):
        raise GridError(
            f"bits={bits!r} is no mapping; give site -> (weight bits, input bits), such as {{'fc': (8, 8)}}."
        )
    for site, pair in bits.items():
        graph.site(site)
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise GridError(
                f"bits of site {site!r} are {pair!r}; give (weight bits, input bits), such as (4, 8)."
            )


def with_bits(plan: Plan, bits: Mapping[str, tuple[int, int]]) -> Plan:
    """The plan with other (weight bits, input bits) for some sites."""
    return plan.replace(
        {s: SiteGrids(plan[s].weight.with_bits(w), plan[s].input.with_bits(a)) for s, (w, a) in bits.items()}
    )


def _without_codes(graph: Graph) -> frozenset[str]:
    """Sites that read a value which codes ``(H, W, C)`` cannot hold channels last: a linear layer over maps."""
    ranks = {"conv2d": (3,), "linear": (1, 2)}
    shapes = {site: graph.by_name[graph.by_name[site].inputs[0]].shape or () for site in graph.sites}
    return frozenset(
        site for site, shape in shapes.items() if len(shape) not in ranks[graph.by_name[site].op]
    )


def _exclude(graph: Graph, names: frozenset[str]) -> Graph:
    """Turn sites into plain float nodes."""
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.name not in names:
            nodes.append(node)
            continue
        tensors = {"p0": node.params["weight"], "p1": node.params["bias"]}
        args: list[Any] = [{"input": i} for i in range(3)]
        inputs = node.inputs
        if node.op == "conv2d":
            top, left, bottom, right = node.attrs["padding"]
            pad = Node(f"{node.name}:pad", "pad", inputs, {"pads": (left, right, top, bottom)})
            nodes.append(pad)
            inputs = (pad.name,)
            args += [list(node.attrs["stride"]), [0, 0], list(node.attrs["dilation"]), node.attrs["groups"]]
        attrs = {"target": f"aten.{node.op}.default", "args": args, "kwargs": {}}
        nodes.append(Node(node.name, "aten", inputs, attrs, tensors, node.shape))
    return Graph(tuple(nodes), graph.inputs, graph.outputs)


# ------------------------------------------------------------------------------------------------------- grids of activations
def value_grids(q: QModel) -> dict[str, Grid]:
    """Key of ``QModel.ranges`` -> its grid, under the present plan.

    A value that only sites read has the widest of their grids; one that an add, pool or lookup reads has 8 bits. A site whose
    own grid is narrower than its value's has an entry ``"<site>:input"``.
    """
    graph = q.graph
    found = regions(graph)
    readers: dict[str, list[Grid]] = {name: [] for name in found.quantized}
    shared: set[str] = set()
    for node in graph.nodes:
        if node.name not in found.integer or node.op in ("flatten", "max_pool"):
            continue
        for name in node.inputs:
            value = source(graph, name)
            if node.op in SITE_OPS:
                readers[value].append(q.plan[node.name].input)
            elif value in readers:
                shared.add(value)
    any_grid = q.plan[graph.sites[0]].input
    grids = {
        value: any_grid.with_bits(STORED_BITS if value in shared else max(g.bits for g in read))
        for value, read in readers.items()
    }
    for site in graph.sites:
        if q.plan[site].input.bits != grids[source(graph, graph.by_name[site].inputs[0])].bits:
            grids[f"{site}:input"] = q.plan[site].input
    return grids


def input_key(q: QModel, site: str) -> str:
    """The key of ``QModel.ranges`` under which a site reads its input."""
    own = f"{site}:input"
    return own if own in q.ranges else source(q.graph, q.graph.by_name[site].inputs[0])


def with_ranges(q: QModel, method: str) -> QModel:
    """Place every activation grid of the plan on what was observed. The widest grids keep the full range."""
    ranges = {}
    for key, grid in value_grids(q).items():
        value = (
            key
            if key in q.observed
            else source(q.graph, q.graph.by_name[key.removesuffix(":input")].inputs[0])
        )
        ranges[key] = choose_range(q.observed[value], grid, method)
    return replace(q, ranges=ranges)


def nearest_weights(q: QModel, site: str, grid: Grid) -> SiteWeights:
    """Round a site's float weight to the nearest code, on the grid of least squared error."""
    weight = q.state[f"{site}.weight"]
    qparams = weight_qparams(weight, grid)
    return SiteWeights(
        quantize(weight, qparams.scale, qparams.zero_point, grid), qparams, q.state[f"{site}.bias"]
    )


class QuantView:
    """The network seen through its grids: fake-quantised activations, dequantised weights. Differentiable in the biases.

    Args:
        q: a calibrated model.
        sites: the sites to show quantised; None shows all. Values between sites are quantised with ``values`` true.
        values: whether activations are fake-quantised.
    """

    def __init__(self, q: QModel, sites: Collection[str] | None = None, values: bool = True) -> None:
        self.q = q
        self.sites = frozenset(q.graph.sites if sites is None else sites)
        self.grids = value_grids(q) if values else {}
        self.cache = {
            site: q.weights[site].dequantized(q.plan[site].weight) for site in self.sites if site in q.weights
        }

    def params(self, node: Node) -> Mapping[str, Tensor]:
        """Dequantised weights of a site, float tensors of anything else."""
        if node.op in SITE_OPS and node.name in self.cache:
            return {"weight": self.cache[node.name], "bias": self.q.weights[node.name].bias}
        return {role: self.q.state[key] for role, key in node.params.items()}

    def site_input(self, node: Node, value: Tensor) -> Tensor:
        """Fake-quantise to the site's own grid where it is narrower than the value's."""
        return self.site_input_of(node.name, value) if node.name in self.sites else value

    def site_input_of(self, site: str, value: Tensor) -> Tensor:
        """What a site makes of the quantised value it takes."""
        key = f"{site}:input"
        return self._fake(key, value) if key in self.grids else value

    def quantized_input(self, site: str, value: Tensor) -> Tensor:
        """What a site reads when ``value`` is the float network's input to it."""
        key = source(self.q.graph, self.q.graph.by_name[site].inputs[0])
        return self.site_input_of(site, self._fake(key, value))

    def value(self, node: Node, value: Any) -> Any:
        """Fake-quantise a value that has a grid."""
        return self._fake(node.name, value) if node.name in self.grids else value

    def _fake(self, key: str, value: Tensor) -> Tensor:
        return self.fake_quantize(value, self.q.ranges[key], self.grids[key])

    @staticmethod
    def fake_quantize(value: Tensor, qparams: QParams, grid: Grid) -> Tensor:
        """Fake-quantise one tensor."""
        return fake_quantize(value, qparams.scale, qparams.zero_point, grid)
