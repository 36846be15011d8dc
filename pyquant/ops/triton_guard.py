"""Around every launch by Triton: the device of the tensors is the current one, and a failure is one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from pyquant.errors import BackendError, PyquantError

# How Triton's calls of the driver say that they failed.
_DRIVER = "Triton Error"


def guarded(op: str, kernel: Callable) -> Callable:
    """The function that serves ``op`` on triton, as it is called: with what was planned, a tensor, and anything else.

    Raises:
        BackendError: the device has no memory left, or cannot run what was planned.
    """

    @wraps(kernel)
    def launch(plan: Any, x: Any, *rest: Any) -> Any:
        try:
            if x.device.type != "cuda":
                return kernel(plan, x, *rest)
            # Triton launches on the current device, wherever the tensors are.
            with torch.cuda.device(x.device):
                return kernel(plan, x, *rest)
        except _errors() as error:
            if isinstance(error, PyquantError) or (
                isinstance(error, RuntimeError) and _DRIVER not in str(error)
            ):
                raise
            raise BackendError(_sentence(op, plan, x.device, error)) from error

    return launch


def _errors() -> tuple[type[Exception], ...]:
    """What a launch raises; Triton was imported if one of its own errors was."""
    module = sys.modules.get("triton.errors")
    return (RuntimeError,) if module is None else (RuntimeError, module.TritonError)


def _sentence(op: str, plan: Any, device: torch.device, error: Exception) -> str:
    reason = (str(error).strip().partition("\n")[0] or type(error).__name__).partition(". ")[0].rstrip(".")
    if "out of memory" in reason:
        return f"{device} has no memory left for {op} by triton ({reason}); free tensors, or use smaller batches."
    if reason.startswith("out of resource"):
        return f"{op}: {device} cannot hold {plan} ({reason}); use backend='cuda' or backend='reference'."
    return (
        f"{op}: Triton could not launch {plan} on {device} ({reason}); use backend='cuda' or backend='reference', in a "
        "process of its own if kernels fail from here on."
    )
