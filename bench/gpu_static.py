"""GPU kernels as they are compiled, target by target: counted figures and lower bounds. No GPU is needed, and nothing is timed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import version

from rich.table import Table

from bench.compiled import Artefact, artefacts, missing_fatbin, missing_triton
from bench.occupancy import GFX942, MULTIPROCESSORS
from bench.record import Row, commit, now
from bench.roofline import bound_us, devices
from bench.traffic import work
from pyquant.errors import BackendError

TARGETS = (*MULTIPROCESSORS, GFX942)
COUNTED = (
    "counted, never run on a GPU. Registers, shared memory, spills and the tensor-core instructions of the main loop are the machine "
    "code's; bytes and operations are found by address arithmetic, which the tests hold to the counts of the PTX emulator. "
    "Microseconds are lower BOUNDS from published peaks, no prediction and no measurement"
)
NUMBERS = (
    "registers",
    "shared",
    "blocks",
    "spills",
    "tensor_share",
    "bytes",
    "bytes_minimum",
    "operations",
    "operations_minimum",
)


def rows(threads: Sequence[int], quick: bool, peers: bool) -> Iterator[Row]:
    """A row a kernel and target; quick: sm_80 only. There is nothing to run, so threads and peers are of no account.

    Raises:
        BackendError: there is neither a Triton nor a fatbin.
    """
    why = (missing_triton(), missing_fatbin())
    if None not in why:
        raise BackendError(f"nothing to read: {why[0]}; {why[1]}.")
    for target in TARGETS[:1] if quick else TARGETS:
        for artefact in artefacts(target):
            yield row(artefact)


def row(artefact: Artefact) -> Row:
    """The figures of one kernel."""
    done = work(artefact)
    share = artefact.code.tensor_share
    bounds = {
        device.name: bound_us(device, done.bytes_minimum, done.operations_minimum, done.kind)
        for device in devices(artefact.target)
    }
    return {
        "case": artefact.case,
        "backend": artefact.backend,
        "kernel": artefact.kernel,
        "target": artefact.target,
        "registers": artefact.code.registers,
        "shared": artefact.shared,
        "blocks": artefact.blocks,
        "spills": artefact.code.spills,
        "tensor_share": None if share is None else round(share, 4),
        "bytes": done.bytes,
        "bytes_minimum": done.bytes_minimum,
        "operations": done.operations,
        "operations_minimum": done.operations_minimum,
        "lower_bound_us": bounds,
    }


def built() -> Row:
    """Of what commit, when, and by which Triton: what stands in a row instead of the machine of a suite that times."""
    found = None if missing_triton() is not None else version("triton")
    return {"triton": found, "commit": commit(), "date": now()}


def table(found: Sequence[Row]) -> Table:
    """The rows as a table whose header says what its figures are not."""
    shown = Table(title=f"GPU kernels as compiled, commit {found[0]['commit']}: {COUNTED}")
    names = ("kernel", "target", "case")
    for name in names:
        shown.add_column(name, no_wrap=True)
    for name in NUMBERS:
        shown.add_column(name.replace("_", " "), justify="right")
    shown.add_column("lower bound, us", justify="right", no_wrap=True)
    for line in found:
        bounds = ", ".join(f"{name} {us:,.1f}" for name, us in line["lower_bound_us"].items())
        shown.add_row(*(str(line[name]) for name in names), *(_cell(line[name]) for name in NUMBERS), bounds)
    return shown


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1%}" if isinstance(value, float) else f"{value:,}"
