"""Ops on the cuda backend, from the call to the bytes: the kernels run on the executor, all else as on a GPU."""

from __future__ import annotations

import pytest
import torch

from pyquant.errors import BackendError, DTypeError, ShapeError
from pyquant.ops import backend, cuda_launch
from pyquant.ops.cuda_configurations import KERNELS
from pyquant.ops.cuda_launch import fit, runs_on
from pyquant.ops.gemm_s8 import gemm_s8, gemm_s8_float
from pyquant.ops.gemm_w4 import gemm_w4
from pyquant.ops.gemm_w4a4 import gemm_w4a4
from pyquant.ops.gemm_w4a16 import gemm_w4a16
from pyquant.ops.linear_w4 import linear_w4
from pyquant.ops.pack import pack
from pyquant.runtime.execute_gpu import GpuSteps
from pyquant.runtime.execute_reference import ReferenceExecutor
from tests.gpu.executor import Executor
from tests.gpu.fake_driver import COMPILER as C_COMPILER
from tests.gpu.fake_driver import FakeDriver, OnDevice, image
from tests.gpu.on_executor import ExecutorDriver, serve
from tests.gpu.test_executor_w4a16 import exact, within_the_bound
from tests.ops.test_gemm_s8 import case
from tests.ops.w4_cases import rows, same_bytes, weights
from tests.runtime.random_program import random_conv, random_network
from tests.runtime.test_execute_cpu import assert_same_bytes

CPU = torch.device("cpu")


@pytest.fixture
def cuda(executor: Executor, monkeypatch: pytest.MonkeyPatch) -> ExecutorDriver:
    return serve(executor, monkeypatch)


@pytest.mark.parametrize("shape", [(1, 1, 1), (17, 63, 40), (65, 130, 144)], ids=str)
def test_gemm_s8(cuda: ExecutorDriver, shape: tuple[int, int, int]) -> None:
    tensors = case(*shape)
    codes = {"x_zero": 119, "y_zero": 3, "low": 1, "high": 250}
    for _ in range(2):
        got = gemm_s8(*tensors, **codes, backend="cuda")
        assert torch.equal(got, gemm_s8(*tensors, **codes, backend="reference"))
    got = gemm_s8_float(*tensors, x_zero=7, backend="cuda")
    assert same_bytes(got, gemm_s8_float(*tensors, x_zero=7, backend="reference"))
    assert [entry.rpartition("_")[0] for entry in cuda.launched] == ["gemm_s8_codes"] * 2 + ["gemm_s8_floats"]


def test_a_weight_written_to_is_laid_out_anew(cuda: ExecutorDriver) -> None:
    x, weight, multiplier, bias = case(5, 20, 40)
    for x_zero in (3, 200, 3):
        got = gemm_s8_float(x, weight, multiplier, bias, x_zero=x_zero, backend="cuda")
        assert same_bytes(got, gemm_s8_float(x, weight, multiplier, bias, x_zero=x_zero, backend="reference"))
        weight.neg_()


def test_what_is_strided_is_copied(cuda: ExecutorDriver) -> None:
    x, weight, multiplier, bias = case(9, 33, 64)
    given = (x[:, ::2], weight[:, ::2], multiplier.repeat(2)[::2][:33], bias.repeat(2)[::2][:33])
    got = gemm_s8(*given, x_zero=9, y_zero=8, backend="cuda")
    assert torch.equal(got, gemm_s8(*given, x_zero=9, y_zero=8, backend="reference"))


@pytest.mark.parametrize("group_size", [None, 32, 64])
@pytest.mark.parametrize("x_signed", [True, False])
def test_gemm_w4(cuda: ExecutorDriver, group_size: int | None, x_signed: bool) -> None:
    given = {**weights(40, 192, group_size, False, 4, "each", 1), **rows(19, 192, x_signed, 8, True, 1)}
    options = {"group_size": group_size, "signed": False, "bits": 4}
    assert same_bytes(
        gemm_w4(**given, **options, backend="cuda"), gemm_w4(**given, **options, backend="reference")
    )
    assert cuda.launched[0].startswith(f"gemm_w4a8_{'signed' if x_signed else 'unsigned'}_")


@pytest.mark.parametrize(("architecture", "kernel"), [("sm_86", "gemm_w4a4"), ("sm_90", "gemm_w4a8")])
@pytest.mark.parametrize("group_size", [None, 32])
@pytest.mark.parametrize("x_signed", [True, False])
def test_gemm_w4a4_by_architecture(
    executor: Executor,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    kernel: str,
    group_size: int | None,
    x_signed: bool,
) -> None:
    """int4 tensor cores where there are some, else int8 ones on unpacked activations: the same bytes."""
    driver = serve(executor, monkeypatch, architecture)
    given = {**weights(33, 96, group_size, True, 4, "each", 2), **rows(18, 96, x_signed, 4, True, 2)}
    given["x"] = pack(given["x"].int(), 4)
    options = {"length": 96, "x_signed": x_signed, "group_size": group_size}
    got = gemm_w4a4(**given, **options, backend="cuda")
    assert same_bytes(got, gemm_w4a4(**given, **options, backend="reference"))
    assert len(driver.launched) == 1 and driver.launched[0].startswith(kernel)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_linear_w4(cuda: ExecutorDriver, dtype: torch.dtype) -> None:
    given = weights(24, 128, 64, True, 4, "none", 3)
    x = torch.randn(2, 3, 128, generator=torch.Generator().manual_seed(5)).to(dtype)
    got = linear_w4(x, **given, group_size=64, backend="cuda")
    assert got.dtype == dtype and got.shape == (2, 3, 24)
    assert same_bytes(got, linear_w4(x, **given, group_size=64, backend="reference"))
    assert cuda.launched == ["gemm_w4a8_signed_group_16x128"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("m", "n", "k", "group_size"), [(3, 70, 512, 128), (17, 300, 96, 32), (1, 1, 40, None)]
)
def test_gemm_w4a16(
    cuda: ExecutorDriver, dtype: torch.dtype, m: int, n: int, k: int, group_size: int | None
) -> None:
    """The first shape is split along K, and its parts are added by a kernel of their own."""
    given = weights(n, k, group_size, False, 4, "each", m)
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(m)).to(dtype)
    options = {"group_size": group_size, "signed": False}
    got = gemm_w4a16(x, **given, **options, backend="cuda")
    want, terms = exact(x, given, group_size, False, 4)
    assert within_the_bound(got, want, terms, k, given["scale"].shape[1], 2)
    assert ("gemm_w4a16_sum" in cuda.launched[-1]) == (m == 3) and len(cuda.launched) == 1 + (m == 3)
    # The reference rounds the exact product once: the same bound holds it.
    assert within_the_bound(gemm_w4a16(x, **given, **options, backend="reference"), want, terms * 0, k, 1, 1)
    with pytest.raises(DTypeError, match=r"x is torch\.float32; gemm_w4a16 takes float16 or bfloat16\."):
        gemm_w4a16(x.float(), **given, **options)


def test_programs(cuda: ExecutorDriver) -> None:
    """The steps of the GPU executor, products on the kernels: residuals, float results, windows, dilation."""
    for seed in range(40):
        program, inputs = random_conv(seed)
        assert_same_bytes(GpuSteps(program, "cpu", "cuda")(*inputs), ReferenceExecutor(program)(*inputs))
    kinds = {entry.rpartition("_")[0] for entry in cuda.launched}
    assert kinds == {"gemm_s8_codes", "gemm_s8_floats"} and len(cuda.launched) == 40
    program, inputs = random_network(1)
    launched = len(cuda.launched)
    assert_same_bytes(GpuSteps(program, "cpu", "auto")(*inputs), ReferenceExecutor(program)(*inputs))
    assert len(cuda.launched) == launched, "auto keeps to the CPU's backends there"


# ------------------------------------------------------------------------------------------------- what is chosen
def test_a_choice_names_kernel_and_tile(cuda: ExecutorDriver) -> None:
    tensors = case(100, 130, 64)
    choice = backend.choose("gemm_s8", CPU, "cuda", (*tensors, 1, 2, 0, 255))
    assert str(choice) == (
        "gemm_s8 -> cuda with gemm_s8_codes_64x64 on sm_80: 64x64x64, 128 threads, 4 stages, 32768 bytes of shared memory"
        " (pinned)"
    )


def test_tiles_follow_the_rows(cuda: ExecutorDriver) -> None:
    def tile(m: int, n: int) -> tuple[int, int]:
        return fit("gemm_s8", CPU, m, n).kernel.tile[:2]

    # Four multiprocessors here: one tile each, of rows that are at least half there.
    assert [tile(m, 512) for m in (1, 32, 33, 64, 65, 4096)] == [
        *((16, 128), (16, 128), (64, 64), (64, 64), (128, 128), (128, 128)),
    ]
    assert tile(128, 256) == (64, 64) and tile(200, 64) == (64, 64) and tile(65, 64) == (16, 128)


@pytest.mark.parametrize(
    ("target", "built", "runs"),
    [("sm_80", "sm_80", True), ("sm_87", "sm_86", True), ("sm_86", "sm_89", False), ("sm_75", "sm_80", False),
     ("sm_90", "sm_80", False), ("sm_121", "sm_120", True), ("sm_120", "sm_100", False), ("gfx942", "sm_90", False)],
)  # fmt: skip
def test_machine_code_runs_on_its_own_generation(target: str, built: str, runs: bool) -> None:
    assert runs_on(target, built) is runs


def test_an_unsupported_architecture_names_who_serves(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = serve(executor, monkeypatch, "sm_75")
    with pytest.raises(
        BackendError,
        match=r"backend='cuda' cannot serve gemm_s8 on sm_75: its kernels of gemm_s8 are built for sm_80, .*; use reference",
    ):
        gemm_s8(*case(2, 3, 4), x_zero=0, y_zero=0, backend="cuda")
    assert driver.launched == []


def test_sums_beyond_int32_are_refused_as_on_the_cpu(cuda: ExecutorDriver) -> None:
    x, weight = torch.zeros(1, 65794, dtype=torch.uint8), torch.full((1, 65794), -128, dtype=torch.int8)
    one = torch.ones(1)
    with pytest.raises(ShapeError, match="int32 holds at most K=65793"):
        gemm_s8(x, weight, one, one, x_zero=0, y_zero=0, backend="cuda")
    packed = pack(torch.zeros(1, 600_000, dtype=torch.int32), 4)
    with pytest.raises(ShapeError, match="at most K=561433"):
        gemm_w4(torch.zeros(1, 600_000, dtype=torch.uint8), packed, one[:, None], one, backend="cuda")
    assert cuda.launched == []


def test_weights_that_a_kernel_cannot_hold_go_to_the_next(
    cuda: ExecutorDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long rows, of codes whose sums may leave int32, and scales that have no sixteenth: refused if pinned, and auto moves on."""
    k = 140_000
    x, long = torch.full((1, k), 255, dtype=torch.uint8), pack(torch.full((1, k), -8), 4)
    short = torch.full((1, 64), 3, dtype=torch.uint8), pack(torch.ones(1, 64, dtype=torch.int32), 4)
    one, tiny = torch.ones(1, 1), torch.full((1, 1), 2.0**-124)
    monkeypatch.setitem(backend.ORDER, "cpu", ("cuda", "reference"))
    for given, said in (
        (
            (x, long, one, one[0]),
            f"sums over {k} codes can reach {8 * 255 * 16 * k}, and the kernel holds 2147483647",
        ),
        ((*short, tiny, one[0]), r"a scale is under 2\^-122"),
    ):
        with pytest.raises(
            BackendError,
            match=rf"backend='cuda' cannot serve gemm_w4 on sm_80: {said}; use reference or cpu\.",
        ):
            gemm_w4(*given, backend="cuda")
        want = gemm_w4(*given, backend="reference")
        assert (
            bool(want.any())
            and same_bytes(gemm_w4(*given), want)
            and same_bytes(gemm_w4(*given, backend="cpu"), want)
        )
    with pytest.raises(BackendError, match=r"cannot serve linear_w4 on sm_80: sums over 140000 codes"):
        linear_w4(torch.ones(1, k), long, one, backend="cuda")
    assert cuda.launched == []
    # Of as long a row with small codes the sums do fit.
    given = x, pack(torch.ones(1, k, dtype=torch.int32), 4), one, one[0]
    assert same_bytes(gemm_w4(*given, backend="cuda"), gemm_w4(*given, backend="reference"))


@pytest.mark.skipif(C_COMPILER is None, reason="no C compiler to build the fake libcuda with")
def test_a_launch_reaches_the_driver(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real seam, with the fake libcuda behind it: entry, grid, block, shared memory and stream."""
    (kernel,) = [k for k in KERNELS if k.entry == "gemm_s8_codes_64x64"]
    fake = FakeDriver(tmp_path)
    sizes = (*(8,) * 6, *(4,) * 6)
    fake.path.write_bytes(image({kernel.entry: sizes}))
    driver = fake.open()
    monkeypatch.setattr(cuda_launch, "driver", lambda: driver)
    monkeypatch.setattr(cuda_launch, "stream_of", lambda device: 0x77)
    launch = cuda_launch.Launch(kernel, "sm_80", kernel.grid(100, 130))
    x = OnDevice(torch.zeros(16))
    launch(torch.device("cuda", 0), {**dict.fromkeys("abcdef", x), **dict.fromkeys("ghijkl", 5)})
    (line,) = fake.named("cuLaunchKernel")
    assert (line["entry"], line["stream"], line["shared"]) == (kernel.entry, 0x77, kernel.shared_bytes)
    assert (line["grid"], line["block"]) == ([3, 2, 1], [kernel.block, 1, 1])
    assert [len(bytes.fromhex(argument)) for argument in line["arguments"]] == [*sizes]
