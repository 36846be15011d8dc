"""Small networks, each with a turn that capture, lowering or an executor could take wrongly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyquant.grid import Grid, Plan, SiteGrids
from pyquant.model import QModel, prepare, with_bits
from pyquant.runtime.lower import lower
from pyquant.runtime.program import Program
from pyquant.steps.calibrate import calibrate

IMAGE = (3, 9, 11)


class Block(nn.Module):
    """``relu(conv(relu(conv(x))) + x)``: a residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + x)


class Network(nn.Module):
    """Layers by keyword, and a forward given as a function of the module."""

    def __init__(self, forward: Callable[..., Tensor | tuple[Tensor, ...]], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.body = forward

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.body(self, x)


class TwoInputs(nn.Module):
    """Two branches that meet in an add."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(4 * 7 * 9, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.fc((F.relu(self.left(a)) + F.relu(self.right(b))).flatten(1))


def _early_clamps(m: Network, x: Tensor) -> Tensor:
    """The residual's second clamp stands behind the convolution that it is added to."""
    early, late = m.conv1(x), m.conv2(x)
    return m.conv3(late + early.clamp(-2.0, 1.5).clamp(-1.0, 1.0))


def _late_clamp(m: Network, x: Tensor) -> Tensor:
    pooled = F.max_pool2d(F.relu(m.conv1(x)), 3, 1, 1)
    late = m.conv2(x)
    return m.conv3(late + pooled.clamp(0.1, 1.0))


def _split(m: Network, x: Tensor) -> Tensor:
    left, right = m.conv1(x).chunk(2, dim=1)
    return m.conv2(torch.cat([left.sigmoid() * right, right], dim=1))


def _tokens(m: Network, x: Tensor) -> Tensor:
    """Linear layers over ``[B, T, F]``."""
    tokens = m.conv1(x).flatten(2).transpose(1, 2)
    return m.fc2(F.gelu(m.fc1(tokens)))


def _maps_last(m: Network, x: Tensor) -> Tensor:
    """A linear layer over ``[B, H, W, C]``, which stays float."""
    return m.conv2(m.fc(m.conv1(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def _mask(m: Network, x: Tensor) -> Tensor:
    """An ATen argument that JSON has no number for."""
    y = m.conv1(x)
    return m.conv2(torch.softmax(y.masked_fill(y < 0, float("-inf")).clamp(min=-50.0), dim=1))


def _build(name: str) -> nn.Module:
    c = IMAGE[0]
    area = IMAGE[1] * IMAGE[2]
    conv = nn.Conv2d
    if name == "conv_bn_relu_chain":
        return nn.Sequential(
            conv(c, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            conv(8, 13, 3, 2, 1, bias=False), nn.BatchNorm2d(13), nn.ReLU6(), conv(13, 5, 1),
            nn.BatchNorm2d(5),
        )  # fmt: skip
    if name == "residual_blocks":
        return nn.Sequential(
            conv(c, 6, 3),
            nn.ReLU(),
            Block(6),
            Block(6),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 10),
        )
    if name == "depthwise":
        return nn.Sequential(
            conv(c, 10, 1), nn.ReLU6(), conv(10, 10, 3, 2, 1, groups=10, bias=False), nn.BatchNorm2d(10),
            nn.ReLU6(), conv(10, 20, 5, padding=2, groups=5, dilation=1), conv(20, 7, 1),
        )  # fmt: skip
    if name == "asymmetric_pads":
        return nn.Sequential(
            nn.ZeroPad2d((0, 1, 2, 0)), conv(c, 6, 3, 2), nn.Hardtanh(0.25, 1.0),
            conv(6, 6, (2, 3), padding="same", dilation=(1, 2)), nn.ReLU(), conv(6, 4, 3),
        )  # fmt: skip
    if name == "pools_then_linear":
        return nn.Sequential(
            conv(c, 7, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2, 1), nn.Flatten(),
            nn.Linear(7 * 4 * 5, 12), nn.ReLU(), nn.Linear(12, 5),
        )  # fmt: skip
    if name == "silu_lookups":
        return nn.Sequential(
            conv(c, 6, 3), nn.SiLU(), conv(6, 6, 3), nn.Hardswish(), nn.Sigmoid(), conv(6, 4, 1)
        )
    if name == "linear_only":
        return nn.Sequential(nn.Flatten(), nn.Linear(c * area, 9), nn.GELU(), nn.Linear(9, 4))
    if name == "functional_calls":
        return Network(
            lambda m, x: F.conv2d(F.conv2d(x, m.conv1.weight, stride=2), m.conv2.weight * 1.0, m.conv2.bias)
            + F.conv2d(F.relu(m.conv1(x)), m.conv2.weight, m.conv2.bias, 2),
            conv1=conv(c, 5, 3), conv2=conv(5, 4, 1),
        )  # fmt: skip
    if name == "called_twice":
        shared = Network(
            lambda m, x: m.conv1(F.relu(m.conv1(F.relu(m.stem(x))))),
            stem=conv(c, 6, 3),
            conv1=conv(6, 6, 3, padding=1),
        )
        return shared
    if name == "ends_in_relu":
        return nn.Sequential(conv(c, 5, 3), nn.ReLU(), conv(5, 5, 3), nn.ReLU())
    if name == "ends_in_add":
        return Network(
            lambda m, x: m.conv2(F.relu(m.conv1(x))) + m.conv1(x), conv1=conv(c, 5, 3), conv2=conv(5, 5, 1)
        )
    if name == "two_outputs":
        return Network(
            lambda m, x: (m.conv2(F.relu(m.conv1(x))), F.relu(m.conv1(x)).mean((2, 3))),
            conv1=conv(c, 5, 3),
            conv2=conv(5, 2, 1),
        )
    if name == "output_read_again":

        def body(m: Network, x: Tensor) -> tuple[Tensor, Tensor]:
            y = F.relu(m.conv1(x))
            return y, m.fc(y.flatten(1))

        return Network(body, conv1=conv(c, 5, 3), fc=nn.Linear(5 * 7 * 9, 4))
    if name == "flatten_read_by_float":

        def body(m: Network, x: Tensor) -> Tensor:
            flat = F.relu(m.conv1(x)).flatten(1)
            return m.fc2(F.relu(m.fc(flat))) + flat[:, :4]

        return Network(body, conv1=conv(c, 5, 3), fc=nn.Linear(5 * 7 * 9, 6), fc2=nn.Linear(6, 4))
    if name == "relu_behind_flatten":
        return nn.Sequential(conv(c, 5, 3), nn.Flatten(), nn.ReLU(), nn.Linear(5 * 7 * 9, 4))
    if name == "two_inputs":
        return TwoInputs()
    if name == "add_of_itself":

        def body(m: Network, x: Tensor) -> Tensor:
            y = m.conv1(x)
            return m.conv2(y + y)

        return Network(body, conv1=conv(c, 5, 3), conv2=conv(5, 2, 1))
    forwards = {"early_clamps": _early_clamps, "late_clamp": _late_clamp, "split": _split, "tokens": _tokens,
                "maps_last": _maps_last, "mask": _mask}  # fmt: skip
    layers = {
        "early_clamps": lambda: {"conv1": conv(c, 5, 3), "conv2": conv(c, 5, 3), "conv3": conv(5, 2, 1)},
        "late_clamp": lambda: {"conv1": conv(c, 5, 3), "conv2": conv(c, 5, 3), "conv3": conv(5, 2, 1)},
        "split": lambda: {"conv1": conv(c, 8, 3), "conv2": conv(8, 3, 1)},
        "tokens": lambda: {"conv1": conv(c, 6, 3, 2), "fc1": nn.Linear(6, 11), "fc2": nn.Linear(11, 6)},
        "maps_last": lambda: {"conv1": conv(c, 6, 3), "fc": nn.Linear(6, 5), "conv2": conv(5, 4, 1)},
        "mask": lambda: {"conv1": conv(c, 6, 3), "conv2": conv(6, 4, 1)},
    }
    return Network(forwards[name], **layers[name]())


NAMES = (
    "conv_bn_relu_chain", "residual_blocks", "depthwise", "asymmetric_pads", "pools_then_linear",
    "silu_lookups",
    "linear_only", "functional_calls", "called_twice", "ends_in_relu", "ends_in_add", "two_outputs",
    "output_read_again", "flatten_read_by_float", "relu_behind_flatten", "add_of_itself", "two_inputs",
    "early_clamps", "late_clamp", "split", "tokens", "maps_last", "mask",
)  # fmt: skip


def images(count: int, seed: int = 0) -> Tensor:
    """``[count, 3, 9, 11]`` float32."""
    return torch.randn(count, *IMAGE, generator=torch.Generator().manual_seed(seed))


def inputs_of(case: str, count: int, seed: int = 0) -> tuple[Tensor, ...]:
    """One batch for a network or case."""
    return tuple(images(count, seed + i) for i in range(2 if case.startswith("two_inputs") else 1))


def module(name: str) -> nn.Module:
    """A network with random weights, and batch normalisations that do something."""
    model = _build(name)
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        fan = max(1, parameter[0].numel())
        parameter.data = torch.randn(parameter.shape, generator=generator) * (
            1.5 / fan**0.5 if parameter.dim() > 1 else 0.3
        )
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.data = torch.rand(layer.num_features, generator=generator) + 0.5
            layer.running_mean = torch.randn(layer.num_features, generator=generator) * 0.2
            layer.running_var = torch.rand(layer.num_features, generator=generator) + 0.5
    return model.eval()


# Grids of weights and inputs, sites with bits of their own, and sites left out.
VARIANTS: dict[str, dict[str, Any]] = {
    "w8a8": {},
    "w4a4": {"weights": Grid(4, axis=0), "inputs": Grid(4, signed=False)},
    "asymmetric": {"weights": Grid(4, signed=False, axis=0)},
    "per_tensor": {"weights": Grid(6)},
}
MIXED: dict[str, dict[str, Any]] = {
    "conv_bn_relu_chain-w235": {"bits": {"0": (2, 8), "3": (3, 5), "6": (5, 2)}},
    "residual_blocks-w67": {"bits": {"2.conv1": (6, 3), "2.conv2": (7, 8), "3.conv1": (8, 4)}},
    "residual_blocks-excluded": {"exclude": ("2.conv2", "3.conv1")},
    "pools_then_linear-excluded": {"exclude": ("0", "7")},
    "depthwise-excluded": {"exclude": ("2",)},
    "silu_lookups-a2": {"inputs": Grid(2, signed=False)},
    "two_outputs-w8": {"bits": {"conv2": (8, 4)}},
}
CASES = (
    *(f"{name}-w8a8" for name in NAMES),
    "residual_blocks-w4a4", "pools_then_linear-w4a4", "silu_lookups-w4a4", "called_twice-w4a4",
    "two_inputs-w4a4",
    "output_read_again-w4a4", "late_clamp-w4a4", "split-w4a4", "tokens-w4a4", "residual_blocks-asymmetric",
    "depthwise-asymmetric", "pools_then_linear-asymmetric", "tokens-asymmetric", "residual_blocks-per_tensor",
    "linear_only-per_tensor", *MIXED,
)  # fmt: skip


@cache
def _captured(name: str, exclude: tuple[str, ...]) -> QModel:
    return prepare(module(name), inputs_of(name, 1), exclude=exclude)


@cache
def quantized(case: str) -> QModel:
    """A calibrated small network: ``"<network>-<variant>"``. Shared, as frozen values may be."""
    name, variant = case.split("-")
    given = MIXED.get(case) or VARIANTS[variant]
    q = _captured(name, given.get("exclude", ()))
    grids = SiteGrids(given.get("weights", Grid(8, axis=0)), given.get("inputs", Grid(8, signed=False)))
    plan = with_bits(Plan(dict.fromkeys(q.graph.sites, grids)), given.get("bits", {}))
    q = replace(q, plan=plan)
    return calibrate(q, [inputs_of(name, 24, seed=3)], method="minmax")


@cache
def program(case: str) -> Program:
    """The same network, lowered."""
    return lower(quantized(case))
