"""On a real GPU, the bodies of the other rungs: kernels, ops, programs and the driver. ``pytest tests/gpu/test_on_gpu.py``."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from pyquant.cli import main
from pyquant.errors import BackendError
from pyquant.ops.backend import architecture, choose, missing
from pyquant.ops.cuda_configurations import KERNELS
from pyquant.ops.cuda_driver import driver
from pyquant.ops.gemm_s8 import gemm_s8, gemm_s8_float
from pyquant.ops.gemm_w4 import gemm_w4
from pyquant.ops.gemm_w4a4 import gemm_w4a4
from pyquant.ops.gemm_w4a16 import gemm_w4a16
from pyquant.ops.linear_w4 import linear_w4
from pyquant.ops.pack import pack
from pyquant.runtime.execute_gpu import GpuExecutor
from pyquant.runtime.execute_reference import ReferenceExecutor
from pyquant.runtime.net import Net
from pyquant.runtime.tune import tune
from tests.gpu.interpreter import dispatch, fake_quantize, programs, quantize_rows
from tests.gpu.interpreter import gemm_s8 as triton_gemm_s8
from tests.gpu.test_executor_w4a16 import exact, within_the_bound
from tests.ops.test_gemm_s8 import case
from tests.ops.w4_cases import rows, same_bytes, weights
from tests.runtime.random_program import random_conv, random_network
from tests.runtime.test_execute_cpu import assert_same_bytes

CUDA = torch.device("cuda", 0)
WHY = {name: missing(name) for name in ("triton", "cuda")}
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible to torch")
needs = {name: pytest.mark.skipif(why is not None, reason=str(why)) for name, why in WHY.items()}
BACKENDS = [pytest.param(name, marks=needs[name]) for name in WHY]
# As the sweep of the executor: one row and column, ragged everything, whole tiles, K under a slab and over the pipeline.
SHAPES = [
    (1, 1, 1),
    (1, 4096, 4096),
    (17, 63, 40),
    (63, 33, 129),
    (128, 128, 128),
    (129, 130, 272),
    (300, 1000, 2047),
]
MODULES = {
    "dispatch": dispatch,
    "fake_quantize": fake_quantize,
    "gemm_s8": triton_gemm_s8,
    "programs": programs,
    "quantize_rows": quantize_rows,
}


def there(given: dict) -> dict:
    return {key: value.to(CUDA) if isinstance(value, torch.Tensor) else value for key, value in given.items()}


@needs["triton"]
@pytest.mark.parametrize(
    ("module", "name"), [(key, name) for key, module in MODULES.items() for name in module.CASES]
)
def test_triton(module: str, name: str) -> None:
    """What the interpreter checks, compiled."""
    MODULES[module].check("cuda", **MODULES[module].CASES[name])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "M{}-N{}-K{}".format(*s))
def test_gemm_s8(backend: str, shape: tuple[int, int, int]) -> None:
    tensors = case(*shape)
    on_gpu, codes = [t.to(CUDA) for t in tensors], {"x_zero": 119, "y_zero": 3, "low": 1, "high": 250}
    got = gemm_s8(*on_gpu, **codes, backend=backend)
    assert torch.equal(got.cpu(), gemm_s8(*tensors, **codes, backend="reference"))
    got = gemm_s8_float(*on_gpu, x_zero=255, backend=backend)
    assert same_bytes(got.cpu(), gemm_s8_float(*tensors, x_zero=255, backend="reference"))


@needs["cuda"]
@pytest.mark.parametrize("group_size", [None, 32, 64, 128])
@pytest.mark.parametrize("m", [1, 17, 63, 128])
@pytest.mark.parametrize("x_signed", [True, False])
def test_low_bit(m: int, group_size: int | None, x_signed: bool) -> None:
    options = {"group_size": group_size, "signed": False, "bits": 4}
    given = {**weights(130, 384, group_size, False, 4, "each", m), **rows(m, 384, x_signed, 8, True, m)}
    got = gemm_w4(**there(given), **options, backend="cuda")
    assert same_bytes(got.cpu(), gemm_w4(**given, **options, backend="reference"))
    given |= rows(m, 384, x_signed, 4, True, m)
    given["x"] = pack(given["x"].int(), 4)
    options |= {"length": 384, "x_signed": x_signed}
    got = gemm_w4a4(**there(given), **options, backend="cuda")
    assert same_bytes(got.cpu(), gemm_w4a4(**given, **options, backend="reference"))


@needs["cuda"]
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_linear_w4(dtype: torch.dtype) -> None:
    given = weights(24, 128, 64, True, 4, "none", 3)
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(5)).to(dtype)
    got = linear_w4(x.to(CUDA), **there(given), group_size=64, backend="cuda")
    assert same_bytes(got.cpu(), linear_w4(x, **given, group_size=64, backend="reference"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("m", "n", "k", "group_size"), [(1, 4096, 4096, 128), (17, 300, 96, 32), (64, 1000, 40, None)]
)
def test_gemm_w4a16(backend: str, dtype: torch.dtype, m: int, n: int, k: int, group_size: int | None) -> None:
    given = weights(n, k, group_size, False, 4, "each", m)
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(m)).to(dtype)
    options = {"group_size": group_size, "signed": False}
    got = gemm_w4a16(x.to(CUDA), **there(given), **options, backend=backend)
    again = gemm_w4a16(x.to(CUDA), **there(given), **options, backend=backend)
    want, terms = exact(x, given, group_size, False, 4)
    # At most a split for every slab of 64.
    assert within_the_bound(got.cpu(), want, terms, k, given["scale"].shape[1], k // 64 + 1)
    assert torch.equal(got, again)


def test_auto_and_the_reference_serve_cuda_tensors() -> None:
    tensors = case(65, 70, 96)
    on_gpu = [t.to(CUDA) for t in tensors]
    want = gemm_s8(*tensors, x_zero=1, y_zero=2, backend="reference")
    for backend in ("auto", "reference"):
        got = gemm_s8(*on_gpu, x_zero=1, y_zero=2, backend=backend)
        assert got.device == CUDA and torch.equal(got.cpu(), want)
    assert architecture(CUDA) in str(choose("gemm_s8", CUDA, "auto", (*on_gpu, 1, 2, 0, 255))) or all(
        WHY.values()
    )


@pytest.mark.parametrize("seed", range(8))
def test_programs_replayed(seed: int) -> None:
    """Twice each, as a graph, other inputs the second time; and two threads at once."""
    for program, inputs in (random_conv(seed), random_network(seed)):
        executor, want = GpuExecutor(program, CUDA), ReferenceExecutor(program)
        turned = [x.flip(0).contiguous() for x in inputs]
        for given in (inputs, turned):
            assert_same_bytes(tuple(y.cpu() for y in executor(*(x.to(CUDA) for x in given))), want(*given))
        found: list[tuple[torch.Tensor, ...]] = []

        def work(run=executor, given=inputs, into=found) -> None:
            into.append(run(*(x.to(CUDA) for x in given)))

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        torch.cuda.synchronize()
        assert len(found) == 2
        for got in found:
            assert_same_bytes(tuple(y.cpu() for y in got), want(*inputs))


@needs["triton"]
def test_tuned_tiles_give_the_same_bytes(tmp_path: Path) -> None:
    program, inputs = random_network(2)
    net = Net(program, backend="triton", device=CUDA)
    timed = tune(net, inputs[0].shape[0], tmp_path / "tiles.json")
    assert timed and all(row["speedup"] >= 1.0 for row in timed)
    fast = Net(program, backend="triton", device=CUDA, tuned=tmp_path / "tiles.json")
    want = ReferenceExecutor(program)(*inputs)
    assert_same_bytes(tuple(y.cpu() for y in fast(*(x.to(CUDA) for x in inputs))), want)


def test_the_command_line_takes_a_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Net(random_network(1)[0], backend="reference").save(tmp_path / "net.pq")
    for words in (["show"], ["bench", "--rounds", "2"]):
        assert main([words[0], str(tmp_path / "net.pq"), *words[1:], "--device", "cuda", "--batch", "3"]) == 0
        assert "program -> " in (out := capsys.readouterr().out) or "conv_s8 -> " in out
    assert main(["bench", str(tmp_path / "net.pq"), "--device", "cuda:99"]) == 1
    assert "there is no cuda:99; torch sees" in capsys.readouterr().err


@needs["cuda"]
def test_every_kernel_of_the_image_loads() -> None:
    loaded = 0
    for kernel in KERNELS:
        if architecture(CUDA) in kernel.architectures:
            found = driver().kernel(kernel.entry, 0)
            assert found.max_threads >= kernel.block
            assert found.static_shared + kernel.shared_bytes <= found.shared_limit
            loaded += 1
    assert loaded or architecture(CUDA) not in {a for kernel in KERNELS for a in kernel.architectures}


@needs["cuda"]
def test_streams_are_respected() -> None:
    """A product behind a long wait on a stream of its own, read there: the launch went into that stream."""
    tensors = [t.to(CUDA) for t in case(64, 64, 64)]
    want, stream = gemm_s8_float(*tensors, x_zero=0, backend="cuda"), torch.cuda.Stream()
    torch.cuda.synchronize()
    late = torch.zeros_like(tensors[0])
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        late.copy_(tensors[0])
        got = gemm_s8_float(late, *tensors[1:], x_zero=0, backend="cuda")
    stream.synchronize()
    assert same_bytes(got.cpu(), want.cpu()) and bool(want.any())


@needs["cuda"]
def test_a_misaligned_tensor_is_copied_and_a_refused_launch_is_survived() -> None:
    x, *rest = case(4, 16, 64)
    memory = torch.empty(4 * 64 + 1, dtype=torch.uint8, device=CUDA)
    odd = memory[1:].view(4, 64).copy_(x)
    got = gemm_s8_float(odd, *(t.to(CUDA) for t in rest), x_zero=0, backend="cuda")
    assert same_bytes(got.cpu(), gemm_s8_float(x, *rest, x_zero=0, backend="reference"))
    kernel = driver().kernel(KERNELS[0].entry, 0)
    with pytest.raises(BackendError, match="blocks is outside"):
        driver().launch(kernel, (1, 70_000, 1), (32, 1, 1), 0, 0, {"x": memory})
    assert int(torch.ones(3, device=CUDA).sum()) == 3
