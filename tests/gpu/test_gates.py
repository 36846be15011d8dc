"""Every kernel that ships, compiled for every target, holds to the gates; and a kernel that does not is caught."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest

from bench import compiled
from bench.compiled import Artefact, Product, cuda_artefacts, missing_fatbin, missing_triton, triton_artefacts
from bench.machine_code import Kernel
from bench.occupancy import GFX942, MULTIPROCESSORS
from bench.traffic import work
from tests.gpu.gates import GATES, SHARED, kind_of, launches, spills, tensor_cores, tensor_share, wide_loads

FAST = "sm_80"
TARGETS = (*MULTIPROCESSORS, GFX942)


@cache
def triton_kernels(target: str) -> list[Artefact]:
    return list(triton_artefacts(target))


@cache
def first_triton_kernels(target: str) -> list[Artefact]:
    """The first case of each kernel, which is the one with the largest tile."""
    return list(triton_artefacts(target, first=True))


@cache
def cuda_kernels(target: str) -> list[Artefact]:
    return list(cuda_artefacts(target))


def complaints(gate: str, artefacts: list[Artefact]) -> Iterator[str]:
    assert artefacts, "nothing ships"
    return filter(None, map(GATES[gate], artefacts))


@pytest.mark.parametrize("gate", GATES)
def test_triton_kernels_of_one_target(gate):
    if missing_triton() is not None:
        pytest.skip(str(missing_triton()))
    assert "\n".join(complaints(gate, first_triton_kernels(FAST))) == ""


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("gate", GATES)
def test_triton_kernels(gate, target):
    """Compiling all that ships for a target takes a minute or more, the first time."""
    if missing_triton() is not None:
        pytest.skip(str(missing_triton()))
    assert "\n".join(complaints(gate, triton_kernels(target))) == ""


@pytest.mark.parametrize("target", MULTIPROCESSORS)
@pytest.mark.parametrize("gate", GATES)
def test_cuda_kernels(gate, target):
    if missing_fatbin() is not None:
        pytest.skip(str(missing_fatbin()))
    assert "\n".join(complaints(gate, cuda_kernels(target))) == ""


CODE = Kernel(
    "gemm_s8_kernel",
    "sm_80",
    250,
    0,
    0,
    0,
    {"IMMA.16832.S8.S8.SAT": 64, "LDGSTS.E.BYPASS.128": 24, "EXIT": 1},
    {"IMMA.16832.S8.S8.SAT": 64, "LDGSTS.E.BYPASS.128": 12, "LDSM.16.M88.4": 24, "IADD3": 60},
)
LARGE, FLAT = Product(4096, 4096, 4096), Product(16, 4096, 4096)
GOOD = Artefact(
    "triton", "gemm_s8", "gemm_s8_kernel", "M4096", "sm_80", CODE, 256, 98_304, 0, LARGE,
    {"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 128},
)  # fmt: skip


def with_code(artefact: Artefact = GOOD, **changed) -> Artefact:
    return replace(artefact, code=replace(artefact.code, **changed))


def loop(**counts: int) -> dict[str, int]:
    return {**CODE.loop, **{opcode.replace("_", "."): count for opcode, count in counts.items()}}


def test_a_good_kernel_passes_every_gate():
    assert [gate(GOOD) for gate in GATES.values()] == [None] * len(GATES)


def test_spills_and_stack_are_caught():
    assert "2 spills, 0 bytes" in spills(with_code(spills=2))
    assert "0 spills, 8 bytes of stack" in spills(with_code(stack=8))


@pytest.mark.parametrize("target", SHARED)
def test_a_block_too_large_is_caught(target):
    most = replace(with_code(registers=200), target=target, shared=SHARED[target])
    assert launches(most) is None
    assert "bytes of shared memory" in launches(replace(most, shared=SHARED[target] + 1))


def test_too_many_registers_are_caught():
    assert launches(with_code(replace(GOOD, threads=1024), registers=64)) is None
    assert "1024 threads of 65 registers do not fit" in launches(
        with_code(replace(GOOD, threads=1024), registers=65)
    )


def test_99_kib_is_the_limit_of_small_chips():
    assert "163840 bytes of shared memory, of 101376" in launches(
        replace(GOOD, target="sm_86", shared=163_840)
    )
    assert launches(replace(GOOD, target="sm_80", shared=163_840)) is None


@pytest.mark.parametrize(
    ("op", "target", "backend", "rows", "opcode", "passes"),
    [
        ("gemm_s8", "sm_80", "triton", 128, "IMMA.16832.S8.S8.SAT", True),
        ("gemm_s8_float", "sm_80", "cuda", 128, "IMMA.16832.U8.S8", True),
        ("gemm_s8", "sm_80", "triton", 128, "HMMA.16816.F32", False),
        ("gemm_s8", "sm_80", "triton", 128, "IDP.4A.S8.S8", False),
        ("gemm_w4a4", "sm_89", "cuda", 128, "IMMA.16864.S4.S4", True),
        ("gemm_w4a4", "sm_89", "cuda", 128, "IMMA.16832.S8.S8", False),
        ("gemm_w4a8", "sm_90", "triton", 128, "IGMMA.64x128x32.S8.S8", True),
        ("gemm_w4a8", "sm_90", "triton", 64, "IMMA.16832.S8.S8", False),
        ("gemm_w4a8", "sm_90", "triton", 32, "IMMA.16832.S8.S8", True),
        ("gemm_w4a8", "sm_90", "cuda", 128, "IMMA.16832.S8.S8", True),
        ("conv_s8", "sm_100", "triton", 128, "UTCIMMA", True),
        ("conv_s8", "sm_100", "triton", 128, "UTCHMMA", False),
        ("gemm_w4a16", "sm_120", "triton", 64, "HMMA.16816.F32", True),
        ("gemm_w4a16", "sm_90", "triton", 64, "HGMMA.64x128x16.F32", True),
        ("gemm_w4a16", "sm_100", "triton", 16, "HMMA.16816.F32", True),
        ("gemm_w4a16", "sm_80", "triton", 64, "HMMA.1688.F32.TF32", False),
        ("gemm_s8", "gfx942", "triton", 64, "v_mfma_i32_32x32x16_i8", True),
        ("gemm_s8", "gfx942", "triton", 64, "v_mfma_f32_32x32x8_f16", False),
        ("fake_quantize", "sm_80", "triton", 0, "FMUL", True),
        ("fake_quantize", "sm_80", "triton", 0, "HMMA.16816.F32", False),
    ],
)
def test_the_wrong_tensor_cores_are_caught(op, target, backend, rows, opcode, passes):
    found = replace(
        with_code(opcodes={opcode: 4}), op=op, target=target, backend=backend, constants={"BLOCK_M": rows}
    )
    assert (tensor_cores(found) is None) == passes
    mixed = with_code(found, opcodes={opcode: 4, "DMMA.884": 1})
    assert tensor_cores(mixed) is not None


def test_a_group_of_32_takes_the_int4_instruction_of_32():
    small = replace(GOOD, op="gemm_w4a4", backend="cuda", description=Product(4096, 4096, 4096, 32))
    assert tensor_cores(with_code(small, opcodes={"IMMA.16832.U4.S4": 1})) is None
    assert tensor_cores(with_code(small, opcodes={"IMMA.16832.S8.S8": 1})) is not None
    large = replace(small, description=Product(4096, 4096, 4096, 64))
    assert tensor_cores(with_code(large, opcodes={"IMMA.16832.U4.S4": 1})) is not None


def test_an_op_that_no_gate_knows_is_an_error():
    with pytest.raises(AssertionError, match="no gate knows the op gemm_s2"):
        tensor_cores(replace(GOOD, op="gemm_s2"))


def test_narrow_loads_are_caught():
    assert wide_loads(with_code(loop={"LDGSTS.E.BYPASS.128": 24})) is None, "two steps in a loop"
    assert "{4: 1, 16: 12}, a step's operands need {16: 12}" in wide_loads(with_code(loop=loop(LDG_E=1)))
    assert wide_loads(with_code(loop={"IMMA.16832.S8.S8": 1})) is not None
    assert wide_loads(with_code(loop={"LDG.E.128": 12})) is not None, "not by a copy"
    assert wide_loads(with_code(loop={"LDGSTS.E.BYPASS.128": 11})) is not None
    assert wide_loads(with_code(loop={"LDGSTS.E.BYPASS.128": 4, "LDGSTS.E.64": 16})) is not None
    # Rows of a length that 16 does not divide are loaded byte by byte.
    ragged = replace(GOOD, description=Product(197, 1001, 2047))
    assert wide_loads(with_code(ragged, loop=loop(LDG_E_U8=90))) is None


# Two warps, 16 x 32 x 64: a step has 1024 bytes of 4-bit codes, and twice 512 of 8-bit rows.
SMALL = replace(
    with_code(loop={"LDGSTS.E.BYPASS.128": 1, "LDGSTS.E.64": 2}),
    op="gemm_w4a8",
    threads=64,
    description=Product(1, 4096, 4096, 32),
    constants={"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 64},
)


def test_scales_may_be_narrow_and_few_rows_too():
    assert wide_loads(SMALL) is None
    with_scales = with_code(SMALL, loop={**SMALL.code.loop, "LDG.E": 8, "LDG.E.U16": 8})
    assert wide_loads(with_scales) is None
    assert wide_loads(replace(with_scales, op="gemm_s8")) is not None, "it has no scales"
    assert wide_loads(replace(SMALL, description=Product(17, 4096, 4096, 32))) is not None, "not few"


@pytest.mark.parametrize(
    "loads",
    [
        {"LDGSTS.E.64": 4},
        {"LDGSTS.E.64": 2, "LDG.E.128": 1},
        {"LDGSTS.E.BYPASS.128": 1, "LDGSTS.E.64": 4},
        {"LDGSTS.E.BYPASS.128": 1, "LDG.E.64": 2},
        {"LDGSTS.E.BYPASS.128": 2, "LDGSTS.E.64": 2},
    ],
)
def test_no_excuse_lets_narrow_weights_pass(loads):
    assert wide_loads(with_code(SMALL, loop=loads)) is not None


def test_weights_too_short_for_a_load_a_thread_are_caught():
    """Four warps: 8 bytes of the weight for each thread, and 4 of each stretch of x."""
    four = replace(SMALL, threads=128)
    assert wide_loads(with_code(four, loop={"LDGSTS.E.64": 1, "LDGSTS.E": 2})) is not None


def on_amd(artefact: Artefact = SMALL, **counts: int) -> str | None:
    """What the gate says of a loop of two steps of SMALL, each of four products of 16 x 16 x 32 a wave."""
    code = {"v_mfma_i32_16x16x32_i8": 8, **counts}
    return wide_loads(with_code(replace(artefact, target="gfx942"), loop=code))


def test_loads_of_amd_are_told_apart_by_their_numbers():
    """No copies there: what a step needs has to be among all loads, the rest has to look like scales."""
    assert on_amd(buffer_load_dwordx4=2, global_load_dwordx2=4) is None
    assert on_amd(buffer_load_dwordx4=1, global_load_dwordx2=2) is not None, "of one step only"
    assert on_amd(buffer_load_dwordx4=4, global_load_dwordx2=4, global_load_dword=4) is None, "with scales"
    assert on_amd(global_load_dwordx4=2, global_load_dwordx2=8) is not None, "weights of 8 bytes"
    plain = replace(SMALL, op="gemm_s8", constants={"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32})
    assert on_amd(plain, global_load_dwordx4=4) is None
    assert on_amd(plain, global_load_dwordx4=4, global_load_dword=1) is not None, "it has no scales"


def test_copies_of_cuda_are_wide_though_some_threads_have_none():
    """16 rows of 64 codes are 1024 bytes for 128 threads."""
    few = replace(
        GOOD,
        backend="cuda",
        threads=128,
        description=FLAT,
        constants={"BLOCK_M": 16, "BLOCK_N": 128, "BLOCK_K": 64},
    )
    assert wide_loads(with_code(few, loop={"LDGSTS.E.BYPASS.128": 5})) is None
    assert wide_loads(with_code(few, loop={"LDGSTS.E.BYPASS.128": 4, "LDGSTS.E.64": 1})) is not None


def test_too_few_tensor_core_instructions_are_caught():
    assert (
        tensor_share(with_code(loop=loop(IADD3=61)))
        == "triton-gemm_s8_kernel-M4096-sm_80: 64 of 161 instructions, 39.8%"
    )
    assert "0 of 0 instructions" in tensor_share(with_code(loop={}))
    grouped = replace(GOOD, op="gemm_w4a4", description=Product(4096, 4096, 4096, 128))
    assert tensor_share(with_code(grouped, loop=loop(IADD3=61))) is None
    assert (
        tensor_share(with_code(replace(GOOD, op="gemm_w4a4", description=LARGE), loop=loop(IADD3=61)))
        is not None
    )
    # Too small for tiles that reach it: 8 x 6 of 128 x 128, where more than 54 would keep half of the multiprocessors busy.
    assert (
        tensor_share(with_code(replace(GOOD, description=Product(1024, 768, 4096)), loop=loop(IADD3=61)))
        is None
    )
    assert tensor_share(with_code(replace(GOOD, description=Product(1024, 896, 4096)), loop=loop(IADD3=61)))
    # Bytes bound a product of few rows, and other chips have no such gate.
    assert tensor_share(with_code(replace(GOOD, description=FLAT), loop=loop(IADD3=61))) is None
    assert tensor_share(with_code(replace(GOOD, target="sm_90"), loop=loop(IADD3=61))) is None


def test_what_a_product_moves():
    """By hand: 32 x 16 tiles of 128 x 256 read 4096 codes for each of their rows and columns, then write theirs."""
    done = work(GOOD)
    assert done.bytes == 32 * 16 * (128 + 256) * 4096 + 32 * 4096 * 12 + 4096 * 4096
    assert done.bytes_minimum == 2 * 4096 * 4096 + 4096 * 12 + 4096 * 4096
    assert done.operations == 2 * 4096**3 and done.kind == "int8"


@pytest.mark.parametrize("target", TARGETS)
def test_what_every_kernel_moves_is_known(target, monkeypatch):
    """Of each that ships, also of those that only the slow tests compile."""
    if missing_triton() is not None:
        pytest.skip(str(missing_triton()))
    read = {"code": vars(CODE), "threads": 128, "shared": 1024, "tensor_columns": 0}
    monkeypatch.setattr(compiled, "_read", lambda one, target, key: read)
    for artefact in triton_artefacts(target):
        done = work(artefact)
        assert done.bytes >= done.bytes_minimum > 0, str(artefact)
        assert (done.operations > 0) == (done.kind is not None) == (kind_of(artefact) is not None), str(
            artefact
        )
