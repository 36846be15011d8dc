"""A small MobileNetV2 for Fashion-MNIST: the definition, and the weights that come with this package.

Inverted residuals with linear bottlenecks and ReLU6 as in Sandler et al. 2018 (table 2), on 28 x 28 grey images: the stem keeps
their size, two stages halve it, and every block but the first widens four times.
`train_fashion_mnist.py` made the weights and wrote its recipe into their file.
"""

from pathlib import Path

import torch
from torch import nn

from pyquant.zoo.checkpoints import filled

CHECKPOINT = Path(__file__).with_name("mobilenet_v2_small_fashion_mnist.safetensors")
CLASSES = 10
STEM, HEAD = 16, 192
# Factor by which a block widens, channels, stride of the first block, and blocks of each stage.
STAGES = ((1, 24, 2, 1), (4, 24, 1, 2), (4, 40, 2, 3), (4, 64, 1, 2))


class InvertedResidual(nn.Module):
    """``project(depthwise(expand(x)))``, plus ``x`` where the shape stays; the projection has no activation."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, widen: int) -> None:
        super().__init__()
        wide = widen * channels_in
        self.expand = nn.Identity() if widen == 1 else _conv(channels_in, wide, 1)
        self.depthwise = _conv(wide, wide, 3, stride, groups=wide)
        self.project = nn.Sequential(
            nn.Conv2d(wide, channels_out, 1, bias=False), nn.BatchNorm2d(channels_out)
        )
        self.residual = stride == 1 and channels_in == channels_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class MobileNetV2Small(nn.Module):
    """``[B, 1, 28, 28]`` float32, normalised as in `fashion_mnist.py`, to ``[B, 10]`` logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(1, STEM, 3)
        blocks, channels = [], STEM
        for widen, width, stride, count in STAGES:
            for i in range(count):
                blocks.append(InvertedResidual(channels, width, stride if i == 0 else 1, widen))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.head = _conv(channels, HEAD, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(HEAD, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.head(self.blocks(self.stem(x)))
        return self.fc(self.pool(x).flatten(1))


def _conv(
    channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU6(),
    )


def mobilenet_v2_small(weights: str | Path | None = None) -> MobileNetV2Small:
    """Build the network with trained weights, in eval mode.

    Args:
        weights: a safetensors file that `train_fashion_mnist.py` wrote; None takes the one of this package.

    Raises:
        DataError: the file is missing, cannot be read, or holds another model.
    """
    return filled(MobileNetV2Small(), CHECKPOINT if weights is None else Path(weights))
