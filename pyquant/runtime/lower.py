"""Lower a quantised model to the integer program."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyquant.errors import BackendError, GridError
from pyquant.graph import SITE_OPS, Graph, Node
from pyquant.grid import Grid, QParams
from pyquant.layers import evaluate
from pyquant.model import QModel, input_key, value_grids
from pyquant.ops.fake_quantize import dequantize, quantize
from pyquant.ops.pack import pack
from pyquant.regions import Group, regions, source
from pyquant.runtime.program import Op, Program, Value

ACCUMULATOR_LIMIT = 2**31 - 1


def lower(q: QModel) -> Program:
    """Turn a calibrated model into the integer program that computes it.

    Returns:
        A program whose values keep the names of the graph's; codes of a value that floats read too are named ``"<value>:codes"``.

    Raises:
        DataError: the model is not calibrated. BackendError: a reduction too long for an int32 accumulator.
    """
    q.check_calibrated("lower")
    return _Lowering(q).program()


class _Lowering:
    def __init__(self, q: QModel) -> None:
        self.q = q
        self.graph: Graph = q.graph
        self.regions = regions(q.graph)
        self.grids = value_grids(q)
        self.codes: dict[str, str] = {}  # graph value -> program value that holds its codes
        self.floats: dict[str, str] = {}  # graph value -> program value that holds its floats
        self.values: dict[str, Value] = {}
        self.ops: list[Op] = []

    def program(self) -> Program:
        heads = {group.last: head for head, group in self.regions.groups.items()}
        inner = {name for group in self.regions.groups.values() for name in group.inner}
        for node in self.graph.nodes:
            if node.op == "input":
                self.values[node.name] = Value("float", self._shape(node.name))
                self.floats[node.name] = node.name
            elif node.name in self.regions.groups:
                self._group(node, self.regions.groups[node.name])
            elif node.name in inner or node.name in heads:
                continue
            elif node.name in self.regions.integer:
                self._integer(node)
            else:
                self._float(node)
        outputs = tuple(self._as_float(name) for name in self.graph.outputs)
        return Program(self.values, tuple(self.ops), self.graph.inputs, outputs)

    # ------------------------------------------------------------------------------------------------------------- values
    def _shape(self, name: str) -> tuple[int, ...]:
        return self.graph.by_name[name].shape or ()

    def _emit(
        self,
        kind: str,
        name: str,
        inputs: tuple[str, ...],
        output: str,
        value: Value,
        attrs=None,
        tensors=None,
    ) -> str:
        self.values[output] = value
        self.ops.append(Op(kind, name, inputs, output, attrs or {}, tensors or {}))
        return output

    def _new_codes(self, name: str) -> str:
        """The program value for the codes of a graph value."""
        self.codes[name] = name if name not in self.floats else f"{name}:codes"
        return self.codes[name]

    def _codes(self, name: str) -> str:
        """Codes of a graph value; quantises the floats where there are none yet."""
        if name not in self.codes:
            inputs = (self._as_float(name),)
            attrs = _attrs(self._qparams(name), self._grid(name))
            output = self._new_codes(name)
            self._emit(
                "quantize", name, inputs, output, Value("codes", codes_shape(self._shape(name))), attrs
            )
        return self.codes[name]

    def _as_float(self, name: str) -> str:
        """Floats of a graph value; dequantises the codes where there are none yet."""
        if name not in self.floats:
            qparams = self._qparams(name)
            output = f"{name}:float"
            attrs = {"scale": qparams.scale.item(), "zero_point": int(qparams.zero_point)}
            self._emit(
                "dequantize", name, (self.codes[name],), output, Value("float", self._shape(name)), attrs
            )
            self.floats[name] = output
        return self.floats[name]

    def _grid(self, name: str) -> Grid:
        return self.grids[source(self.graph, name)]

    def _qparams(self, name: str) -> QParams:
        return self.q.ranges[source(self.graph, name)]

    # ----------------------------------------------------------------------------------------------------- sites and adds
    def _group(self, head: Node, group: Group) -> None:
        coded = source(self.graph, group.last) in self.grids
        if head.op not in SITE_OPS:
            self._add(head, group)
            return
        x, x_qparams = self._site_input(head)
        attrs, tensors = self._site(head, x_qparams)
        inputs: tuple[str, ...] = (x,)
        if not coded:
            scale = x_qparams.scale.double() * self.q.weights[head.name].qparams.scale.double()
            tensors |= _affine(scale, self.q.weights[head.name].bias, 1.0, head.name)
            self.floats[group.last] = group.last
            self._emit(
                "conv", head.name, inputs, group.last, Value("float", self._shape(group.last)), attrs, tensors
            )
            return
        y, grid = self._qparams(group.last), self._grid(group.last)
        scale = x_qparams.scale.double() * self.q.weights[head.name].qparams.scale.double()
        tensors |= _affine(scale, self.q.weights[head.name].bias, y.scale.item(), head.name)
        attrs |= _clamp(y, grid, group.low, group.high)
        if group.residual is not None:
            inputs += (self._codes(group.residual),)
            r = self._qparams(group.residual)
            attrs |= {"residual_zero": int(r.zero_point), "residual_scale": _ratio(r.scale, y.scale)}
        shape = codes_shape(self._shape(group.last))
        self._emit(
            "conv", head.name, inputs, self._new_codes(group.last), Value("codes", shape), attrs, tensors
        )

    def _site_input(self, head: Node) -> tuple[str, QParams]:
        """The codes a site reads, moved to its own narrower grid by a table where it has one."""
        name, key = head.inputs[0], input_key(self.q, head.name)
        codes = self._codes(name)
        if key != f"{head.name}:input":
            return codes, self._qparams(name)
        table = self._table(
            self._qparams(name), self._grid(name), lambda x: x, self.q.ranges[key], self.grids[key]
        )
        value = self.values[codes]
        return self._emit("lookup", key, (codes,), key, value, {}, {"table": table}), self.q.ranges[key]

    def _site(self, node: Node, x: QParams) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Attributes and packed weight of a site, seen as a convolution."""
        site, grid = self.q.weights[node.name], self.q.plan[node.name].weight
        if grid.group_size is not None:
            raise GridError(
                f"site {node.name!r} has group_size={grid.group_size}, which the integer program does not have; use None."
            )
        codes = site.codes
        attrs: dict[str, Any] = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1}
        if node.op == "conv2d":
            attrs = {key: node.attrs[key] for key in attrs}
        else:
            codes = self._rows_as_maps(node, codes)[..., None, None]
        n = codes.shape[0]
        zero = site.qparams.zero_point.to(torch.int32).reshape(-1).expand(n).contiguous()
        longest = (
            codes[0].numel()
            * _reach(int(x.zero_point), self._input_grid(node))
            * _reach(int(zero.abs().max()), grid)
        )
        if longest > ACCUMULATOR_LIMIT:
            raise BackendError(
                f"site {node.name!r} sums {codes[0].numel()} products, which may overflow int32; use fewer bits or split it."
            )
        rows = codes.permute(0, 2, 3, 1).reshape(n, -1)
        tensors = {"weight": pack(rows, grid.bits, zero)}
        if bool(zero.any()):
            tensors["weight_zero"] = zero
        attrs |= {
            "kernel": tuple(codes.shape[2:]),
            "x_zero": int(x.zero_point),
            "weight_bits": grid.bits,
            "weight_signed": grid.signed,
        }
        return attrs, tensors

    def _input_grid(self, node: Node) -> Grid:
        return self.grids[input_key(self.q, node.name)]

    def _rows_as_maps(self, node: Node, codes: Tensor) -> Tensor:
        """Columns of a linear layer behind a flattened map go from (C, H, W) to the codes' order (H, W, C)."""
        before = self.graph.by_name[node.inputs[0]]
        shape = self._shape(before.inputs[0]) if before.op == "flatten" else ()
        if len(shape) != 3 or before.name not in self.regions.integer:
            return codes
        return codes.reshape(-1, *shape).permute(0, 2, 3, 1).reshape(codes.shape[0], -1)

    def _add(self, head: Node, group: Group) -> None:
        y, grid = self._qparams(group.last), self._grid(group.last)
        a, b = (self._qparams(name) for name in head.inputs)
        attrs = {
            "a_zero": int(a.zero_point), "a_scale": _ratio(a.scale, y.scale),
            "b_zero": int(b.zero_point), "b_scale": _ratio(b.scale, y.scale),
        } | _clamp(y, grid, group.low, group.high)  # fmt: skip
        inputs = (self._codes(head.inputs[0]), self._codes(head.inputs[1]))
        shape = codes_shape(self._shape(group.last))
        self._emit("add", head.name, inputs, self._new_codes(group.last), Value("codes", shape), attrs)

    # --------------------------------------------------------------------------------------------------------- other nodes
    def _integer(self, node: Node) -> None:
        codes = (self._codes(node.inputs[0]),)
        name, shape = node.name, Value("codes", codes_shape(self._shape(node.name)))
        x = self._qparams(node.inputs[0])
        if node.op == "flatten":
            self._emit("flatten", name, codes, self._new_codes(name), shape)
        elif node.op == "max_pool":
            self._emit("max_pool", name, codes, self._new_codes(name), shape, dict(node.attrs))
        elif node.op == "avg_pool":
            y, grid = self._qparams(name), self._grid(name)
            window = node.attrs["window"]
            multiplier = np.float32(x.scale.item() / (y.scale.item() * window[0] * window[1])).item()
            attrs = {**node.attrs, "x_zero": int(x.zero_point), "multiplier": multiplier} | _clamp(
                y, grid, None, None
            )
            self._emit("avg_pool", name, codes, self._new_codes(name), shape, attrs)
        else:
            table = self._table(
                x,
                self._grid(node.inputs[0]),
                lambda v: evaluate(node.op, node.attrs, [v], {}, 1),
                self._qparams(name),
                self._grid(name),
            )
            self._emit("lookup", name, codes, self._new_codes(name), shape, {}, {"table": table})

    def _table(self, x: QParams, x_grid: Grid, function, y: QParams, y_grid: Grid) -> Tensor:
        """Codes of ``function`` of every code: exactly what the fake-quantised network computes."""
        codes = torch.arange(256).clamp(max=x_grid.qmax).to(x_grid.code_dtype)
        reals = dequantize(codes, x.scale, x.zero_point, x_grid)
        return quantize(function(reals), y.scale, y.zero_point, y_grid)

    def _float(self, node: Node) -> None:
        inputs = tuple(self._as_float(name) for name in node.inputs)
        attrs = {"op": node.op, "attrs": dict(node.attrs)}
        tensors = {role: self.q.state[key] for role, key in node.params.items()}
        self.floats[node.name] = node.name
        self._emit(
            "aten", node.name, inputs, node.name, Value("float", self._shape(node.name)), attrs, tensors
        )


def codes_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Layout of codes: ``(C, H, W) -> (H, W, C)``, ``(F,) -> (1, 1, F)``, ``(T, F) -> (1, T, F)``."""
    if len(shape) == 3:
        return (shape[1], shape[2], shape[0])
    return (1,) * (3 - len(shape)) + tuple(shape)


def _attrs(qparams: QParams, grid: Grid) -> dict[str, Any]:
    return {
        "scale": qparams.scale.item(),
        "zero_point": int(qparams.zero_point),
        "low": grid.qmin,
        "high": grid.qmax,
    }


def _clamp(y: QParams, grid: Grid, low: float | None, high: float | None) -> dict[str, Any]:
    """Bounds in codes. Quantising is monotone, so clamping codes is clamping reals."""

    def code(bound: float) -> int:
        return int(quantize(torch.tensor(float(bound)), y.scale, y.zero_point, grid))

    return {
        "y_zero": int(y.zero_point),
        "low": grid.qmin if low is None else code(low),
        "high": grid.qmax if high is None else code(high),
    }


def _affine(scale: Tensor, bias: Tensor, y_scale: float, site: str) -> dict[str, Tensor]:
    """Fold ``s_x s_w / s_y`` and ``bias / s_y`` once, in float64."""
    n = bias.shape[0]
    tensors = {
        "multiplier": (scale / y_scale).float().reshape(-1).expand(n).contiguous(),
        "bias": (bias.double() / y_scale).float(),
    }
    if not bool(torch.isfinite(tensors["multiplier"]).all() and torch.isfinite(tensors["bias"]).all()):
        raise GridError(
            f"site {site!r} has scales so far apart that their ratio is no float32; look for a constant or exploding value."
        )
    return tensors


def _ratio(scale: Tensor, y_scale: Tensor) -> float:
    return np.float32(scale.item() / y_scale.item()).item()


def _reach(zero: int, grid: Grid) -> int:
    """Largest ``|q - z|``."""
    return max(abs(grid.qmax - zero), abs(grid.qmin - zero), abs(grid.qmin + zero))
