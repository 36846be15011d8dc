"""Models and data that a command line names: a zoo name, a path, or ``module:function``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from pyquant import zoo
from pyquant.capture import FAILURES
from pyquant.errors import DataError
from pyquant.files import read_batches

# What somebody else's module or function raises.
RAISED = (*FAILURES, ImportError, OSError, SyntaxError)


def _entry(text: str) -> Any:
    """Import ``module:function`` and call it; a generator is read here, where what it raises can be told."""
    module, _, function = text.partition(":")
    sys.path.insert(0, "")
    try:
        try:
            made = getattr(importlib.import_module(module), function)
        except RAISED as error:
            raise DataError(
                f"{text!r} could not be imported: {_reason(error)}; write module:function, importable from here."
            ) from error
        if not callable(made):
            raise DataError(f"{text!r} is a {type(made).__name__}; name a function without arguments.")
        try:
            made = made()
            return list(made) if isinstance(made, Iterator) else made
        except RAISED as error:
            raise DataError(f"{text!r} raised {_reason(error)}; it is called without arguments.") from error
    finally:
        sys.path.remove("")


def _reason(error: Exception) -> str:
    """Type and first line of what somebody else's code raised."""
    first = str(error).strip().partition("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def load_model(name: str) -> torch.nn.Module:
    """The model of a zoo name or of ``module:function``. DataError: there is none."""
    model = _entry(name) if ":" in name else zoo.load(name)
    if not isinstance(model, torch.nn.Module):
        raise DataError(
            f"{name!r} returned a {type(model).__name__}; it must return the trained torch.nn.Module."
        )
    return model


def load_data(source: str | None, model: str) -> Any:
    """Batches from a folder, a file or ``module:function``; the zoo's own of a zoo model. DataError: there are none."""
    if source is None:
        if ":" in model:
            raise DataError(
                f"the model {model!r} needs --data: a folder of images, a file of inputs, or module:function."
            )
        return zoo.calibration(model)
    if ":" not in source or Path(source).exists():
        return read_batches(Path(source))
    data = _entry(source)
    if not isinstance(data, Iterable):
        raise DataError(f"{source!r} returned a {type(data).__name__}; it must return batches of inputs.")
    return data
