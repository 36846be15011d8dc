"""From a PyTorch module to a graph, by ``torch.export``; the module is left as it was."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ShapesCollection

from pyquant.errors import CaptureError, DataError
from pyquant.exported import module_label
from pyquant.graph import Graph
from pyquant.translate import translate

# What a model's own code, or the exporter, raises when it cannot be followed.
FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)


def capture(model: nn.Module, example: Tensor | Sequence[Tensor]) -> tuple[Graph, dict[str, Tensor]]:
    """Capture a model in evaluation mode, for any batch size.

    Args:
        model: the trained model; it is copied, never changed. Wrappers for several devices or for speed are taken off.
        example: one batch: a tensor ``[B, ...]``, or one tensor per argument of ``forward``. ``B`` may be 1.

    Returns:
        The graph, and its state (name -> tensor). A model in half or double precision becomes float32.

    Raises:
        CaptureError: the model is no module or cannot be captured; the message names the module and the reason.
        DataError: the example is not a batch of tensors on the CPU.
    """
    model = unwrap(model)
    inputs = (
        (example,) if isinstance(example, Tensor) else tuple(example) if isinstance(example, Sequence) else ()
    )
    if not inputs or not all(isinstance(x, Tensor) and x.dim() >= 1 and x.shape[0] >= 1 for x in inputs):
        raise DataError(
            "the example must be a tensor [B, ...] with B >= 1, or one such tensor per argument of forward."
        )
    elsewhere = [x.device for x in inputs if x.device.type != "cpu"]
    if elsewhere:
        raise DataError(
            f"the example is on {elsewhere[0]}; capture runs on the CPU, so give x.cpu() and model.cpu()."
        )
    # A batch of one would be taken for a constant: export on two.
    doubled = tuple(torch.cat([x[:1], x[:1]]).detach() for x in inputs)
    doubled = tuple(x.float() if x.is_floating_point() else x for x in doubled)
    any_batch = ShapesCollection()
    for x in doubled:
        any_batch[x] = {0: Dim.DYNAMIC}
    frozen = model
    try:
        frozen = copy.deepcopy(model).float().eval().requires_grad_(False)
        with torch.no_grad(), warnings.catch_warnings():
            # torch.export's own use of copyreg, which its caller can do nothing about.
            warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg|torch")
            frozen(*(x.clone() for x in doubled))
            shapes = any_batch.dynamic_shapes(frozen, doubled)
            program = torch.export.export(frozen, doubled, dynamic_shapes=shapes, strict=False)
            program = program.run_decompositions({})
    except FAILURES as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        where = _innermost(frozen, error)
        raise CaptureError(
            f"{type(model).__name__} could not be captured by torch.export, in {where}: {first[:300]}"
        ) from error
    return translate(program)


def example_of(model: nn.Module, data: Any) -> tuple[Tensor, ...]:
    """The first batch with rows as the arguments of ``model.forward``, in its order.

    A tensor or a tuple gives the arguments without a default alone; what follows them is taken for labels and left out.
    A dict gives every argument that it has a key for, those with a default too.

    Raises:
        DataError: there is no such batch, or it does not say what the arguments of ``forward`` are.
        CaptureError: the model is no module.
    """
    model = unwrap(model)
    label = f"{type(model).__name__}.forward"
    arguments = [p for p in signature(model.forward).parameters.values() if p.kind != p.VAR_POSITIONAL]
    required = [p.name for p in arguments if p.default is p.empty and p.kind <= p.POSITIONAL_OR_KEYWORD]
    for batch in [data[:1]] if isinstance(data, Tensor) else data:
        if isinstance(batch, Mapping):
            items = [batch[name] for name in _given(label, arguments, batch)]
        else:
            items = list(batch) if isinstance(batch, Sequence) and not isinstance(batch, str) else [batch]
            if not required and len(items) != 1:
                items = []
            items = items[: len(required) or 1]
        if not items and not required:
            raise DataError(
                f"{label} names no input that it needs, so a batch of type {type(batch).__name__} does not say which of its "
                "entries are inputs; give batches of one tensor, or name the inputs in forward."
            )
        if len(items) < len(required) or not all(isinstance(item, Tensor) and item.dim() for item in items):
            raise DataError(
                f"a first batch of type {type(batch).__name__} does not give {label} its {len(required)} inputs "
                f"({', '.join(required)}); give tensors [B, ...], a tuple of them, or a dict."
            )
        if all(item.shape[0] for item in items):
            return tuple(items)
    raise DataError("the data is empty; give at least one batch with at least one row.")


def _given(label: str, arguments: Sequence[Parameter], batch: Mapping[str, Any]) -> list[str]:
    """The arguments of ``forward`` that a dict gives a value other than their default."""
    given = [p.name for p in arguments if p.name in batch and batch[p.name] is not p.default]
    places = [p.name for p in arguments if p.kind <= p.POSITIONAL_OR_KEYWORD]
    if given != places[: len(given)]:
        raise DataError(
            f"a batch gives {label} its {', '.join(given)}, and inputs are passed by position; "
            f"give the first of ({', '.join(places)}) without a gap, and nothing else that it takes."
        )
    return given


def unwrap(model: Any) -> nn.Module:
    """The module within ``DataParallel``, ``DistributedDataParallel`` and ``torch.compile``, so that sites have their own names.

    Raises:
        CaptureError: it is no module.
    """
    while isinstance(model, nn.Module):
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model._modules["_orig_mod"]
        else:
            return model
    raise CaptureError(
        f"a model of type {type(model).__name__} is no module; give a trained torch.nn.Module."
    )


def _innermost(model: nn.Module, error: BaseException) -> str:
    """The innermost module that was running when the error was raised."""
    names = {id(module): name for name, module in model.named_modules()}
    path, trace = "", error.__traceback__
    while trace is not None:
        path = names.get(id(trace.tb_frame.f_locals.get("self")), path)
        trace = trace.tb_next
    return module_label(path)
