"""Networks for the peers: the float model by name, and its files, kept in ``.data/peers`` because some take minutes to make."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from bench import networks
from bench.record import ROOT
from pyquant import zoo

FOLDER = ROOT / ".data" / "peers"


def model_of(name: str) -> nn.Module:
    """One of ``networks.NETWORKS``, or of the zoo."""
    return networks.build(name) if name in networks.NETWORKS else zoo.load(name)


def kept(model: nn.Module, name: str, maker: str, ending: str, make: Callable[[Path], None]) -> Path:
    """The file made of a model, from an earlier run where that made it of the same weights.

    Args:
        model: the float model.
        name: its name.
        maker: what makes the file, with its version; files of other makers stay apart.
        ending: of the file's name.
        make: writes the file; several of the same stem are its business.
    """
    digest = hashlib.sha256(maker.encode())
    for key, tensor in model.state_dict().items():
        digest.update(key.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    path = FOLDER / f"{name}-{digest.hexdigest()[:16]}{ending}"
    if not path.is_file():
        FOLDER.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"making-{path.name}")
        make(fresh)
        for part in FOLDER.glob(f"{fresh.stem}*"):
            part.replace(part.with_name(part.name.removeprefix("making-")))
    return path


def onnx_file(model: nn.Module, name: str, size: tuple[int, ...]) -> Path:
    """The float network as ONNX, any batch; ``size`` is that of one image, [C, H, W]."""

    def export(path: Path) -> None:
        torch.onnx.export(
            model,
            (torch.zeros(1, *size),),
            str(path),
            opset_version=17,
            dynamo=False,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
        )

    return kept(model, name, f"torch {torch.__version__}", ".onnx", export)
