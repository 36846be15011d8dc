"""The door for data: batches of every usual kind become a list of tuples of float tensors, checked once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyquant.errors import DataError, DTypeError, ShapeError
from pyquant.graph import Graph

Batch = tuple[Tensor, ...]


def load_batches(data: Any, graph: Graph, batch_size: int = 16) -> list[Batch]:
    """Read all of ``data`` once and cut it to even batches.

    Args:
        data: a tensor ``[n, ...]``, or any iterable, one-shot too, of batches: tensors, tuples or lists whose
            leading tensors are the model's inputs (labels behind them are ignored), or dicts keyed by the
            model's input names.
        graph: says how many inputs there are, and of which shape.
        batch_size: rows of a batch.

    Returns:
        Batches of one tensor per graph input, each of at most ``batch_size`` rows.

    Raises:
        DataError: no data, or NaN or infinite elements. ShapeError, DTypeError: what the model does not take.
    """
    parts = [_inputs(item, graph, i) for i, item in enumerate(read_once(data))]
    parts = [part for part in parts if part[0].shape[0]]
    if not parts:
        raise DataError("the data is empty; give at least one batch with at least one row.")
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    return list(zip(*(column.split(batch_size) for column in columns), strict=True))


def read_once(data: Any) -> list[Any]:
    """The batches of some data as a list, so that a loader that can be read only once may be looked at before it is used.

    Raises:
        DataError: it cannot be iterated.
    """
    if isinstance(data, Tensor):
        return [data]
    if not isinstance(data, Iterable):
        raise DataError(
            f"data of type {type(data).__name__} cannot be iterated; give a tensor, or batches of tensors, "
            "(x, y) or dicts."
        )
    return list(data)


def _inputs(item: Any, graph: Graph, index: int) -> Batch:
    if isinstance(item, Mapping):
        absent = [name for name in graph.inputs if name not in item]
        if absent:
            raise DataError(
                f"batch {index} has no entry for input {absent[0]!r}; it has {', '.join(map(str, item))}."
            )
        tensors = [item[name] for name in graph.inputs]
    elif isinstance(item, Tensor):
        tensors = [item]
    elif isinstance(item, Sequence) and not isinstance(item, str):
        tensors = list(item[: len(graph.inputs)])
    else:
        raise DataError(
            f"batch {index} is a {type(item).__name__}; give a tensor, a tuple (x, y), or a dict of tensors."
        )
    if len(tensors) < len(graph.inputs):
        raise DataError(f"batch {index} has {len(tensors)} tensors and the model takes {len(graph.inputs)}.")
    batch = tuple(
        check_input(value, graph, name, f"batch {index}")
        for name, value in zip(graph.inputs, tensors, strict=True)
    )
    rows = [value.shape[0] for value in batch]
    if len(set(rows)) > 1:
        raise ShapeError(
            f"batch {index} has inputs of {', '.join(map(str, rows))} rows; give every input the same number."
        )
    return batch


def check_input(value: Any, graph: Graph, name: str, where: str) -> Tensor:
    """Check one input tensor against the graph; returns it detached, contiguous, in the model's dtype."""
    node = graph.by_name[name]
    shape, dtype = node.shape or (), getattr(torch, node.attrs.get("dtype", "float32"))
    if not isinstance(value, Tensor):
        raise DTypeError(f"{where}: input {name!r} is a {type(value).__name__}; give a torch tensor.")
    if value.device.type != "cpu":
        raise DTypeError(
            f"{where}: input {name!r} is on {value.device}; calibration runs on the CPU, so give x.cpu()."
        )
    if value.dim() == 0 or tuple(value.shape[1:]) != shape:
        want = ", ".join(["B", *map(str, shape)])
        raise ShapeError(f"{where}: input {name!r} has shape {tuple(value.shape)}; the model takes [{want}].")
    if value.is_floating_point() and dtype.is_floating_point:
        value = value.to(dtype)
    if value.dtype != dtype:
        hint = ", already normalised as the model expects" if dtype.is_floating_point else ""
        raise DTypeError(f"{where}: input {name!r} is {value.dtype}; give {dtype}{hint}.")
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise DataError(f"{where}: input {name!r} has NaN or infinite elements; clean the data first.")
    return value.detach().contiguous()


def held_out(batches: Sequence[Batch], share: float = 0.125) -> tuple[list[Batch], list[Batch]]:
    """Split rows into a part to fit and a part held out: every k-th row, so both see all of the data's order.

    One row alone serves as both. The split depends on nothing but the number of rows.
    """
    columns = [torch.cat(column) for column in zip(*batches, strict=True)]
    rows, size = columns[0].shape[0], batches[0][0].shape[0]
    if rows == 1:
        return list(batches), list(batches)
    every = max(2, round(1 / share))
    out = torch.arange(rows) % every == every - 1
    if not bool(out.any()):
        out[-1] = True
    cut = [list(zip(*(c[mask].split(size) for c in columns), strict=True)) for mask in (~out, out)]
    return cut[0], cut[1]


def every_so_many(batches: Sequence[Batch], rows: int) -> list[Batch]:
    """At most ``rows`` rows, at even distance through all batches."""
    columns = [torch.cat(column) for column in zip(*batches, strict=True)]
    keep = torch.linspace(0, len(columns[0]) - 1, min(rows, len(columns[0]))).round().long()
    size = len(batches[0][0])
    return list(zip(*(column[keep].split(size) for column in columns), strict=True))
