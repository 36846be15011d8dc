"""Faults put into the kernels' PTX are seen: dropped barriers, short waits, swapped fragments, shifted bounds, lost signs and more.

Slow. Each kernel's mutants are a seeded sample of all kinds of fault, tried on ragged shapes and on K of less than the pipeline.
All have to be caught but for those that change nothing, by a proof (harmless.py) or, of lost signs, by what a trap saw.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from unittest import mock

import pytest

from tests.gpu.emulated_cuda import KERNEL, NVCC, EmulatedGpu, compile_ptx
from tests.gpu.emulator import together
from tests.gpu.emulator.meaning import Meaning
from tests.gpu.emulator.mutate import Mutant, Outcome, Trial, judge, propose, sample
from tests.gpu.emulator.source import alone, read
from tests.gpu.harmless import Proofs

pytestmark = pytest.mark.slow
DRAWN = 100  # mutants of a kernel, beside those of all its barriers and waits
# Judged by all their bodies in test_emulated_cuda.py.
CUDA = (
    "gemm_s8_codes_16x128",
    "gemm_w4a8_signed_group_16x128",
    "gemm_w4a4_signed_group64_64x128",
    "gemm_w4a16_f16_16x128",
)
# Of Triton's kernel: every two rows and every 16 columns of a tile the last, K of one step to five, which end in most chunks.
TRITON_SHAPES = (
    (17, 65, 96),
    (33, 31, 288),
    (3, 130, 608),
    (5, 41, 176),
    (23, 57, 144),
    (9, 99, 304),
    (11, 121, 352),
    (29, 35, 448),
    (15, 47, 496),
)
# Its bounds that may be off by one, by what they compare, and why. K is a multiple of 16 in this program, and 1 at the least.
TRITON_BOUNDS = {
    "setp.lt.s32 add(k, 127), 128": "K is never 1, so there is a step or there is none either way",
    "setp.gt.s32 add(k, 127), 127": "K is never 0",
    "setp.gt.s32 add(k, 127), 255": "copies of a step behind the last, of which the masks of K leave no bytes",
}


def why_in_triton(ptx: str, entry: str) -> Callable[[Mutant], str | None]:
    """What says why a fault in Triton's kernel changes nothing."""
    kernel = read(ptx, entry)
    meaning = Meaning(kernel, ("x", "weight", "multiplier", "bias", "correction", "y", "m", "n", "k"))
    at = {one.line: meaning.text(one) for one in kernel.instructions}
    return lambda mutant: TRITON_BOUNDS.get(at[mutant.line]) if mutant.kind == "bound shifted" else None


def verdict(ptx: str, entry: str, trials: list[Trial], why: Callable[[Mutant], str | None]) -> Outcome:
    """Judge a sample of the mutants of the instructions that some trial runs."""
    lines = together(trial.report for trial in trials).lines
    found = propose(ptx, entry, lambda instruction: lines[instruction.line] > 0)
    return judge(ptx, sample(found, DRAWN, seed=1), trials, why)


def assert_caught(outcome: Outcome) -> None:
    """All that change anything, and no proof that a trial refutes."""
    assert not outcome.survivors, str(outcome)
    assert not outcome.disproved, "\n".join(map(str, outcome.disproved))


@pytest.fixture(scope="module")
def ptx(tmp_path_factory: pytest.TempPathFactory) -> str:
    if NVCC is None:
        pytest.skip("nvcc is not on PATH: nothing writes the CUDA kernels' PTX")
    return compile_ptx(tmp_path_factory.mktemp("ptx"))


@pytest.mark.parametrize("entry", CUDA)
def test_faults_in_cuda_kernels_are_seen(ptx: str, entry: str, tell: Callable[[str], None]) -> None:
    from tests.gpu.test_emulated_cuda import bodies

    text = alone(ptx, entry)

    def trial(body: Callable[[EmulatedGpu], None]) -> Trial:
        gpu = EmulatedGpu(ptx, {entry: text})
        body(gpu)
        return Trial(lambda mutant: body(EmulatedGpu(ptx, {entry: mutant})), gpu.reports[entry])

    trials = [trial(body) for body in bodies(KERNEL[entry]).values()]
    outcome = verdict(text, entry, trials, Proofs(text, entry).why)
    tell(f"{entry}: {outcome}")
    assert_caught(outcome)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_faults_in_a_triton_kernel_are_seen(tell: Callable[[str], None]) -> None:
    from pyquant.kernels import gemm_s8

    from tests.gpu.emulated_triton import EmulatedTriton
    from tests.gpu.interpreter.gemm_s8 import check

    emulated = EmulatedTriton()

    def run(m: int, n: int, k: int, text: str | None = None) -> None:
        emulated.reports = {}
        emulated.replaced = {} if text is None else {next(iter(emulated.programs)): text}
        tile = mock.patch.object(gemm_s8, "largest_that_fills", lambda *given: gemm_s8.TILES["sm_80"][-2])
        with emulated.on(gemm_s8), tile:
            check("cpu", m=m, n=n, k=k)

    def trial(m: int, n: int, k: int) -> Trial:
        run(m, n, k)
        [report] = emulated.reports.values()
        return Trial(lambda mutant: run(m, n, k, mutant), report)

    trials = [trial(*shape) for shape in TRITON_SHAPES]
    [program] = emulated.programs.values()
    outcome = verdict(program.ptx, program.entry, trials, why_in_triton(program.ptx, program.entry))
    tell(f"gemm_s8 (Triton): {outcome}")
    assert_caught(outcome)
