"""Weights that `train_fashion_mnist.py` wrote: read into a network, and what their file says of itself."""

from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError, safe_open
from torch import nn

from pyquant.errors import DataError

Model = TypeVar("Model", bound=nn.Module)


def filled(model: Model, path: Path) -> Model:
    """Give a model the weights of a file, in eval mode.

    Raises:
        DataError: the file is missing, cannot be read, or holds another model.
    """
    try:
        with safe_open(path, "pt") as file:
            model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise DataError(
            f"'{path}' is not a {type(model).__name__} checkpoint of train_fashion_mnist.py: {reason}."
        ) from error
    return model.eval()


def recorded_accuracy(path: Path) -> float:
    """Share of the 10,000 test images that a checkpoint got right in float32 when it was trained."""
    with safe_open(path, "pt") as file:
        return float(file.metadata()["test_accuracy"])
