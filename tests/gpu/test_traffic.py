"""Bytes by address arithmetic are those that the emulator sees the compiled kernels move."""

import numpy as np
import pytest

pytest.importorskip("triton", reason="pip install 'pyquant-engine[gpu]'")
from pyquant.kernels import shipped

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
