"""The other engines as a suite sees them: each in a process of its own, built case by case, checked, timed on demand.

An engine that is not installed, cannot do a case or gives wrong results is left out, and why is said once.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import numpy as np
from rich.console import Console

from bench.limits import AMX, available
from bench.record import ROOT

# The same engine in a process to which the system gives no AMX: what it does with AVX-512 alone.
WITHOUT_AMX = "-vnni"
# Peer -> the module that builds its cases, by a function named after the suite.
MODULES = {
    "onednn": "bench.peers.onednn",
    "fbgemm": "bench.peers.fbgemm",
    "onnxruntime": "bench.peers.ort",
    "openvino": "bench.peers.ov",
    "xnnpack": "bench.peers.litert",
    "torch-x86-int8": "bench.peers.torch_x86",
    "torch-int4pack": "bench.peers.int4pack",
}
# They have no code for AMX, so one process shows all.
NEVER_AMX = ("fbgemm",)
# What a peer's function returns: the call to time, and what gives its result after a call.
Built = tuple[Callable[[], Any], Callable[[], Any]]
Check = Callable[[np.ndarray], str | None]


class Away:
    """One built case of a peer; timed where it runs, by the clocks of that process."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def __call__(self) -> None:
        """Run it once."""
        self._worker.ask("seconds", 1, "cpu")

    def calls(self, clock: str) -> int:
        """How many calls fill a sample."""
        return self._worker.ask("calls", clock)

    def seconds(self, calls: int, clock: str) -> float:
        """Time so many calls, after one that is not counted."""
        return self._worker.ask("seconds", calls, clock)


class Worker:
    """The process of one peer.

    Args:
        name: the peer's.
        module: the module that builds its cases.
    """

    def __init__(self, name: str, module: str) -> None:
        ours, theirs = socket.socketpair()
        words = [sys.executable, "-m", "bench.peers.worker", str(theirs.fileno()), module]
        if name.endswith(WITHOUT_AMX):
            words.append("--without-amx")
        self.alive = True
        self._process = subprocess.Popen(
            words, cwd=ROOT, pass_fds=[theirs.fileno()], stdout=subprocess.DEVNULL
        )
        theirs.close()
        self._pipe = Connection(ours.detach())

    def ask(self, *question: Any) -> Any:
        """Send a question, return its answer.

        Raises:
            Refused: the engine cannot, with its words.
        """
        try:
            self._pipe.send(question)
            answered, answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            self.alive = False
            raise Refused(f"its process ended with status {self._process.wait()}") from None
        if not answered:
            raise Refused(answer)
        return answer

    def stop(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.wait()


class Refused(Exception):
    """A peer's reason for not serving a case."""


class Crew:
    """The peers of one run of a suite; a context, which ends their processes.

    Args:
        suite: the suite, and the function of each peer's module.
        names: peers to try. Where this machine has AMX, each is joined by one that may not use it.
        console: where to say who is left out.
    """

    def __init__(self, suite: str, names: tuple[str, ...], console: Console | None = None) -> None:
        both = AMX in available()
        self.suite = suite
        self.names = tuple(
            name + variant
            for name in names
            for variant in (("", WITHOUT_AMX) if both and name not in NEVER_AMX else ("",))
        )
        self._console = console or Console()
        self._workers: dict[str, Worker] = {}
        self._said: set[tuple[str, str]] = set()

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers.values():
            worker.stop()

    def runs(self, case: Mapping[str, Any], threads: int, check: Check) -> dict[str, Away]:
        """Build a case with every peer, and keep those that are right.

        Args:
            case: what the peers' functions take: numbers, names and numpy arrays.
            threads: how many threads the peer may use.
            check: says what is wrong with a result, or None.
        """
        built = {}
        for name in self.names:
            try:
                worker = self._worker(name)
                wrong = check(worker.ask("build", self.suite, dict(case), threads))
            except Refused as refused:
                self._say(name, str(refused))
                continue
            if wrong is not None:
                self._say(name, wrong)
                continue
            built[name] = Away(worker)
        return built

    def _worker(self, name: str) -> Worker:
        if name not in self._workers or not self._workers[name].alive:
            self._workers[name] = Worker(name, MODULES[name.removesuffix(WITHOUT_AMX)])
        return self._workers[name]

    def _say(self, name: str, why: str) -> None:
        if (name, why) not in self._said:
            self._said.add((name, why))
            self._console.print(f"{name} is left out of {self.suite}: {why}.", highlight=False, markup=False)


def in_turn(calls: Sequence[Built]) -> Built:
    """Calls that take turns, so that each finds its weights where the others left them: in memory. The result is the first's."""
    turns = cycle([run for run, _ in calls])

    def run() -> None:
        next(turns)()

    return run, calls[0][1]


def codes_within_one(want: np.ndarray) -> Check:
    """A check of codes: engines round a bias or a product in another place, so a code may differ by one."""

    def check(got: np.ndarray) -> str | None:
        if got.shape != want.shape:
            return f"its result has shape {list(got.shape)} and ours {list(want.shape)}"
        worst = int(np.abs(got.astype(np.int64) - want.astype(np.int64)).max())
        return (
            None if worst <= 1 else f"its codes differ by up to {worst} from ours: it computes something else"
        )

    return check


def within(want: np.ndarray, bound: float) -> Check:
    """A check of floats: the norm of the difference over that of ``want`` is at most ``bound``."""

    def check(got: np.ndarray) -> str | None:
        if got.shape != want.shape:
            return f"its result has shape {list(got.shape)} and ours {list(want.shape)}"
        error = float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))
        return (
            None
            if error <= bound
            else f"its result is off by {error:.1e}, more than {bound:.0e}: it computes something else"
        )

    return check
