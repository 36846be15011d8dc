"""The CPU executor against the reference, byte for byte."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Iterator
from functools import cache

import pytest
import torch
from torch import Tensor

from pyquant.errors import BackendError, DTypeError, ShapeError
from pyquant.ops.backend import extension, missing
from pyquant.ops.pack import pack
from pyquant.runtime.execute_cpu import CpuExecutor, load
from pyquant.runtime.execute_reference import ReferenceExecutor
from pyquant.runtime.program import Program, Value
from tests.runtime.random_program import Writer, random_conv, random_network

pytestmark = pytest.mark.skipif(missing("cpu") is not None, reason=str(missing("cpu")))
ISAS = extension().available_isas() if extension() is not None else []


@pytest.fixture(autouse=True)
def one_thread_for_torch() -> Iterator[None]:
    """The reference's small tensors are slowed down by a second thread, the more so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def assert_same_bytes(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert g.dtype == w.dtype and g.shape == w.shape
        # Bits, so that a NaN or a negative zero would show.
        same = torch.int32 if g.dtype == torch.float32 else g.dtype
        assert torch.equal(g.view(same), w.view(same))


@cache
def convolution(seed: int) -> tuple[Program, list[Tensor], tuple[Tensor, ...]]:
    program, inputs = random_conv(seed)
    return program, inputs, ReferenceExecutor(program)(*inputs)


@cache
def network(seed: int) -> tuple[Program, list[Tensor], tuple[Tensor, ...]]:
    program, inputs = random_network(seed)
    return program, inputs, ReferenceExecutor(program)(*inputs)


@pytest.mark.parametrize("isa", ISAS)
def test_random_convolutions(isa: str) -> None:
    for seed in range(120):
        program, inputs, want = convolution(seed)
        assert_same_bytes(CpuExecutor(program, threads=1 + seed % 3, isa=isa)(*inputs), want)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2])
def test_random_networks(isa: str, threads: int) -> None:
    for seed in range(20):
        program, inputs, want = network(seed)
        executor = CpuExecutor(program, threads=threads, isa=isa)
        assert_same_bytes(executor(*inputs), want)
        # Again, in an arena that the first run has left dirty.
        assert_same_bytes(executor(*inputs), want)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [16, 48, 112])
@pytest.mark.parametrize("threads", [1, 3])
def test_rows_that_end_with_tiles(isa: str, width: int, threads: int) -> None:
    """First layers and others, in blocks of whole tiles; with three threads, parts that begin amid a row."""
    writer = Writer(width)
    x, z = writer.codes_input(10, 2 * width, 3), writer.codes_input(5, width, 24)
    y = writer.conv(x, 20, (3, 3), (2, 2), (1, 1, 1, 1))
    y = writer.conv(writer.conv(z, 20, (3, 3), (1, 1), (1, 1, 1, 1)), 20, (1, 1), residual=y)
    program, inputs = writer.program(y), writer.batch(4)
    assert_same_bytes(CpuExecutor(program, threads, isa)(*inputs), ReferenceExecutor(program)(*inputs))


def test_random_results_are_not_trivial() -> None:
    spread = [len(convolution(seed)[2][0].unique()) for seed in range(40)]
    assert sum(count > 8 for count in spread) > 25


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("channels", [1, 3, 16, 33, 72, 100])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_depthwise(isa: str, channels: int, stride: int, kernel: int) -> None:
    writer = Writer(channels)
    x = writer.codes_input(9, 23, channels)
    pad = kernel // 2
    y = writer.conv(x, channels, (kernel, kernel), (stride, stride), (pad, pad, pad, pad), groups=channels)
    skip = writer.codes_input(*writer.values[y].shape)
    z = writer.conv(
        x, channels, (kernel, kernel), (stride, stride), (pad, pad, pad, pad), groups=channels, residual=skip
    )
    program, inputs = writer.program(y, z), writer.batch(2)
    assert_same_bytes(CpuExecutor(program, threads=2, isa=isa)(*inputs), ReferenceExecutor(program)(*inputs))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("channels", [5, 24, 64])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2), (7, 1)])
@pytest.mark.parametrize("width", [1, 2, 6, 401])
def test_depthwise_takes_any_width_in_chunks(
    isa: str, channels: int, kernel: int, stride: int, width: int
) -> None:
    """Narrower than the runs of columns that share a block, and wider than what is interleaved at once."""
    writer = Writer(width)
    x, pad = writer.codes_input(4, width, channels), kernel // 2
    y = writer.conv(x, channels, (kernel, kernel), (stride, stride), (pad, pad, pad, pad), groups=channels)
    program, inputs = writer.program(y), writer.batch(1)
    assert_same_bytes(CpuExecutor(program, threads=1, isa=isa)(*inputs), ReferenceExecutor(program)(*inputs))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scale", [0.1, 0.3, 0.7, 0.9])
def test_every_product_is_rounded_by_itself(isa: str, scale: float) -> None:
    """Every code as a residual and as an operand, at scales whose products come to lie on ties."""
    writer = Writer(0)
    x, skip = writer.codes_input(16, 16, 1), writer.codes_input(16, 16, 1)
    program = writer.program(writer.conv(x, 1, residual=skip), writer.add(x, skip))
    nothing = {role: torch.zeros(1) for role in ("multiplier", "bias")}
    conv = dataclasses.replace(program.ops[0], tensors={**program.ops[0].tensors, **nothing})
    program = dataclasses.replace(program, ops=(conv, program.ops[1]))
    codes = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1)
    for zero in (2, 17, 128, 251):
        case = {"y_zero": 101, "low": 0, "high": 255}
        case = altered(altered(program, 0, residual_zero=zero, residual_scale=scale, **case), 1,
                       a_zero=zero, a_scale=scale, b_zero=255 - zero, b_scale=1 - scale, **case)  # fmt: skip
        want = ReferenceExecutor(case)(codes, codes)
        assert len(want[0].unique()) > 20
        assert_same_bytes(CpuExecutor(case, isa=isa)(codes, codes), want)


@pytest.mark.parametrize("padding", [(1, 0, 0, 1), (0, 1, 1, 0), (1, 0, 1, 0)])
def test_pools_whose_sides_differ(padding: tuple[int, int, int, int]) -> None:
    writer = Writer(4)
    x = writer.codes_input(7, 9, 5)
    pooled = writer.max_pool(x, (3, 2), (1, 2), padding)
    program, inputs = writer.program(pooled, writer.avg_pool(pooled, (2, 3), (2, 1))), writer.batch(2)
    assert_same_bytes(CpuExecutor(program)(*inputs), ReferenceExecutor(program)(*inputs))


def test_any_batch_on_one_executor() -> None:
    program, _ = random_network(3)
    executor, reference = CpuExecutor(program), ReferenceExecutor(program)
    x = torch.randn(5, *program.values[program.inputs[0]].shape, generator=torch.Generator().manual_seed(0))
    for size in (1, 5, 2):
        assert_same_bytes(executor(x[:size]), reference(x[:size]))
    # A strided input and one of images in channels_last.
    assert_same_bytes(executor(x[::2]), reference(x[::2]))
    assert_same_bytes(executor(x.contiguous(memory_format=torch.channels_last)), reference(x))


def test_linear_layers_over_rows() -> None:
    writer = Writer(1)
    x = writer.quantize(writer.float_input(5, 7))
    hidden = writer.conv(x, 19)
    y = writer.conv(hidden, 6, float_rank=2)
    program, inputs = writer.program(y, writer.dequantize(hidden, rank=2)), writer.batch(3)
    got = CpuExecutor(program)(*inputs)
    assert got[0].shape == (3, 5, 6)
    assert_same_bytes(got, ReferenceExecutor(program)(*inputs))


def test_one_region_where_all_is_integer() -> None:
    program, _ = random_network(0)
    assert len(CpuExecutor(program).regions) == 1


def test_float_ops_between_regions() -> None:
    writer = Writer(5)
    image = writer.float_input(3, 6, 6)
    x = writer.conv(writer.quantize(image), 8, (3, 3), padding=(1, 1, 1, 1))
    side = writer.conv(x, 4)
    middle = writer.aten(writer.dequantize(x), "clamp", {"low": -1.0, "high": 0.5})
    y = writer.add(writer.conv(writer.quantize(middle), 4), side)
    program, inputs = writer.program(y, middle, writer.dequantize(side)), writer.batch(2)
    executor = CpuExecutor(program, threads=2)
    # The side branch belongs to the first region, whatever its place in the list.
    assert [region.engine is None for region in executor.regions] == [False, True, False]
    assert_same_bytes(executor(*inputs), ReferenceExecutor(program)(*inputs))


def test_a_float_op_may_give_a_view() -> None:
    """The engine reads raw memory: a transposed image has to be copied first."""
    writer = Writer(6)
    image = writer.float_input(3, 6, 6)
    turn = {"target": "aten.permute.default", "args": [{"input": 0}, [0, 1, 3, 2]], "kwargs": {}}
    y = writer.quantize(writer.aten(image, "aten", turn))
    program, inputs = writer.program(y), writer.batch(2)
    assert_same_bytes(CpuExecutor(program)(*inputs), ReferenceExecutor(program)(*inputs))


def test_an_input_may_be_a_lazy_negative() -> None:
    """Its memory holds the values with the other sign."""
    program, inputs, want = network(2)
    negative = [torch._neg_view(-x) for x in inputs]
    assert all(x.is_neg() for x in negative)
    assert_same_bytes(CpuExecutor(program)(*negative), want)


# ------------------------------------------------------------------------------------------ threads and forks
def test_concurrent_callers_get_the_same_bytes() -> None:
    program, inputs, want = network(2)
    executor = CpuExecutor(program, threads=2)
    wrong: list[int] = []

    def call() -> None:
        for _ in range(20):
            try:
                assert_same_bytes(executor(*inputs), want)
            except AssertionError:
                wrong.append(1)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_runs_after_a_fork() -> None:
    program, inputs, want = network(1)
    executor = CpuExecutor(program, threads=2)
    executor(*inputs)
    child = os.fork()
    if child == 0:
        # The engine alone: torch's own pool does not promise to survive a fork.
        try:
            assert_same_bytes(executor(*inputs), want)
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


# -------------------------------------------------------------------------------------------------- bad input
def test_bad_inputs() -> None:
    program, inputs, _ = network(0)
    executor, x = CpuExecutor(program), inputs[0]
    with pytest.raises(ShapeError, match="takes 1 inputs"):
        executor(x, x)
    with pytest.raises(DTypeError, match=r"torch\.float64"):
        executor(x.double())
    with pytest.raises(DTypeError, match="ndarray"):
        executor(x.numpy())  # type: ignore[arg-type]
    with pytest.raises(DTypeError, match="on meta"):
        executor(x.to("meta"))
    with pytest.raises(ShapeError, match=r"takes \[B, "):
        executor(x[:, :, 1:])
    with pytest.raises(ShapeError, match=r"takes \[B, "):
        executor(x[0])
    with pytest.raises(ShapeError, match="empty batch"):
        executor(x[:0])


def test_instruction_sets_come_best_first_and_the_best_is_the_default() -> None:
    best_first = ("amx", "avx512", "avx_vnni", "avx2", "portable")
    assert [isa for isa in best_first if isa in ISAS] == ISAS and ISAS[-1] == "portable"
    program, _, _ = network(0)
    engine = [load(program, program.ops, program.inputs, program.outputs, isa) for isa in ("auto", *ISAS)]
    assert [one.isa for one in engine] == [ISAS[0], *ISAS]


def test_bad_executors() -> None:
    program, _, _ = network(0)
    with pytest.raises(BackendError, match="instruction set 'sse9'"):
        CpuExecutor(program, isa="sse9")
    with pytest.raises(BackendError, match="threads=0"):
        CpuExecutor(program, threads=0)


def altered(program: Program, index: int, **attributes: object) -> Program:
    op = program.ops[index]
    ops = list(program.ops)
    ops[index] = dataclasses.replace(op, attributes={**op.attributes, **attributes})
    return dataclasses.replace(program, ops=tuple(ops))


def test_programs_that_do_not_fit_together() -> None:
    program, _, _ = network(0)
    with pytest.raises(ShapeError, match="declared"):
        CpuExecutor(altered(program, 1, padding=(0, 0, 0, 0)))
    with pytest.raises(BackendError, match="x_zero=300"):
        CpuExecutor(altered(program, 1, x_zero=300))
    with pytest.raises(ShapeError, match="groups=7"):
        CpuExecutor(altered(program, 1, groups=7))
    name = program.ops[0].output
    wrong = {**program.values, name: Value("codes", (3, *program.values[name].shape[1:]))}
    with pytest.raises(ShapeError, match="declared"):
        CpuExecutor(dataclasses.replace(program, values=wrong))
    ops = list(program.ops)
    ops[1] = dataclasses.replace(
        ops[1], tensors={**ops[1].tensors, "bias": ops[1].tensors["bias"] * float("nan")}
    )
    with pytest.raises(BackendError, match="not finite"):
        CpuExecutor(dataclasses.replace(program, ops=tuple(ops)))
    ops[1] = dataclasses.replace(program.ops[1], kind="deconv")
    with pytest.raises(BackendError, match="'deconv'"):
        CpuExecutor(dataclasses.replace(program, ops=tuple(ops)))


def test_a_value_padded_with_two_zero_points_is_refused() -> None:
    writer = Writer(0)
    x = writer.codes_input(4, 4, 3)
    a = writer.conv(x, 3, (3, 3), padding=(1, 1, 1, 1), x_zero=1)
    b = writer.conv(x, 3, (3, 3), padding=(1, 1, 1, 1), x_zero=2)
    with pytest.raises(BackendError, match="two different zero points"):
        CpuExecutor(writer.program(a, b))


def test_sums_that_could_leave_int32_are_refused() -> None:
    writer = Writer(0)
    x = writer.codes_input(1, 1, 70000)
    y = writer.conv(x, 1, float_rank=1, x_zero=0)
    with pytest.raises(BackendError, match="K=70000"):
        CpuExecutor(writer.program(y))


def test_a_weight_that_leaves_int8_without_its_zero_point_is_refused() -> None:
    writer = Writer(0)
    program = writer.program(writer.conv(writer.codes_input(1, 1, 2), 2, float_rank=1, x_zero=3))
    inputs = writer.batch(2)

    def zeros(*zero: int) -> Program:
        tensors = {**program.ops[0].tensors, "weight_zero": torch.tensor(zero, dtype=torch.int32),
                   "weight": pack(torch.tensor([[0, 127], [0, 255]]), 8)}  # fmt: skip
        conv = dataclasses.replace(program.ops[0], tensors=tensors)
        return altered(dataclasses.replace(program, ops=(conv,)), 0, weight_signed=False)

    for zero in (127, 129):  # one step too far at either end
        with pytest.raises(BackendError, match=r"'conv0' has weights .* row 1"):
            CpuExecutor(zeros(0, zero))
    assert_same_bytes(CpuExecutor(zeros(0, 128))(*inputs), ReferenceExecutor(zeros(0, 128))(*inputs))


def test_a_pool_window_of_padding_only_is_refused() -> None:
    for side in range(4):
        writer = Writer(0)
        x = writer.codes_input(4, 4, 3)
        y = writer.max_pool(x, (2, 2), (2, 2), tuple(2 * (i == side) for i in range(4)))
        with pytest.raises(ShapeError, match="padding only"):
            CpuExecutor(writer.program(y))
