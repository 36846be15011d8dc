"""Products, convolutions and networks on the GPU that is here, beside cuBLAS, cuDNN and torch's int8: cold L2, CUDA graphs, medians.

Everything is compared with the reference on the device before it is timed. What cannot be timed has a row that says why: no kernel
for the architecture, no memory, wrong bytes. See :mod:`bench.gpu_cases` for what is computed, :mod:`bench.gpu_timing` for how.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import TypeVar

import torch

from bench import gpu_networks
from bench.gpu_cases import WRONG, Case, Shape, cases, named, operations, peers, right, shapes, traffic
from bench.gpu_timing import (
    QUICK_ROUNDS,
    ROUNDS,
    Call,
    captured,
    flush_of,
    interleaved,
    repeated,
    timing_of,
)
from bench.record import Row, figures
from bench.timing import Timing
from pyquant.errors import BackendError, PyquantError
from pyquant.ops.backend import Choice, architecture, choose

BACKENDS = ("cuda", "triton")
# What the rows say of the GPU beside what all suites say of a machine.
SOFTWARE = ("cuda", "triton")
Made = TypeVar("Made")
NOTHING = figures(Timing(1.0, 0.0, ""))


def absent() -> str | None:
    """Why there is nothing to time, in one sentence; None if there is a GPU."""
    if torch.cuda.is_available():
        return None
    return "There is no GPU that torch can see, so nothing was timed; on a machine with one, this command measures it."


def here() -> torch.device:
    """The current GPU."""
    return torch.device("cuda", torch.cuda.current_device())


def about(device: torch.device) -> Row:
    """What the rows say of the GPU, in place of the processor's, and of its software."""
    known = torch.cuda.get_device_properties(device)
    return {
        "device": known.name,
        "isa": architecture(device),
        "cores": known.multi_processor_count,
        "cuda": torch.version.cuda or torch.version.hip,
        "triton": version("triton") if find_spec("triton") else None,
    }


def rows(threads: Sequence[int], quick: bool, peers: bool) -> Iterator[Row]:
    """All shapes, then networks; quick: a shape of each kind. The peers are always beside ours.

    Raises:
        BackendError: the GPU does not answer, or no longer.
    """
    device, rounds, said = here(), QUICK_ROUNDS if quick else ROUNDS, set[str]()
    try:
        flush = flush_of(device)
        alone = captured(lambda: None, flush.zero_)
    except failures() as error:
        raise BackendError(f"{device} is there and cannot be used: {_sentence(error)}.") from error
    for shape in shapes(quick):
        yield from shape_rows(shape, device, flush.zero_, alone, rounds, said)
    for name in () if quick else gpu_networks.MODELS:
        yield from network_rows(name, device, rounds)


class Runs:
    """What of one case can be timed, and rows of what cannot.

    Args:
        case: the rows'.
    """

    def __init__(self, case: str) -> None:
        self.case = case
        self.failed: list[Row] = []
        self.samples: dict[str, Call] = {}
        self.kernels: dict[str, str] = {}

    def next(self, given: Iterator[Case]) -> Case | None:
        """The next case; None where there is none, or no memory for it and what would follow."""
        return self._tried("ours", lambda: next(given, None))

    def add(self, backend: str, make: Callable[[], tuple[Call, str]]) -> None:
        """Take a run in if it can be made: ``make`` checks it, and gives a sample of it and its kernel in words."""
        made = self._tried(backend, make)
        if made is not None:
            self.samples[backend], self.kernels[backend] = made

    def _tried(self, backend: str, make: Callable[[], Made]) -> Made | None:
        try:
            return make()
        except failures() as error:
            why = _sentence(error)
        # Only now is nothing held by what was going on.
        self.fail(backend, why)
        _recover()
        return None

    def fail(self, backend: str, why: str) -> None:
        """Have a row that says why there is no figure."""
        self.failed.append(self.row(backend, why=why))

    def row(self, backend: str, found: Row | None = None, why: str | None = None) -> Row:
        """A row with figures, or one without that says why."""
        nothing = {**dict.fromkeys(NOTHING), "peers": {}}
        kernel = self.kernels.get(backend, "")
        return {
            "case": self.case,
            "backend": backend,
            "threads": 1,
            **(found or nothing),
            "kernel": kernel,
            "why": why,
        }

    def timed(
        self, rounds: int, clock: str, alone: Call | None, found: Callable[[str, Timing], Row]
    ) -> Iterator[Row]:
        """Time all against each other; then a row each, and rows of what failed.

        Args:
            alone: what stands between the calls of a sample, without them; None where nothing does.
            found: a row's figures, from its name and time.
        """
        samples, timings = [*([alone] if alone else []), *self.samples.values()], dict[str, Timing]()
        # A replay shows only here what a kernel does wrong now and then; which one did it nobody can tell.
        taken = self._tried("all", lambda: interleaved(samples, rounds))
        if taken is not None:
            empty = taken.pop(0) if alone else [0.0] * rounds
            for name, times in zip(self.samples, taken, strict=True):
                try:
                    timings[name] = timing_of(times, empty, clock)
                except BackendError as error:
                    self.fail(name, _sentence(error))
        others = [name for name in timings if not self.kernels[name]]
        for name, timing in timings.items():
            row = found(name, timing)
            if self.kernels[name]:
                row["peers"] = {other: timings[other].us / timing.us for other in others}
            yield self.row(name, row)
        yield from self.failed


def shape_rows(
    shape: Shape, device: torch.device, flush: Call, alone: Call, rounds: int, said: set[str]
) -> Iterator[Row]:
    """One product or convolution: ours, each right, and the peers, timed against each other.

    Args:
        flush: takes the L2 cache.
        alone: a sample of that.
        said: why a backend does not serve an op; each reason has one row in all, and is added here.
    """
    runs, bits = Runs(named(shape)), {}
    given = cases(shape, device)
    while (case := runs.next(given)) is not None:
        for backend in BACKENDS:
            name = f"{backend}-{case.name}"
            bits[name] = case.bits
            try:
                choice = choose(case.op, device, backend, case.arguments)
            except BackendError as error:
                why = _sentence(error)
                if why not in said:
                    runs.fail(name, why)
                said.add(why)
            else:
                runs.add(name, lambda case=case, choice=choice: ours(case, choice, device, flush))
    for peer in peers(shape, device):
        bits[peer.name] = peer.bits
        runs.add(peer.name, lambda peer=peer: (captured(peer.make(), flush), ""))
    yield from runs.timed(
        rounds,
        "cuda graph",
        alone,
        lambda name, timing: figures(timing, operations(shape), traffic(shape, bits[name])),
    )


def ours(case: Case, choice: Choice, device: torch.device, flush: Call) -> tuple[Call, str]:
    """A sample of what serves a case, and the kernel in words.

    Raises:
        BackendError: it is wrong.
    """
    kernel = str(choice.configuration or choice.backend)
    want = choose(case.op, device, "reference", case.arguments).kernel(*case.arguments)
    if not right(case.op, choice.kernel(*case.arguments), want, case.arguments):
        raise BackendError(f"{kernel}: its result is {WRONG}.")
    del want
    return captured(lambda: choice.kernel(*case.arguments), flush), kernel


def network_rows(name: str, device: torch.device, rounds: int) -> Iterator[Row]:
    """One network at every batch: ours by each backend that serves it, and the float16 network."""
    model, net = gpu_networks.built(name)
    want = net(gpu_networks.batch_of(gpu_networks.CHECKED, torch.device("cpu")))
    count = gpu_networks.operations(net)
    for images in gpu_networks.BATCHES:
        runs, x = Runs(f"{name} batch {images}"), gpu_networks.batch_of(images, device)
        for backend, make in gpu_networks.ours(net, want, x):
            runs.add(backend, lambda make=make: (repeated(make()), "integer program"))
        runs.add("torch-fp16", lambda x=x: (repeated(gpu_networks.half_graph(model, x)), ""))
        yield from runs.timed(
            rounds,
            "cuda events",
            None,
            lambda _, timing, images=images: {
                **figures(timing, count * images),
                "images_per_s": images / timing.us * 1e6,
            },
        )


def failures() -> tuple[type[Exception], ...]:
    """What a driver, torch or Triton raises where something cannot be compiled, loaded or run."""
    try:
        from triton.errors import TritonError
    except ImportError:
        return RuntimeError, PyquantError
    return RuntimeError, PyquantError, TritonError


def _sentence(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU has no memory left for it"
    first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return first if isinstance(error, PyquantError) else f"{type(error).__name__}: {first}"


def _recover() -> None:
    """Give memory back, and see whether the GPU still answers: after a bad access it never does again.

    Raises:
        BackendError: it does not.
    """
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError as error:
        raise BackendError(
            f"the GPU does not answer any more ({_sentence(error)}); what was measured before is kept."
        ) from error
