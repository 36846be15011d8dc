"""What each kind of graph node computes, in float, on torch tensors ``[B, ...]``.

Kinds with an integer form: ``conv2d``, ``linear``, ``clamp`` (ReLU and ReLU6), ``add``, ``max_pool``, ``avg_pool``, ``flatten``,
``unary`` (any one-input elementwise function). The rest are ``batch_norm``, ``pad`` and ``aten``, which stay float.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyquant.errors import CaptureError

# One-input elementwise functions: a table of 256 codes computes each of them exactly.
UNARY = frozenset(
    f"aten.{name}.default"
    for name in (
        "silu",
        "sigmoid",
        "tanh",
        "gelu",
        "hardswish",
        "hardsigmoid",
        "elu",
        "leaky_relu",
        "softplus",
        "mish",
        "neg",
        "abs",
    )
)
# Pure functions of tensors with JSON arguments: all that a checkpoint may ask torch to run.
FLOAT_TARGETS = UNARY | frozenset(
    f"aten.{name}"
    for name in (
        "add.Tensor", "add.Scalar", "sub.Tensor", "sub.Scalar", "mul.Tensor", "mul.Scalar", "div.Tensor", "div.Scalar",
        "pow.Tensor_Scalar", "rsqrt.default", "sqrt.default", "exp.default", "log.default", "erf.default", "clamp.default",
        "maximum.default", "minimum.default", "mean.dim", "sum.dim_IntList", "amax.default", "amin.default", "var.correction",
        "softmax.int", "_softmax.default", "log_softmax.int", "_log_softmax.default", "layer_norm.default", "group_norm.default",
        "native_layer_norm.default", "native_group_norm.default", "matmul.default", "bmm.default", "mm.default", "addmm.default",
        "linear.default", "conv2d.default", "conv1d.default", "conv_transpose2d.input", "embedding.default", "cat.default",
        "stack.default", "split.Tensor", "split_with_sizes.default", "chunk.default", "getitem", "view.default", "reshape.default",
        "permute.default", "transpose.int", "t.default", "unsqueeze.default", "squeeze.dim", "squeeze.dims", "expand.default",
        "slice.Tensor", "select.int", "index_select.default", "gather.default", "flatten.using_ints", "clone.default", "pad.default",
        "constant_pad_nd.default", "avg_pool2d.default", "adaptive_avg_pool2d.default", "max_pool2d.default",
        "upsample_nearest2d.vec", "upsample_bilinear2d.vec", "pixel_shuffle.default", "scaled_dot_product_attention.default",
        "_native_batch_norm_legit_no_training.default", "relu.default", "hardtanh.default", "prelu.default", "where.self",
        "arange.default", "arange.start", "zeros_like.default", "ones_like.default", "full_like.default", "full.default", "eq.Scalar",
        "ne.Scalar", "lt.Scalar", "gt.Scalar", "le.Scalar", "ge.Scalar", "logical_not.default", "masked_fill.Scalar",
        "_unsafe_view.default", "channel_shuffle.default", "roll.default", "flip.default", "repeat.default",
        "_to_copy.default", "to.dtype", "log1p.default",
    )
)  # fmt: skip


def resolve(target: str) -> Any:
    """Return the callable behind a whitelisted name such as ``"aten.cat.default"``.

    Raises:
        CaptureError: the name is not whitelisted.
    """
    if target not in FLOAT_TARGETS:
        raise CaptureError(
            f"{target} is not an operation pyquant runs; it has {len(FLOAT_TARGETS)} whitelisted ATen names."
        )
    if target == "aten.getitem":
        return lambda values, index: values[index]
    if target in ("aten.view.default", "aten._unsafe_view.default"):
        # Capture drops clones, so what a view reads may not lie in a row.
        return torch.ops.aten.reshape.default
    name, overload = target.removeprefix("aten.").split(".")
    return getattr(getattr(torch.ops.aten, name), overload)


def call_aten(
    target: str, args: Sequence[Any], kwargs: Mapping[str, Any], inputs: Sequence[Any], batch: int
) -> Any:
    """Run a whitelisted op whose arguments are JSON.

    Args:
        target: whitelisted name.
        args, kwargs: JSON, where ``{"input": i}`` stands for ``inputs[i]`` and ``{"batch": k}`` for ``k`` times the batch size.
        inputs: the tensors that placeholders refer to.
        batch: the batch size.
    """

    def fill(item: Any) -> Any:
        if isinstance(item, dict):
            if "dtype" in item:
                return getattr(torch, item["dtype"])
            return inputs[item["input"]] if "input" in item else item["batch"] * batch
        return [fill(i) for i in item] if isinstance(item, list | tuple) else item

    return resolve(target)(*(fill(a) for a in args), **{k: fill(v) for k, v in kwargs.items()})


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, attrs: Mapping[str, Any]) -> Tensor:
    """``[B, C, H, W] -> [B, N, OH, OW]``; ``attrs["padding"]`` is ``(top, left, bottom, right)`` and pads with 0."""
    top, left, bottom, right = attrs["padding"]
    padding: Any = (top, left)
    if (top, left) != (bottom, right):
        x, padding = F.pad(x, (left, right, top, bottom)), 0
    return F.conv2d(x, weight, bias, attrs["stride"], padding, attrs["dilation"], attrs["groups"])


def evaluate(
    op: str, attrs: Mapping[str, Any], inputs: Sequence[Any], params: Mapping[str, Tensor], batch: int
) -> Any:
    """Compute one node.

    Args:
        op: kind of node.
        attrs: its attributes.
        inputs: values of its input nodes.
        params: its tensors by role: ``weight``, ``bias``, ``mean``, ``var``, or ``p0, p1...`` of an aten node.
        batch: the batch size.
    """
    if op == "conv2d":
        return conv2d(inputs[0], params["weight"], params.get("bias"), attrs)
    if op == "linear":
        return F.linear(inputs[0], params["weight"], params.get("bias"))
    if op == "clamp":
        return inputs[0].clamp(attrs["low"], attrs["high"])
    if op == "add":
        return inputs[0] + inputs[1]
    if op == "avg_pool":
        return F.avg_pool2d(inputs[0], attrs["window"], attrs["stride"])
    if op == "max_pool":
        top, left, bottom, right = attrs["padding"]
        padded = F.pad(inputs[0], (left, right, top, bottom), value=float("-inf"))
        return F.max_pool2d(padded, attrs["window"], attrs["stride"])
    if op == "flatten":
        return inputs[0].flatten(1)
    if op == "pad":
        return F.pad(inputs[0], attrs["pads"])
    if op == "batch_norm":
        weight, bias = params.get("weight"), params.get("bias")
        return F.batch_norm(inputs[0], params["mean"], params["var"], weight, bias, False, 0.0, attrs["eps"])
    if op in ("unary", "aten"):
        tensors = [*inputs, *(params[f"p{i}"] for i in range(len(params)))]
        return call_aten(attrs["target"], attrs["args"], attrs["kwargs"], tensors, batch)
    raise CaptureError(f"node kind {op!r} is unknown; pyquant.layers lists the kinds.")
