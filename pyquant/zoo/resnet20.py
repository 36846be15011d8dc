"""ResNet-20 for Fashion-MNIST: the definition, and the weights that come with this package.

Three stages of three basic blocks with 16, 32 and 64 channels, as in He et al. 2015 (section 4.2), on 28 x 28
grey images. Shortcuts that change the shape are 1 x 1 convolutions (option B of the paper).
`train_fashion_mnist.py` made the weights and wrote its recipe into their file.
"""

from pathlib import Path

import torch
from torch import nn

from pyquant.zoo.checkpoints import filled

CHECKPOINT = Path(__file__).with_name("resnet20_fashion_mnist.safetensors")
CLASSES = 10


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut: ``relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))``."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.relu(self.bn1(self.conv1(x)))
        inner = self.bn2(self.conv2(inner))
        return self.relu(inner + self.shortcut(x))


class ResNet20(nn.Module):
    """``[B, 1, 28, 28]`` float32, normalised as in `fashion_mnist.py`, to ``[B, 10]`` logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.stage1 = _stage(16, 16, stride=1)
        self.stage2 = _stage(16, 32, stride=2)
        self.stage3 = _stage(32, 64, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn(self.conv(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.fc(self.pool(x).flatten(1))


def _stage(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        BasicBlock(channels_in, channels_out, stride),
        BasicBlock(channels_out, channels_out, stride=1),
        BasicBlock(channels_out, channels_out, stride=1),
    )


def resnet20(weights: str | Path | None = None) -> ResNet20:
    """Build ResNet-20 with trained weights, in eval mode.

    Args:
        weights: a safetensors file that `train_fashion_mnist.py` wrote; None takes the one of this package.

    Raises:
        DataError: the file is missing, cannot be read, or holds another model.
    """
    return filled(ResNet20(), CHECKPOINT if weights is None else Path(weights))
