"""From a PyTorch module to a graph, by ``torch.export``; the module is left as it was."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.export import Dim, ShapesCollection

from pyquant.errors import CaptureError, DataError
from pyquant.graph import Graph
from pyquant.translate import module_label, translate

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
        model: the trained model; it is copied, never changed.
        example: one batch: a tensor ``[B, ...]``, or one tensor per argument of ``forward``. ``B`` may be 1.

    Returns:
        The graph, and its state (name -> tensor). A model in half or double precision becomes float32.

    Raises:
        CaptureError: the model cannot be captured; the message names the module and the reason.
        DataError: the example is not a batch of tensors on the CPU.
    """
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


def _innermost(model: nn.Module, error: BaseException) -> str:
    """The innermost module that was running when the error was raised."""
    names = {id(module): name for name, module in model.named_modules()}
    path, trace = "", error.__traceback__
    while trace is not None:
        path = names.get(id(trace.tb_frame.f_locals.get("self")), path)
        trace = trace.tb_next
    return module_label(path)
