"""The GPU executor as far as a CPU can tell: its steps byte for byte, where its tensors are, and which call replays which graph."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pyquant.errors import BackendError, DTypeError, ShapeError
from pyquant.ops import backend as backends
from pyquant.ops import conv_s8_gpu
from pyquant.ops.backend import missing
from pyquant.ops.conv_call import dense, windows
from pyquant.runtime import execute_gpu
from pyquant.runtime.execute_gpu import GRAPHS, GpuExecutor, GpuSteps
from pyquant.runtime.execute_reference import ReferenceExecutor
from pyquant.runtime.net import Net
from pyquant.runtime.program import Program
from pyquant.runtime.tune import tune
from tests.runtime.random_program import Writer, random_conv, random_network
from tests.runtime.small_networks import inputs_of, program
from tests.runtime.test_execute_cpu import assert_same_bytes

META = torch.device("meta")


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_random_convolutions(backend: str) -> None:
    for seed in range(60):
        case, inputs = random_conv(seed)
        assert_same_bytes(GpuSteps(case, "cpu", backend)(*inputs), ReferenceExecutor(case)(*inputs))


def test_random_networks() -> None:
    served = set()
    for seed in range(12):
        case, inputs = random_network(seed)
        steps = GpuSteps(case, "cpu")
        assert_same_bytes(steps(*inputs), ReferenceExecutor(case)(*inputs))
        served |= {choice.op for choice in steps.choices.values()}
    assert served == {"conv_s8", "gemm_s8_float"}


@pytest.mark.parametrize(
    "name", ["residual_blocks-w8a8", "pools_then_linear-w8a8", "tokens-w8a8", "depthwise-w8a8"]
)
def test_no_step_leaves_the_device(name: str) -> None:
    """Tensors without values: torch refuses to mix them with the CPU's, as a GPU's, and nothing can be read of them."""
    case = program(name)
    outputs = GpuSteps(case, META, "reference")(*(x.to(META) for x in inputs_of(name.partition("-")[0], 3)))
    want = ReferenceExecutor(case)(*inputs_of(name.partition("-")[0], 3))
    assert [(y.device, y.dtype, y.shape) for y in outputs] == [(META, y.dtype, y.shape) for y in want]


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [((1, 1), (1, 1), (0, 0, 0, 0), (1, 1)), ((3, 2), (2, 1), (1, 0, 2, 3), (1, 2)), ((1, 1), (2, 2), (0, 0, 0, 0), (1, 1))],
)  # fmt: skip
def test_windows_are_what_unfold_gives(kernel, stride, padding, dilation) -> None:
    x = torch.randint(0, 256, (2, 9, 11, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    got = windows(x, kernel, stride, padding, dilation, 77)
    top, left, bottom, right = padding
    padded = functional.pad(x.permute(0, 3, 1, 2).float(), (left, right, top, bottom), value=77.0)
    want = functional.unfold(padded, kernel, dilation, 0, stride)
    want = want.reshape(2, 3, kernel[0] * kernel[1], -1).permute(0, 3, 2, 1).flatten(2)
    assert torch.equal(got.flatten(1, 2).float(), want)
    if kernel == stride == (1, 1):
        assert got.data_ptr() == x.data_ptr()


def test_a_grouped_weight_as_one_of_all_channels() -> None:
    weight = torch.arange(1, 6 * 2 * 3 * 2 + 1).reshape(6, 2, 3, 2)
    wide = dense(weight, 3)
    assert wide.shape == (6, 2, 3, 6) and dense(weight, 1) is weight
    for n in range(6):
        group = n // 2
        assert torch.equal(wide[n, :, :, 2 * group : 2 * group + 2], weight[n])
        assert int(wide[n].sum()) == int(weight[n].sum())


def served(patch: pytest.MonkeyPatch, *names: str) -> None:
    """Have these backends, and the reference, take CPU tensors and no others."""
    patch.setattr(backends, "missing", lambda name: None if name in (*names, "reference") else "not here")
    for name in names:
        patch.setitem(backends._READS, name, ("cpu",))


def test_a_pinned_backend_refuses_what_it_has_no_kernel_for(monkeypatch: pytest.MonkeyPatch) -> None:
    served(monkeypatch, "triton", "cuda")
    for page in (conv_s8_gpu, execute_gpu):
        monkeypatch.setattr(page, "DENSE", 8 * 9 * 8 - 1)
    writer = Writer(1)
    x = writer.codes_input(6, 6, 8)
    grouped = writer.conv(x, 8, (3, 3), groups=8)
    with pytest.raises(
        BackendError,
        match=r"'conv0' of the program: backend='cuda' cannot serve conv_s8 on cpu: its weight, in 8 groups, would be 576 bytes as",
    ):
        GpuSteps(writer.program(grouped), "cpu", "cuda")
    case = writer.program(writer.conv(grouped, 8, (3, 3), groups=8, float_rank=3))
    for name in ("triton", "cuda"):
        with pytest.raises(
            BackendError,
            match=rf"backend='{name}' cannot serve 'conv1': its results are floats, and its 8 groups too wide to be one; use",
        ):
            GpuSteps(case, "cpu", name)
    inputs = writer.batch(2)
    assert_same_bytes(GpuSteps(case, "cpu")(*inputs), ReferenceExecutor(case)(*inputs))


def test_what_would_serve_is_told_without_a_run() -> None:
    case, _ = random_network(2)
    steps = GpuSteps(case, "cpu", "reference")
    told = steps.plan(5)
    convs = [op.output for op in case.ops if op.kind == "conv"]
    assert list(told) == convs and steps.choices == {}
    assert {str(choice) for choice in told.values()} == {
        "conv_s8 -> reference (pinned)",
        "gemm_s8_float -> reference (pinned)",
    }


def test_sums_beyond_int32_are_refused() -> None:
    writer = Writer(2)
    case = writer.program(writer.conv(writer.codes_input(1, 1, 70_000), 1, x_zero=0))
    case.ops[0].tensors.pop("weight_zero", None)
    case.ops[0].tensors["weight"].fill_(-2139062144)
    case.ops[0].attributes["weight_signed"] = True  # Then every code is -128.
    with pytest.raises(ShapeError, match=r"'conv0' sums K=70000 products .* int32 holds at most"):
        GpuSteps(case, "cpu")


# ------------------------------------------------------------------------------------------------------------ replaying
@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Captures that only run the steps, into memory of their own as a graph would; returns the batches captured."""
    made: list[int] = []

    def captured(steps: GpuSteps, inputs: list[Tensor]) -> Callable:
        made.append(inputs[0].shape[0])
        here = [x.clone() for x in inputs]

        def replay(*given: Tensor) -> tuple[Tensor, ...]:
            for to, x in zip(here, given, strict=True):
                to.copy_(x)
            return steps(*here)

        return replay

    monkeypatch.setattr(execute_gpu, "captured", captured)
    monkeypatch.setattr(execute_gpu, "stream_of", lambda device: 1)
    return made


def network() -> tuple[Program, list[Tensor]]:
    return random_network(3)


def test_one_graph_a_shape_stream_and_thread(captures: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    case, inputs = network()
    executor, want = GpuExecutor(case, "cpu"), ReferenceExecutor(case)(*inputs)
    batch = inputs[0].shape[0]
    for count in (batch, 1, batch, 1):
        given = [x[:count] for x in inputs]
        assert_same_bytes(executor(*given), tuple(y[:count] for y in want))
    assert captures == [batch, 1]
    monkeypatch.setattr(execute_gpu, "stream_of", lambda device: 2)
    assert_same_bytes(executor(*inputs), want)
    assert captures == [batch, 1, batch]
    found = []
    threads = [threading.Thread(target=lambda: found.append(executor(*inputs))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert captures == [batch, 1, *[batch] * 3]
    for got in found:
        assert_same_bytes(got, want)


def test_the_graph_unused_for_longest_goes(captures: list[int]) -> None:
    case, inputs = network()
    executor, one = GpuExecutor(case, "cpu"), [x[:1] for x in inputs]
    for count in (*range(1, GRAPHS + 1), 1, GRAPHS + 1):
        executor(*(x.expand(count, *x.shape[1:]).contiguous() for x in one))
    assert captures == list(range(1, GRAPHS + 2))
    executor(*one)
    assert len(captures) == GRAPHS + 1
    executor(*(x.expand(2, *x.shape[1:]).contiguous() for x in one))
    assert captures[-1] == 2


def test_bad_input_is_refused_before_a_capture(captures: list[int]) -> None:
    case, inputs = network()
    executor = GpuExecutor(case, "cpu")
    with pytest.raises(ShapeError, match="the program takes"):
        executor()
    with pytest.raises(
        DTypeError, match=r"is on meta; the executor takes tensors on cpu: call \.to\('cpu'\)\."
    ):
        executor(*(x.to(META) for x in inputs))
    with pytest.raises(ShapeError, match="empty batch"):
        executor(*(x[:0] for x in inputs))
    assert captures == []


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (torch.OutOfMemoryError("CUDA out of memory.\nTried to"), r"^cpu has no memory left for a batch of 3; give smaller ones\.$"),
        (RuntimeError("operation not permitted\nwhen capturing"), r"^cpu cannot capture this .*: operation not permitted\.$"),
        (BackendError("cuda:0 has no memory left for gemm_s8."), r"^cuda:0 has no memory left for gemm_s8\.$"),
    ],
)  # fmt: skip
def test_a_capture_that_fails_is_one_sentence_and_not_the_end(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError, sentence: str
) -> None:
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda device: stream)
    for name in ("device", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda *given, **how: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    monkeypatch.setattr(execute_gpu, "stream_of", lambda device: 1)
    case, inputs = network()
    executor, want = GpuExecutor(case, "cpu"), ReferenceExecutor(case)(*inputs)
    given = [torch.cat([x, x, x])[:3] for x in inputs]

    def fail(*inputs: Tensor) -> None:
        raise error

    with monkeypatch.context() as failing, pytest.raises(BackendError, match=sentence):
        failing.setattr(GpuSteps, "__call__", lambda self, *inputs: fail(*inputs))
        executor(*given)
    assert len(executor._callers.graphs) == 0
    assert_same_bytes(executor(*inputs), want)


# ------------------------------------------------------------------------------------------------------------------ Net
@pytest.mark.skipif(missing("cuda") is None, reason="the cuda backend is here")
def test_a_net_without_a_gpu_says_who_serves() -> None:
    case = program("residual_blocks-w8a8")
    for backend in ("triton", "cuda"):
        with pytest.raises(
            BackendError, match=rf"backend='{backend}' cannot serve program: .*; use reference"
        ):
            Net(case, backend=backend)


def test_a_net_keeps_its_device() -> None:
    net = Net(program("residual_blocks-w8a8"), backend="reference", device=META)
    assert net.choice.backend == "reference" and isinstance(net._executor, GpuSteps)
    copy = pickle.loads(pickle.dumps(net))
    assert copy.device == META and copy.with_backend("reference").device == torch.device("cpu")
    x = inputs_of("residual_blocks", 2)[0]
    with pytest.raises(DTypeError, match=r"tensor on cpu; give a dense tensor on meta\."):
        net(x)
    assert net(x.to(META)).device == META


def test_outputs_may_be_any_value() -> None:
    case, inputs = network()
    every = replace(case, outputs=tuple(op.output for op in case.ops))
    assert_same_bytes(GpuSteps(every, "cpu", "reference")(*inputs), ReferenceExecutor(every)(*inputs))


def test_tiles_are_for_a_gpu(tmp_path: Path) -> None:
    case = program("residual_blocks-w8a8")
    with pytest.raises(
        BackendError,
        match=r"tuned='tiles\.json' is for kernels on a GPU, and this network runs on reference; leave it out",
    ):
        Net(case, backend="reference", tuned="tiles.json")
    net = Net(case, backend="reference")
    with pytest.raises(
        BackendError, match=r"tune measures kernels on a GPU, and this network is on cpu; load it with dev"
    ):
        tune(net, 2, tmp_path / "tiles.json")
    assert list(tmp_path.iterdir()) == []
