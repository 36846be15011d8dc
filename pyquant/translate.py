"""From an exported program to a :class:`pyquant.graph.Graph`, node by node."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind

from pyquant.errors import CaptureError
from pyquant.exported import FxNode, module_path, shape_of, size_of, where
from pyquant.graph import Graph, Node
from pyquant.layers import FLOAT_TARGETS, UNARY

METADATA_CHECK = "_assert_tensor_metadata"
IDENTITIES = ("clone", "contiguous", "alias", "detach", "lift_fresh_copy", "dropout", METADATA_CHECK)


def translate(program: ExportedProgram) -> tuple[Graph, dict[str, Tensor]]:
    """Return the graph of an exported program and its state (name -> tensor).

    Raises CaptureError, naming the module, for an operation, result or dtype that pyquant does not run.
    """
    return _Reader(program).read()


class _Reader:
    """Translates an exported program node by node."""

    def __init__(self, program: ExportedProgram) -> None:
        self.program = program
        self.signature = program.graph_signature
        self.state: dict[str, Tensor] = {}
        self.nodes: list[Node] = []
        self.value: dict[fx.Node, str] = {}  # fx node -> name of our node
        self.key: dict[fx.Node, str] = {}  # fx node -> key of a lifted tensor
        self.batch: dict[fx.Node, int] = {}  # fx node -> k, for symbolic sizes k * batch
        self.names: set[str] = set()
        self.norms: set[fx.Node] = set()
        # A module may be called "relu", as the node of a functional ReLU is: modules' names are for sites.
        self.modules = {module_path(node) for node in program.graph.nodes}

    def read(self) -> tuple[Graph, dict[str, Tensor]]:
        self._check_outputs()
        inputs, outputs = [], []
        for fx_node in self.program.graph.nodes:
            if fx_node.op == "placeholder":
                key = self._lifted(fx_node)
                if key is not None:
                    self.key[fx_node] = key
                    continue
                inputs.append(fx_node.name)
                dtype = str(fx_node.meta["val"].dtype).removeprefix("torch.")
                if not fx_node.meta["val"].is_floating_point():
                    raise CaptureError(
                        f"input {fx_node.name!r} is {dtype}; programs take float inputs, so quantise the part behind the embedding."
                    )
                self._emit(
                    fx_node, Node(fx_node.name, "input", attrs={"dtype": dtype}, shape=shape_of(fx_node))
                )
            elif fx_node.op == "output":
                for item, spec in zip(fx_node.args[0], self.signature.output_specs, strict=True):
                    if spec.kind is not OutputKind.USER_OUTPUT:
                        continue
                    if item not in self.value:
                        raise CaptureError(
                            f"the model returns {item!r}; return only tensors that it computed."
                        )
                    outputs.append(self.value[item])
            else:
                self._call(fx_node)
        used = {name for node in self.nodes for name in node.params.values()}
        graph = Graph(tuple(self.nodes), tuple(inputs), tuple(outputs))
        return graph, {key: value for key, value in self.state.items() if key in used}

    def _check_outputs(self) -> None:
        """Refuse what pure functions of tensors cannot say: dicts, and state that changes between calls."""
        kind = self.program.call_spec.out_spec.type
        if kind not in (None, tuple, list):
            raise CaptureError(
                f"the model returns a {kind.__name__}; wrap it to return a tensor or a tuple of tensors."
            )
        if self.signature.buffers_to_mutate:
            buffer = next(iter(self.signature.buffers_to_mutate.values()))
            raise CaptureError(f"the model changes its buffer {buffer!r} while it runs; remove that state.")

    def _lifted(self, node: FxNode) -> str | None:
        """State key of a placeholder that is a parameter, buffer or constant; None for a user's input."""
        table = {**self.signature.inputs_to_parameters, **self.signature.inputs_to_buffers}
        table.update(self.signature.inputs_to_lifted_tensor_constants)
        key = table.get(node.name)
        if key is None:
            return None
        tensor = self.program.state_dict.get(key)
        tensor = self.program.constants[key] if tensor is None else tensor
        self.state[key] = tensor.detach().clone()
        return key

    def _emit(self, fx_node: FxNode, node: Node) -> None:
        value = fx_node.meta.get("val")
        if isinstance(value, Tensor) and value.is_complex():
            raise CaptureError(
                f"{where(fx_node)} computes {value.dtype} values; pyquant runs real numbers only."
            )
        self.nodes.append(node)
        self.names.add(node.name)
        self.value[fx_node] = node.name

    def _op(self, node: FxNode, kind: str, inputs: Sequence[fx.Node], attrs: dict[str, Any]) -> None:
        """Emit a node that is no site and has no tensors of its own."""
        values = tuple(self.value[item] for item in inputs)
        self._emit(node, Node(self._name(node), kind, values, attrs, shape=shape_of(node)))

    def _call(self, node: FxNode) -> None:
        target = "aten.getitem" if node.target is operator.getitem else str(node.target)
        if target == "aten.sym_size.int":
            if node.args[1] != 0:
                raise CaptureError(
                    f"{where(node)} depends on the size of dimension {node.args[1]}; fix that size."
                )
            self.batch[node] = 1
            return
        if node.target is operator.mul and any(a in self.batch for a in node.args):
            factor, other = node.args if node.args[1] in self.batch else node.args[::-1]
            if not isinstance(factor, int):
                raise CaptureError(f"{where(node)} multiplies batch sizes; use whole multiples of the batch.")
            self.batch[node] = factor * self.batch[other]
            return
        short = target.removeprefix("aten.").split(".")[0]
        if short in IDENTITIES or (target == "aten.getitem" and node.args[0] in self.norms):
            source = node.args[0]
            if isinstance(source, fx.Node) and source in self.value:
                self.value[node] = self.value[source]
                return
            if short == METADATA_CHECK:
                return
        translate = getattr(self, f"_read_{short}", None)
        if translate is not None and translate(node):
            return
        self._read_aten(node, target)

    def _tensor_args(self, *items: Any) -> bool:
        return all(item in self.value for item in items)

    def _site_name(self, node: FxNode) -> str:
        """Qualified name of the innermost module, or of the node; ``@k`` from the second call on."""
        return self._unique(module_path(node) or node.name)

    def _name(self, node: FxNode, suffix: str = "") -> str:
        """Name of a node that is no site: the exporter's, unless a module has it."""
        name = node.name + suffix
        return self._unique(f"{name}_op" if name in self.modules else name)

    def _unique(self, name: str) -> str:
        unique, again = name, 0
        while unique in self.names:
            again += 1
            unique = f"{name}@{again}"
        return unique

    def _params(self, **roles: Any) -> dict[str, str] | None:
        """Role -> state key; None when one of them is computed rather than stored."""
        given = {role: item for role, item in roles.items() if item is not None}
        stored = all(item in self.key for item in given.values())
        return {role: self.key[item] for role, item in given.items()} if stored else None

    # ------------------------------------------------------------------------------ kinds with a form of ours
    def _read_conv2d(self, node: FxNode) -> bool:
        x, weight, bias, stride, padding, dilation, groups = _pad_args(
            node.args, (None, None, None, [1, 1], [0, 0], [1, 1], 1)
        )
        params = self._params(weight=weight, bias=bias)
        if params is None or not self._tensor_args(x):
            return False
        stride, dilation = _pair(stride), _pair(dilation)
        kernel = tuple(self.state[params["weight"]].shape[2:])
        if padding == "same":
            total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            pads = (total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2)
        else:
            v, h = (0, 0) if padding == "valid" else _pair(padding)
            pads = (v, h, v, h)
        attrs = {"stride": stride, "padding": pads, "dilation": dilation, "groups": groups}
        self._emit(
            node, Node(self._site_name(node), "conv2d", (self.value[x],), attrs, params, shape_of(node))
        )
        return True

    def _read_linear(self, node: FxNode) -> bool:
        x, weight, bias = _pad_args(node.args, (None, None, None))
        params = self._params(weight=weight, bias=bias)
        if params is None or not self._tensor_args(x):
            return False
        self._emit(node, Node(self._site_name(node), "linear", (self.value[x],), {}, params, shape_of(node)))
        return True

    def _read__native_batch_norm_legit_no_training(self, node: FxNode) -> bool:
        x, weight, bias, mean, var, _, eps = node.args
        params = self._params(weight=weight, bias=bias, mean=mean, var=var)
        if params is None or not self._tensor_args(x):
            return False
        self.norms.add(node)
        self._emit(
            node, Node(self._name(node), "batch_norm", (self.value[x],), {"eps": eps}, params, shape_of(x))
        )
        return True

    def _clamp(self, node: FxNode, low: Any, high: Any) -> bool:
        if not self._tensor_args(node.args[0]) or not all(
            b is None or isinstance(b, int | float) for b in (low, high)
        ):
            return False
        self._op(node, "clamp", node.args[:1], {"low": low, "high": high})
        return True

    def _read_relu(self, node: FxNode) -> bool:
        return self._clamp(node, 0.0, None)

    def _read_relu6(self, node: FxNode) -> bool:
        return self._clamp(node, 0.0, 6.0)

    def _read_hardtanh(self, node: FxNode) -> bool:
        _, low, high = _pad_args(node.args, (None, -1.0, 1.0))
        return self._clamp(node, low, high)

    def _read_clamp(self, node: FxNode) -> bool:
        _, low, high = _pad_args(node.args, (None, None, None))
        return self._clamp(node, low, high)

    _read_clip = _read_clamp

    def _read_clamp_min(self, node: FxNode) -> bool:
        return self._clamp(node, node.args[1], None)

    def _read_clamp_max(self, node: FxNode) -> bool:
        return self._clamp(node, None, node.args[1])

    def _read_add(self, node: FxNode) -> bool:
        a, b = node.args[:2]
        same = (
            self._tensor_args(a, b)
            and a.meta["val"].shape == b.meta["val"].shape
            and node.kwargs.get("alpha", 1) == 1
        )
        if same:
            self._op(node, "add", (a, b), {})
        return same

    def _read_max_pool2d(self, node: FxNode) -> bool:
        x, window, stride, padding, dilation, ceil = _pad_args(node.args, (None, None, None, 0, 1, False))
        if _pair(dilation) != (1, 1) or ceil or not self._tensor_args(x):
            return False
        v, h = _pair(padding)
        attrs = {"window": _pair(window), "stride": _pair(stride or window), "padding": (v, h, v, h)}
        self._op(node, "max_pool", (x,), attrs)
        return True

    def _read_avg_pool2d(self, node: FxNode) -> bool:
        x, window, stride, padding, ceil, _, divisor = _pad_args(
            node.args, (None, None, None, [0, 0], False, True, None)
        )
        if _pair(padding) != (0, 0) or ceil or divisor is not None or not self._tensor_args(x):
            return False
        return self._avg_pool(node, _pair(window), _pair(stride or window))

    def _read_adaptive_avg_pool2d(self, node: FxNode) -> bool:
        size, out = size_of(node.args[0]), node.args[1]
        if len(size) != 3 or any(s % o for s, o in zip(size[1:], out, strict=True)):
            return False
        window = (size[1] // out[0], size[2] // out[1])
        return self._avg_pool(node, window, window)

    def _avg_pool(self, node: FxNode, window: tuple[int, int], stride: tuple[int, int]) -> bool:
        self._op(node, "avg_pool", node.args[:1], {"window": window, "stride": stride})
        return True

    def _read_mean(self, node: FxNode) -> bool:
        x, dims, keep = _pad_args(node.args[:3], (None, None, False))
        size = size_of(x) if x in self.value else ()
        if len(size) != 3 or not dims or sorted(d % 4 for d in dims) != [2, 3] or node.kwargs.get("dtype"):
            return False
        attrs = {"window": size[1:], "stride": size[1:]}
        name = self._name(node, "" if keep else "_pool")
        self._emit(node, Node(name, "avg_pool", (self.value[x],), attrs, shape=(size[0], 1, 1)))
        if not keep:
            self._emit(node, Node(self._name(node), "flatten", (name,), {}, shape=shape_of(node)))
        return True

    def _flatten(self, node: FxNode) -> bool:
        """A view or reshape to ``[batch, everything]`` is a flatten; any other stays what it is."""
        x = node.args[0]
        if not self._tensor_args(x) or len(node.meta["val"].shape) != 2 or not size_of(x):
            return False
        if shape_of(node) != (math.prod(size_of(x)),):
            return False
        if len(size_of(x)) == 1:
            self.value[node] = self.value[x]
        else:
            self._op(node, "flatten", (x,), {})
        return True

    _read_flatten = _read_view = _read_reshape = _flatten

    def _read_pad(self, node: FxNode) -> bool:
        x, pads, mode, value = _pad_args(node.args, (None, None, "constant", None))
        if mode != "constant" or value or len(size_of(x)) != 3 or not self._tensor_args(x):
            return False
        self._op(node, "pad", (x,), {"pads": tuple(pads)})
        return True

    _read_constant_pad_nd = _read_pad

    # ---------------------------------------------------------------------------------------- everything else
    def _read_aten(self, node: FxNode, target: str) -> None:
        if target not in FLOAT_TARGETS:
            raise CaptureError(
                f"{where(node)} uses {target}, which pyquant cannot run; replace it, or leave it out."
            )
        tensors: list[fx.Node] = []
        lifted: list[fx.Node] = []

        def collect(item: Any) -> None:
            if isinstance(item, fx.Node):
                if item in self.value and item not in tensors:
                    tensors.append(item)
                elif item in self.key and item not in lifted:
                    lifted.append(item)
            elif isinstance(item, list | tuple):
                for part in item:
                    collect(part)

        def encode(item: Any) -> Any:
            if isinstance(item, fx.Node):
                if item in self.batch:
                    return {"batch": self.batch[item]}
                return {
                    "input": tensors.index(item) if item in self.value else len(tensors) + lifted.index(item)
                }
            if isinstance(item, torch.dtype):
                return {"dtype": str(item).removeprefix("torch.")}
            if isinstance(item, list | tuple):
                return [encode(part) for part in item]
            if item is None or isinstance(item, bool | int | float | str):
                return item
            raise CaptureError(f"{where(node)} passes {item!r} to {target}, which has no JSON form.")

        kwargs = {
            k: v
            for k, v in node.kwargs.items()
            if k not in ("device", "layout", "pin_memory", "memory_format")
        }
        collect([*node.args, *kwargs.values()])
        attrs = {
            "target": target,
            "args": encode(list(node.args)),
            "kwargs": {k: encode(v) for k, v in kwargs.items()},
        }
        kind = "unary" if target in UNARY and len(tensors) == 1 and not lifted else "aten"
        params = {f"p{i}": self.key[item] for i, item in enumerate(lifted)}
        self._emit(
            node,
            Node(
                self._name(node), kind, tuple(self.value[t] for t in tensors), attrs, params, shape_of(node)
            ),
        )


def _pad_args(args: Sequence[Any], defaults: Sequence[Any]) -> list[Any]:
    return [*args, *defaults[len(args) :]]


def _pair(item: int | Sequence[int]) -> tuple[int, int]:
    values = [item] if isinstance(item, int) else list(item)
    return (values[0], values[-1])
