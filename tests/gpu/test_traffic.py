"""Bytes by address arithmetic are those that the emulator sees the compiled kernels move."""

import numpy as np
import pytest

pytest.importorskip("triton", reason="pip install 'pyquant-engine[gpu]'")
from pyquant.kernels import conv_s8, shipped

from bench.compiled import Artefact, Product
from bench.machine_code import Kernel
from bench.traffic import work
from tests.gpu.emulator import run

M, N = 17, 80
NOTHING = Kernel("none", "sm_80", 0, 0, 0, 0, {}, {})


def gemm_s8(k):
    """Arguments of the kernel, results last but for the sizes."""
    factors = [np.zeros(N, np.float32), np.zeros(N, np.float32), np.zeros(N, np.int32)]
    operands = [np.zeros((M, k), np.uint8), np.zeros((N, k), np.int8)]
    return [*operands, *factors, np.zeros((M, N), np.uint8), M, N, k, 0.0, 0.0, 255.0]


def gemm_w4a8(k):
    """One scale a row, so that none is loaded in the loop."""
    operands = [np.zeros((M, k), np.int8), np.zeros((k // 128, N, 64), np.uint8)]
    factors = [np.zeros((1, N), np.float32), np.zeros(M, np.float32)]
    return [*operands, *factors, np.zeros((M, N), np.float32), M, N, k, 1]


@pytest.mark.parametrize(
    ("arguments", "case", "result_bytes"),
    [(gemm_s8, "M1", 1), (gemm_w4a8, "M1-row", 4)],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_bytes_of_products(arguments, case, result_bytes):
    """Ragged rows, two tiles down, three across.

    Several threads load the same factor of the epilogue, which arithmetic counts once a block: so totals may differ by these, but
    what grows with K may not differ at all.
    """
    name = arguments.__name__
    one = next((one for one in shipped.shipped("sm_80") if (one.kernel, one.case) == (name, case)), None)
    if one is None:
        pytest.skip(f"no {name} ships")
    binary, size = shipped.compile(one, "sm_80"), dict(one.constants)
    down, across = -(-M // size["BLOCK_M"]), -(-N // size["BLOCK_N"])
    assert down > 1 and across > 1
    found, expected = {}, {}
    for k in (256, 768):
        report = run(
            binary.ptx,
            binary.entry,
            down * across,
            binary.threads,
            arguments(k),
            dynamic_shared=binary.shared,
        )
        assert report.stored == M * N * result_bytes
        found[k] = report.loaded + report.stored
        expected[k] = work(
            Artefact(
                "triton", name, f"{name}_kernel", case, "sm_80", NOTHING, 0, 0, 0, Product(M, N, k), size
            )
        )
    assert found[768] - found[256] == expected[768].bytes - expected[256].bytes
    assert expected[256].bytes_minimum < expected[256].bytes <= found[256]


def test_bytes_of_a_small_convolution():
    """By hand: of 4 x 4 pixels, 3 x 3 with padding 1 sees 10 rows and 10 columns in all, and every pixel at least once."""
    shape = conv_s8.Description(1, 4, 4, 32, 64, (3, 3), padding=(1, 1, 1, 1))
    tile = {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 32}
    found = work(Artefact("triton", "conv_s8", "conv_s8_kernel", "", "sm_80", NOTHING, 0, 0, 0, shape, tile))
    factors, results = 12 * 64, 16 * 64
    assert found.bytes == 2 * 10 * 10 * 32 + 64 * 9 * 32 + factors + results
    assert found.bytes_minimum == 16 * 32 + 64 * 9 * 32 + factors + results
    assert found.operations == 2 * 16 * 64 * 9 * 32
    # Two tiles of ten rows: the four rows too many read the first pixel again, of which four taps lie inside.
    lower = {**tile, "BLOCK_M": 10}
    found = work(Artefact("triton", "conv_s8", "conv_s8_kernel", "", "sm_80", NOTHING, 0, 0, 0, shape, lower))
    assert found.bytes == 2 * (100 + 4 * 4) * 32 + 2 * (64 * 9 * 32 + factors) + results
