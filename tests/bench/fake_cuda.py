"""A CUDA runtime that is none: graphs, streams and events with a clock, on which every op of torch takes a microsecond.

What a graph holds ran once when it was captured, on the CPU; a replay only passes its time, and ops outside of graphs pass theirs.
It refuses what CUDA refuses: a capture on another stream than the current one or within another, and waiting for the device in one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

CPU = torch.device("cpu")
US = 1e-3  # in milliseconds


class _Counter(TorchDispatchMode):
    """Counts ops, and passes their time on a clock where there is one."""

    def __init__(self, fake: FakeCuda | None = None) -> None:
        super().__init__()
        self.ops = 0
        self.fake = fake

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), options: Any = None) -> Any:
        self.ops += 1
        if self.fake is not None:
            self.fake.clock += US
        return function(*given, **(options or {}))


class FakeCuda:
    """Stands for ``torch.cuda``.

    Attributes:
        clock: milliseconds that replays and the ops outside of graphs have taken.
        replayed: the graphs that were, in order.
        broken: the message of an error after which nothing works, or None.
    """

    def __init__(self) -> None:
        self.clock = 0.0
        self.replayed: list[Any] = []
        self.broken: str | None = None
        self.capturing = False
        self.streams = [self.stream_class()]

    def stream_class(self) -> Any:
        return SimpleNamespace(wait_stream=lambda other: self._on_device())

    def _on_device(self) -> None:
        if self.capturing:
            raise RuntimeError("operation not permitted when stream is capturing")
        if self.broken is not None:
            raise RuntimeError(self.broken)

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.streams.append(stream)
        try:
            yield
        finally:
            self.streams.pop()

    @contextlib.contextmanager
    def graph(self, graph: Any, stream: Any) -> Iterator[None]:
        self._on_device()
        assert self.streams[-1] is stream and len(self.streams) > 1, (
            "captured on a stream that is not the current one"
        )
        self.capturing = True
        try:
            with _Counter() as counter:
                yield
        finally:
            self.capturing = False
            # They ran on the way into the graph, not on the device.
            self.clock -= counter.ops * US
        graph.milliseconds = counter.ops * US

    @contextlib.contextmanager
    def on(self) -> Iterator[FakeCuda]:
        """Within, ops outside of graphs take time."""
        with _Counter(self):
            yield self

    def install(self, patch: pytest.MonkeyPatch, **about: Any) -> FakeCuda:
        fake = self

        class Graph:
            milliseconds: float | None = None

            def replay(self) -> None:
                fake._on_device()
                assert self.milliseconds is not None, "replayed before it was captured"
                fake.clock += self.milliseconds
                fake.replayed.append(self)

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = fake.clock

            def synchronize(self) -> None:
                fake._on_device()

            def elapsed_time(self, end: Event) -> float:
                return end.at - self.at

        known = SimpleNamespace(name="Fake GPU", L2_cache_size=1024, multi_processor_count=7, **about)
        for name, stand_in in {
            "Stream": self.stream_class,
            "current_stream": lambda: self.streams[-1],
            "stream": self.stream,
            "graph": self.graph,
            "CUDAGraph": Graph,
            "Event": Event,
            "synchronize": self._on_device,
            "empty_cache": lambda: None,
            "get_device_properties": lambda device: known,
        }.items():
            patch.setattr(torch.cuda, name, stand_in)
        return self
