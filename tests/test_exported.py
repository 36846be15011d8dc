"""Shapes of values whose first dimension is the batch, and of those where it is something else."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyquant.capture import capture
from pyquant.errors import CaptureError
from pyquant.pipeline import Recipe, quantize
from pyquant.runtime.compare import same_bytes


class Patches(nn.Module):
    """Rows are patches, eight an image, between two layers whose rows are images."""

    def __init__(self):
        super().__init__()
        self.cut, self.each, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(16, 12), nn.Linear(12, 4)

    def forward(self, x):
        y = F.relu(self.cut(x))
        batch = y.shape[0]
        return self.head(self.each(y.flatten(2).reshape(batch * 8, 16)).relu().view(batch, 8, 12).mean(1))


class SequenceFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.each, self.head = nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.each(x.transpose(0, 1)).relu().mean(0))


class Frames(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x):
        y = F.relu(self.norm(self.conv(x.reshape(x.shape[0] * 5, 3, 8, 8))))
        return self.head(F.adaptive_avg_pool2d(y, 1).flatten(1).view(x.shape[0], 5, 4).mean(1))


class Shuffled(nn.Module):
    """A view of what a clone has put in a row."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.a(x)
        batch, c, h, w = x.shape
        return self.b(x.view(batch, 2, 2, h, w).transpose(1, 2).reshape(batch, c, h, w))


class Encoder(nn.Sequential):
    def __init__(self):
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        super().__init__(nn.Linear(12, 16), layer, nn.Flatten(), nn.Linear(7 * 16, 3))


CASES = {
    "patches": (Patches, (3, 16, 16), {"cut", "head"}),
    "sequence first": (SequenceFirst, (7, 12), {"head"}),
    "frames": (Frames, (5, 3, 8, 8), {"head"}),
    "shuffled": (Shuffled, (3, 9, 9), {"a", "b"}),
    "encoder": (Encoder, (7, 12), {"0", "3"}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_batch_that_is_not_first_stays_float_and_right(case):
    """Sites whose rows are images are quantised, the others stay float, for any batch and on every backend."""
    build, shape, sites = CASES[case]
    torch.manual_seed(3)
    model, x = build().eval(), torch.randn(16, *shape)
    net = quantize(model, x, Recipe.fixed(8, 8))
    assert sites <= set(net.info["plan"])
    for rows in (x, x[:1], x[:5]):
        found, exact = net(rows), model(rows)
        assert same_bytes(found, net.with_backend("reference")(rows))
        # 8 bits of inputs and weights: two hundredths are ample, and a mixed-up row is off by its whole size.
        assert (found - exact).norm() < 0.02 * exact.norm()


def test_shapes_are_those_behind_the_batch():
    graph, _ = capture(Patches().eval(), torch.randn(2, 3, 16, 16))
    shapes = {node.name: node.shape for node in graph.nodes}
    assert shapes["x"] == (3, 16, 16) and shapes["cut"] == (8, 4, 4) and shapes["head"] == (4,)
    assert shapes["each"] is None


def test_whole_numbers_as_inputs_are_refused():
    model = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 4)).eval()
    with pytest.raises(CaptureError, match="input 'input' is int64; programs take float inputs"):
        capture(model, torch.randint(0, 50, (4, 7)))
