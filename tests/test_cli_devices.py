"""The command line where the network is not on the CPU. Meta tensors stand for a GPU's: torch mixes neither with the CPU's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pyquant import cli, load
from pyquant.cli import main
from pyquant.runtime import net as nets
from pyquant.runtime.net import Net
from tests.runtime.small_networks import program

META = torch.device("meta")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Net(program("depthwise-w8a8"), backend="reference").save("net.pq")
    return tmp_path / "net.pq"


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    return said.err


@no_gpu
@pytest.mark.parametrize(
    "command", [["show"], ["bench"], ["evaluate", "resnet20"]], ids=lambda words: words[0]
)
def test_no_visible_device_is_one_sentence(
    saved: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    words = [command[0], str(saved), *command[1:], "--device"]
    said = refused([*words, "cuda:1"], capsys)
    assert said == "error: device='cuda:1': no CUDA device is visible to torch; use device='cpu'.\n"
    assert (
        refused([*words, "gpu"], capsys)
        == "error: device='gpu' is no device; use 'cpu', 'cuda' or 'cuda:0'.\n"
    )
    said = refused([*words[:-1], "--backend", "triton"], capsys)
    assert "backend='triton' cannot serve program: no CUDA device is visible to torch; use reference" in said


def test_a_device_past_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(
        nets.BackendError, match=r"there is no cuda:2; torch sees 2 CUDA device\(s\), counted from 0\."
    ):
        nets.visible("cuda:2")
    assert nets.visible("cuda:1") == torch.device("cuda", 1) and nets.visible("cuda") == torch.device("cuda")


def test_show_names_the_kernel_of_every_convolution(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "net.pq", "--device", "meta", "--backend", "reference"]) == 0
    out = capsys.readouterr().out
    convs = [row for row in load("net.pq").describe() if row["kind"] == "conv"]
    assert len(re.findall(r"(conv_s8|gemm_s8_float) -> reference \(pinned\)", out)) == len(convs) >= 4
    assert main(["show", "net.pq", "--device", "cpu"]) == 0
    assert "kernel" not in capsys.readouterr().out
    assert "--batch 0 holds no sample" in refused(["show", "net.pq", "--batch", "0"], capsys)


class Elsewhere:
    """Stands for a network on a device: takes nothing that is not there, and gives what is to be fetched from there."""

    device = META

    def __init__(self, net: Net, **options: object) -> None:
        self.program, self.choice, self.options = net.program, "on the device", options
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, *inputs: Tensor) -> Tensor:
        assert all(x.device == META for x in inputs)
        self.seen.append(tuple(inputs[0].shape))
        return Fetched(torch.ones(inputs[0].shape[0], 10))


class Fetched(Tensor):
    """A result that has to be fetched."""

    @staticmethod
    def __new__(cls, values: Tensor) -> Fetched:
        return Tensor._make_subclass(cls, values)

    def cpu(self) -> Tensor:
        return self.as_subclass(Tensor) * 2


def test_bench_and_evaluate_move_what_they_give(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[Elsewhere] = []

    def load_there(path: str, **options: object) -> Elsewhere:
        made.append(Elsewhere(load(path), **options))
        return made[-1]

    finished: list[torch.device] = []
    monkeypatch.setattr(cli, "load", load_there)
    monkeypatch.setattr(cli, "_finish", finished.append)
    assert main(["bench", "net.pq", "--batch", "3", "--rounds", "2", "--device", "cuda:1"]) == 0
    assert made[0].options["device"] == "cuda:1" and made[0].seen == [(3, 3, 9, 11)] * 3
    # Before the clock starts, and before it stops: a GPU's call returns at once.
    assert finished == [META] * 3 and "images/s (on the device)" in capsys.readouterr().out
    images, right = torch.randn(70, 3, 9, 11), torch.zeros(70, 1, dtype=torch.int64)
    monkeypatch.setattr(cli.zoo, "load", lambda name: lambda x: torch.ones(len(x), 10))
    monkeypatch.setattr(cli.zoo, "evaluation", lambda name: (images, right))
    monkeypatch.setattr(cli.zoo, "accuracy", lambda scores, accepted, k: scores.sum().item() / scores.numel())
    assert main(["evaluate", "net.pq", "resnet20", "--device", "cuda"]) == 0
    assert made[1].seen == [(64, 3, 9, 11), (6, 3, 9, 11)]
    assert "2.0000" in capsys.readouterr().out, "the scores were not those fetched"
