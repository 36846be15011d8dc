"""Small real networks that tests share: every structure that capture, folding and regions must tell apart.

All have random weights from a seed and batch-norm statistics that are not those of a fresh layer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def settle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give a model weights and batch-norm statistics from a seed of its own, as training would; returns it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                fan_in = module.weight[0].numel()
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * (2 / fan_in) ** 0.5)
                if module.bias is not None:
                    module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.2)
            elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.3)
                module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
                if module.affine:
                    sign = torch.where(torch.arange(module.num_features) % 3 == 0, -1.0, 1.0)
                    module.weight.copy_((torch.rand(module.num_features, generator=generator) + 0.5) * sign)
                    module.bias.copy_(torch.randn(module.num_features, generator=generator) * 0.3)
    return model.eval()


def images(rows: int, channels: int = 3, side: int = 8, seed: int = 1) -> Tensor:
    """Smooth random images ``[rows, channels, side, side]``: neighbours are alike, as in photographs."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, channels, side + 2, side + 2, generator=generator)
    return F.avg_pool2d(noise, 3, 1) * 2 + 0.3


class ConvBnRelu(nn.Sequential):
    """The plainest network: convolution, normalisation, ReLU, twice, then a classifier."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 6, 3, stride=2, padding=1),
            nn.BatchNorm2d(6, affine=False),
            nn.ReLU6(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(6, 5),
        )


class ResidualBlock(nn.Module):
    """A basic block of a ResNet whose shortcut is a strided 1x1 convolution, then one with the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.downsample = nn.Sequential(nn.Conv2d(4, 8, 1, stride=2, bias=False), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 4, H, W] -> [B, 8, H / 2, W / 2]``."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.downsample(x)
        return F.relu_(y)


class ResNet(nn.Module):
    """Stem, max pooling, a residual block and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.block = ResidualBlock()
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 3, 16, 16] -> [B, 5]``."""
        return self.fc(self.block(self.pool(self.stem(x))).mean((2, 3)))


class InvertedBottleneck(nn.Module):
    """EfficientNet-Lite's block: expand, depthwise with asymmetric SAME padding, project, add."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(3, 4, 3, stride=2, bias=False)
        self.reduce_bn = nn.BatchNorm2d(4)
        self.expand = nn.Conv2d(4, 12, 1, bias=False)
        self.expand_bn = nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.depthwise_bn = nn.BatchNorm2d(12)
        self.project = nn.Conv2d(12, 4, 1, bias=False)
        self.project_bn = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 3, 8, 8] -> [B, 5]``; TensorFlow pads a strided 3x3 below and to the right only."""
        x = F.relu6(self.reduce_bn(self.reduce(F.pad(x, (0, 1, 0, 1)))))
        y = F.relu6(self.expand_bn(self.expand(x)))
        y = F.relu6(self.depthwise_bn(self.depthwise(y)))
        y = self.project_bn(self.project(y)) + x
        return self.head(F.adaptive_avg_pool2d(y, 1).flatten(1))


class SqueezeExcite(nn.Module):
    """Channel attention: the product of a map and its gate has no integer form."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 2, 1)
        self.up = nn.Conv2d(2, 4, 1)
        self.last = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 3, H, W]`` to the same."""
        x = F.silu(self.conv(x))
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return self.last(x * gate)


class PreActivation(nn.Module):
    """Normalisation before the convolution: it cannot be folded into one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """The stem's output feeds both the normalisation and the sum."""
        x = self.stem(x)
        return x + self.conv1(F.relu(self.bn1(x)))


class Functional(nn.Module):
    """No layers, only parameters and functions."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3, generator=generator) * 0.3)
        self.matrix = nn.Parameter(torch.randn(5, 4, generator=generator))
        self.register_buffer("shift", torch.randn(5, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 3, H, W] -> [B, 5]``."""
        y = F.conv2d(x, self.kernel, None, 2, 1).clamp(min=0)
        return F.linear(y.mean((2, 3)), self.matrix) + self.shift


class CalledTwice(nn.Module):
    """One module at two places of the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 3, H, W]`` to the same."""
        return self.conv(F.relu(self.conv(x)))


class InPlace(nn.Module):
    """Writes into its own input, into slices and into sums."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 3, H, W] -> [B, 2, H, W]``."""
        x.mul_(0.5)
        y = self.conv(F.relu_(x))
        shortcut = y
        y = F.relu(y)
        shortcut.add_(1.0)
        y += shortcut
        return self.last(F.hardswish(y, inplace=True)).clamp_(-1.0, 1.0)


class TwoInputs(nn.Module):
    """Two images of different depth."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(2, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """``[B, 3, 8, 8], [B, 2, 8, 8] -> [B, 3]``."""
        return self.head(F.relu(self.first(image) + self.second(mask)).mean((2, 3)))


class TwoOutputs(nn.Module):
    """A map and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3, padding=1)
        self.map = nn.Conv2d(4, 2, 1)
        self.vector = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, 3, H, W] -> [B, 2, H, W], [B, 3]``."""
        x = F.relu(self.body(x))
        return self.map(x), self.vector(x.mean((2, 3)))


class Text(nn.Module):
    """What a language model is made of, less the attention: ``[B, T, F]``."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 12)
        self.down = nn.Linear(12, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 5, 6] -> [B, 5, 4]``."""
        return self.head(self.norm(x + self.down(F.gelu(self.up(x)))))


# Name -> network and the shapes of its inputs, without the batch.
NETWORKS: dict[str, tuple[type[nn.Module], tuple[tuple[int, ...], ...]]] = {
    "conv_bn_relu": (ConvBnRelu, ((3, 8, 8),)),
    "resnet": (ResNet, ((3, 16, 16),)),
    "inverted_bottleneck": (InvertedBottleneck, ((3, 8, 8),)),
    "squeeze_excite": (SqueezeExcite, ((3, 7, 5),)),
    "pre_activation": (PreActivation, ((3, 8, 8),)),
    "functional": (Functional, ((3, 9, 7),)),
    "called_twice": (CalledTwice, ((3, 6, 6),)),
    "in_place": (InPlace, ((3, 6, 6),)),
    "two_inputs": (TwoInputs, ((3, 8, 8), (2, 8, 8))),
    "two_outputs": (TwoOutputs, ((3, 6, 6),)),
    "text": (Text, ((5, 6),)),
}


def build(name: str) -> nn.Module:
    """Return a network of :data:`NETWORKS` with its weights settled."""
    return settle(NETWORKS[name][0](), seed=len(name))


def inputs(name: str, rows: int, seed: int = 1) -> tuple[Tensor, ...]:
    """Random inputs of ``rows`` rows for a network of :data:`NETWORKS`."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(rows, *shape, generator=generator) for shape in NETWORKS[name][1])
