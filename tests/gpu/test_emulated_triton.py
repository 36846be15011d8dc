"""Every Triton kernel's PTX, run: the bodies that check the kernels in Triton's interpreter check what it compiles for sm_80.

Integers are the reference's bytes, floats lie within their bounds, bfloat16 too, which the interpreter cannot round. Slow: all cases
under random orders of warps, every tile of the tables, and instruction coverage.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed; pip install 'pyquant-engine[gpu]'", allow_module_level=True)

from pyquant.kernels import shipped

from tests.gpu import interpreter
from tests.gpu.emulated_triton import TARGET, EmulatedTriton
from tests.gpu.emulator import Report

# Of the interpreter's bodies, those of kernels; the others have none of their own.
NAMES = [
    path.stem
    for path in sorted(Path(interpreter.__file__).parent.glob("[!_]*.py"))
    if path.stem not in ("guarded", "dispatch", "programs", "tuning")
]
TILED = [name for name in NAMES if name in {module.__name__.rsplit(".", 1)[1] for module in shipped.TILED}]


def checks(name: str) -> ModuleType:
    """The bodies of one kernel."""
    return importlib.import_module(f"tests.gpu.interpreter.{name}")


def cases(name: str) -> dict[str, dict[str, Any]]:
    """Those of the interpreter, and those that it cannot run."""
    module = checks(name)
    return {**module.CASES, **getattr(module, "ON_A_GPU", {})}


def ragged(name: str) -> list[str]:
    """A few of a kernel's cases, from both ends of its list."""
    names = list(cases(name))
    return [names[1], names[-1]]


@pytest.fixture
def triton_on_emulator() -> Iterator[EmulatedTriton]:
    with EmulatedTriton().on(*shipped.MODULES) as emulated:
        yield emulated


def run(emulated: EmulatedTriton, name: str, case: str, seed: int = 0) -> None:
    emulated.seed = seed
    checks(name).check("cpu", **cases(name)[case])
    assert emulated.reports, "nothing was launched"


@pytest.mark.parametrize(("name", "case"), [(name, case) for name in NAMES for case in ragged(name)])
def test_ragged_cases(triton_on_emulator: EmulatedTriton, name: str, case: str) -> None:
    run(triton_on_emulator, name, case)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "case"), [(name, case) for name in NAMES for case in cases(name)])
def test_all_cases_in_any_order(triton_on_emulator: EmulatedTriton, name: str, case: str) -> None:
    for seed in (0, 1):
        run(triton_on_emulator, name, case, seed)


def unreached(reports: dict[str, Report]) -> tuple[float, str]:
    """Share of the instructions that ran, of all programs together, and the ones that did not."""
    total = sum(len(report.executed) for report in reports.values())
    missed = [(key, one) for key, report in reports.items() for one in report.missed()]
    return 1 - len(missed) / total, "\n".join(f"{key}, line {one.line}: {one.text}" for key, one in missed)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_cases_reach_the_instructions(
    triton_on_emulator: EmulatedTriton, name: str, tell: Callable[[str], None]
) -> None:
    for case in cases(name):
        run(triton_on_emulator, name, case)
    share, missed = unreached(triton_on_emulator.reports)
    tell(
        f"{name} (Triton): {share:.1%} of the instructions of {len(triton_on_emulator.reports)} programs ran"
    )
    assert share > 0.9, missed


@pytest.mark.slow
@pytest.mark.parametrize("name", TILED)
def test_every_tile_of_the_table(triton_on_emulator: EmulatedTriton, name: str) -> None:
    """Two ragged cases on each; and no worse than two-way bank conflicts where matrices are loaded."""
    module = importlib.import_module(f"pyquant.kernels.{name}")
    for tile in module.TILES[TARGET]:
        # Forced past what the choice leaves out for a case; gemm_w4a16 leaves nothing out of a table of one.
        if hasattr(module, "largest_that_fills"):
            forced = mock.patch.object(module, "largest_that_fills", lambda *given, tile=tile: tile)
        else:
            forced = mock.patch.dict(module.TILES, {TARGET: (tile,)})
        with forced:
            for case in ragged(name):
                run(triton_on_emulator, name, case)
    for key, report in triton_on_emulator.reports.items():
        conflicts = report.conflicts_of("ldmatrix", "cp.async")
        assert max(conflicts.values(), default=1) <= 2, (key, conflicts)
