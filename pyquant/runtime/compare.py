"""Compare the integer program with the fake-quantised network, and executors with each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyquant.errors import DataError
from pyquant.layers import evaluate
from pyquant.model import QModel, input_key, value_grids
from pyquant.ops.backend import missing
from pyquant.ops.fake_quantize import dequantize, quantize
from pyquant.regions import regions, source
from pyquant.runtime.execute_cpu import CpuExecutor
from pyquant.runtime.execute_reference import ReferenceExecutor
from pyquant.runtime.program import Op, Program

Batches = Iterable[Tensor | Sequence[Tensor]]


def site_agreement(q: QModel, program: Program, batches: Batches) -> dict[str, float]:
    """Feed every site the integer program's own codes and compare what its two forms make of them.

    The fake-quantised form is the float32 layer on dequantised weights and inputs, the residual added,
    clamped in real units, then quantised. The contract: it differs in fewer than 1 in 10,000 codes.

    Args:
        q: the model that ``program`` was lowered from.
        program: the integer program.
        batches: inputs, each a float32 tensor ``[B, ...]`` or one per input of the network.

    Returns:
        Site -> share of equal codes, for every site that gives codes.

    Raises:
        DataError: there are no batches.
    """
    sites = [op for op in program.ops if op.kind == "conv" and program.values[op.output].kind == "codes"]
    needed = dict.fromkeys(name for op in sites for name in (*op.inputs, op.output))
    every = replace(program, outputs=tuple(needed))
    equal, total = dict.fromkeys((op.name for op in sites), 0), dict.fromkeys((op.name for op in sites), 0)
    # Executors give the same bytes, so the faster one that is there will do.
    executor = CpuExecutor(every) if missing("cpu") is None else ReferenceExecutor(every)
    seen = False
    for batch in batches:
        seen = True
        values = dict(
            zip(every.outputs, executor(*((batch,) if isinstance(batch, Tensor) else batch)), strict=True)
        )
        for op in sites:
            simulated = simulate_site(q, op, [values[name] for name in op.inputs])
            equal[op.name] += int((simulated == values[op.output]).sum())
            total[op.name] += simulated.numel()
    if not seen:
        raise DataError("site_agreement needs at least one batch of inputs, and none was given.")
    return {site: equal[site] / total[site] for site in equal}


def integer_vs_fake_agreement(q: QModel, program: Program, batches: Batches) -> float:
    """The worst site of :func:`site_agreement`; 1 for a network none of whose sites gives codes."""
    return min(site_agreement(q, program, batches).values(), default=1.0)


def simulate_site(q: QModel, op: Op, codes: Sequence[Tensor]) -> Tensor:
    """What the fake-quantised network makes of a site's input codes.

    Args:
        q: the model.
        op: the site's conv, which gives codes.
        codes: uint8 ``[B, H, W, C]``: the input, then the residual if the op has one.

    Returns:
        uint8 ``[B, OH, OW, N]``.
    """
    node, group, grids = q.graph.by_name[op.name], regions(q.graph).groups[op.name], value_grids(q)
    key = input_key(q, node.name)
    x = dequantize(
        graph_layout(q, node.inputs[0], codes[0]),
        q.ranges[key].scale,
        q.ranges[key].zero_point,
        grids[key],
    )
    site = q.weights[node.name]
    params = {"weight": site.dequantized(q.plan[node.name].weight), "bias": site.bias}
    with torch.no_grad():
        y = evaluate(node.op, node.attrs, [x], params, x.shape[0])
        if group.residual is not None:
            name = source(q.graph, group.residual)
            residual = graph_layout(q, group.residual, codes[1])
            y = y + dequantize(residual, q.ranges[name].scale, q.ranges[name].zero_point, grids[name])
        if group.low is not None or group.high is not None:
            y = y.clamp(group.low, group.high)
    name = source(q.graph, group.last)
    y = quantize(y, q.ranges[name].scale, q.ranges[name].zero_point, grids[name])
    return (
        y.permute(0, 2, 3, 1) if y.dim() == 4 else y.reshape(y.shape[0], *(1,) * (4 - y.dim()), *y.shape[1:])
    )


def graph_layout(q: QModel, name: str, codes: Tensor) -> Tensor:
    """Codes ``[B, H, W, C]`` of a graph's value in the layout the graph has it in."""
    node = q.graph.by_name[name]
    shape = node.shape or ()
    if len(shape) == 3:
        return codes.permute(0, 3, 1, 2)
    # Only an integer flatten keeps the order of codes; a float one has torch's already.
    if node.op == "flatten" and name in regions(q.graph).integer:
        before = q.graph.by_name[node.inputs[0]].shape or ()
        if len(before) == 3:
            c, h, w = before
            codes = codes.reshape(-1, h, w, c).permute(0, 3, 1, 2)
    return codes.reshape(codes.shape[0], *shape)


def code_exact(program: Program, inputs: Sequence[Tensor]) -> bool:
    """Whether the cpu executor and the reference give the same bytes, for every value of the program.

    Args:
        program: the integer program.
        inputs: one batch, a tensor per input.

    Raises:
        BackendError: the cpu executor cannot run the program here.
    """
    names = tuple(op.output for op in program.ops)
    trace = ReferenceExecutor(program).trace(*inputs)
    outputs = CpuExecutor(replace(program, outputs=names))(*inputs)
    return all(same_bytes(trace[name], output) for name, output in zip(names, outputs, strict=True))


def same_bytes(a: Any, b: Any) -> bool:
    """Whether two values are equal bit for bit, dtype and shape too: NaN equals itself, and -0 is not 0."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return len(a) == len(b) and all(same_bytes(left, right) for left, right in zip(a, b, strict=True))
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    left, right = (x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b))
    return torch.equal(left, right)
