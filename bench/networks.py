"""ResNet-18, ResNet-50 and MobileNetV2 with random weights: speed does not depend on what they have learned.

Their batch norms hold the moments of random images, so that activations keep their size from the first layer to the last.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

SIZE, CLASSES = 224, 1000


def conv(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    act: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution, batch norm, and an activation unless ``act`` is None."""
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([act()] if act is not None else []))


class Residual(nn.Module):
    """``relu(body(x) + shortcut(x))``."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut, self.relu = body, shortcut, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]``."""
        return self.relu(self.body(x) + self.shortcut(x))


def basic(inputs: int, width: int, stride: int) -> tuple[nn.Module, int]:
    """Two 3x3 convolutions, and how many channels they give."""
    return nn.Sequential(conv(inputs, width, 3, stride), conv(width, width, 3, act=None)), width


def bottleneck(inputs: int, width: int, stride: int) -> tuple[nn.Module, int]:
    """1x1, 3x3, 1x1, and how many channels they give."""
    ends = conv(inputs, width, 1), conv(width, 4 * width, 1, act=None)
    return nn.Sequential(ends[0], conv(width, width, 3, stride), ends[1]), 4 * width


def resnet(block: Callable[[int, int, int], tuple[nn.Module, int]], depths: tuple[int, ...]) -> nn.Module:
    """A ResNet of four stages."""
    layers: list[nn.Module] = [conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, depth in enumerate(depths):
        for index in range(depth):
            stride = 2 if stage and not index else 1
            body, outputs = block(channels, 64 << stage, stride)
            same = stride == 1 and channels == outputs
            shortcut = nn.Identity() if same else conv(channels, outputs, 1, stride, act=None)
            layers.append(Residual(body, shortcut))
            channels = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


class Inverted(nn.Module):
    """MobileNetV2's block: widen, depthwise, project; added to its input where shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, widening: int) -> None:
        super().__init__()
        width = inputs * widening
        widen = [conv(inputs, width, 1, act=nn.ReLU6)] if widening != 1 else []
        depthwise = conv(width, width, 3, stride, groups=width, act=nn.ReLU6)
        self.body = nn.Sequential(*widen, depthwise, conv(width, outputs, 1, act=None))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]``."""
        return x + self.body(x) if self.adds else self.body(x)


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 at width 1."""
    layers: list[nn.Module] = [conv(3, 32, 3, 2, act=nn.ReLU6)]
    channels = 32
    stages = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    for widening, outputs, depth, stride in stages:
        for index in range(depth):
            layers.append(Inverted(channels, outputs, 1 if index else stride, widening))
            channels = outputs
    layers.append(conv(channels, 1280, 1, act=nn.ReLU6))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, CLASSES))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: resnet(basic, (2, 2, 2, 2)),
    "resnet50": lambda: resnet(bottleneck, (3, 4, 6, 3)),
    "mobilenet_v2": mobilenet_v2,
}


def images(count: int, size: int = SIZE) -> Tensor:
    """``[count, 3, size, size]`` float32, the same at every call: smooth noise around 0, as normalised photographs are."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(count, 3, size // 8, size // 8, generator=generator)
    fine = torch.randn(count, 3, size, size, generator=generator)
    return nn.functional.interpolate(coarse, (size, size), mode="bilinear") + 0.3 * fine


def build(name: str) -> nn.Module:
    """One of :data:`NETWORKS`, in eval mode; the same weights at every call."""
    before = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = NETWORKS[name]()
    torch.random.set_rng_state(before)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        # The average of what is seen, not a running one.
        norm.momentum = None
    with torch.no_grad():
        model.train()(images(8))
    return model.eval()
