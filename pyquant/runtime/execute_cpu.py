"""The CPU executor: a maximal integer region is one call into the C++ engine; what is float runs in torch."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyquant.errors import BackendError, DTypeError, ShapeError
from pyquant.ops.backend import extension, missing
from pyquant.ops.section import SectionData
from pyquant.runtime.execute_reference import run_aten
from pyquant.runtime.geometry import check_op
from pyquant.runtime.inputs import checked_inputs, dims
from pyquant.runtime.program import Op, Program, Value
from pyquant.runtime.section import write_section

# A call that had the processor for less than this share of its time was interrupted.
UNINTERRUPTED = 0.95


@dataclass(frozen=True)
class Region:
    """Ops that run together: in the engine, or one ``aten`` op in torch (then ``engine`` is None)."""

    ops: tuple[Op, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    engine: Any


@dataclass(frozen=True)
class Timed:
    """One call with a clock on every op.

    Args:
        ops: nanoseconds of each op by the name of its output; 0 where it is a view of its input.
        interrupted: another process had the processor for a part of it; never known of several threads.
    """

    ops: dict[str, int]
    interrupted: bool


class CpuExecutor:
    """Runs an integer program with the CPU kernels.

    Args:
        program: the integer program.
        threads: worker threads of a call; None takes torch's number.
        isa: ``"auto"``, ``"amx"``, ``"avx512"``, ``"avx_vnni"``, ``"avx2"`` or ``"portable"``; all give the same bytes.

    Raises:
        BackendError: the extension is not built, the machine lacks ``isa``, or the engine cannot run an op.
        ShapeError: the shapes of the program's values do not fit each other.
    """

    def __init__(self, program: Program, threads: int | None = None, isa: str = "auto") -> None:
        why = missing("cpu")
        if why is not None:
            raise BackendError(f"the cpu executor cannot run: {why}.")
        if threads is not None and threads < 1:
            raise BackendError(
                f"threads={threads} makes no sense; use 1 or more, or None for torch's number."
            )
        self.program = program
        self.threads = threads if threads is not None else torch.get_num_threads()
        self.isa = isa
        for op in program.ops:
            check_op(op, program.values)
        self.regions = self._split()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run one batch.

        Args:
            inputs: ``[B, ...]`` float32 CPU tensors in torch's layout; where an input is codes, uint8
                ``[B, H, W, C]``.

        Returns:
            The program's outputs, in torch's layouts; codes as uint8 ``[B, H, W, C]``.

        Raises:
            ShapeError: a shape or the number of inputs is wrong, or the batch is empty.
            DTypeError: a dtype or device is wrong.
        """
        return self._call(inputs, None)

    def timed(self, *inputs: Tensor) -> Timed:
        """Run one batch with a clock on every op.

        Raises:
            BackendError: several images in several threads, which work on different ops at the same time.
        """
        if inputs and len(inputs[0]) > 1 and self.threads > 1:
            raise BackendError(
                f"{len(inputs[0])} images in {self.threads} threads cannot be timed op by op; give one image, or use one thread."
            )
        taken: dict[str, int] = {}
        _, interrupted = stopwatch(lambda: self._call(inputs, taken), self.threads)
        return Timed(taken, interrupted)

    def _call(self, inputs: Sequence[Tensor], taken: dict[str, int] | None) -> tuple[Tensor, ...]:
        given = checked_inputs(self.program, inputs, torch.device("cpu"))
        values: dict[str, Any] = dict(zip(self.program.inputs, given, strict=True))
        batch = inputs[0].shape[0]
        for region in self.regions:
            if region.engine is None:
                op, begin = region.ops[0], time.perf_counter_ns()
                values[op.output] = run_aten(op, [values[name] for name in op.inputs], batch)
                if taken is not None:
                    taken[op.output] = time.perf_counter_ns() - begin
            else:
                values.update(self._run(region, values, batch, taken))
        return tuple(values[name] for name in self.program.outputs)

    def _run(
        self, region: Region, values: dict[str, Any], batch: int, taken: dict[str, int] | None
    ) -> dict[str, Tensor]:
        inputs = [self._for_engine(name, values[name], batch) for name in region.inputs]
        outputs = {name: self._empty(self.program.values[name], batch) for name in region.outputs}
        addresses = [x.data_ptr() for x in inputs], [y.data_ptr() for y in outputs.values()]
        if taken is None:
            region.engine.run(*addresses, batch, self.threads)
        else:
            # What comes first are the inputs, which no step makes.
            of_ops = region.engine.run_timed(*addresses, batch, self.threads)[len(inputs) :]
            taken.update(zip((op.output for op in region.ops), of_ops, strict=True))
        return outputs

    def _for_engine(self, name: str, x: Any, batch: int) -> Tensor:
        """The engine reads raw memory: what a float node gave must be what the program says, and contiguous."""
        shape = self.program.values[name].shape
        if not isinstance(x, Tensor) or tuple(x.shape) != (batch, *shape):
            given = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ShapeError(
                f"the float node {name!r} gave {given}; the program says [{batch}, {dims(shape)}]."
            )
        dtype = torch.uint8 if self.program.values[name].kind == "codes" else torch.float32
        if x.dtype != dtype:
            raise DTypeError(f"the float node {name!r} gave {x.dtype}; the program says {dtype}.")
        return x.resolve_neg().contiguous()

    @staticmethod
    def _empty(value: Value, batch: int) -> Tensor:
        dtype = torch.uint8 if value.kind == "codes" else torch.float32
        return torch.empty(batch, *value.shape, dtype=dtype)

    # ---------------------------------------------------------------------------------------- splitting
    def _split(self) -> tuple[Region, ...]:
        """Group ops into as few regions as the order of their inputs allows."""
        waiting = list(self.program.ops)
        known = set(self.program.inputs)
        groups: list[list[Op]] = []
        while waiting:
            group: list[Op] = []
            for op in waiting:
                if op.kind != "aten" and known.issuperset(op.inputs):
                    group.append(op)
                    known.add(op.output)
            if group:
                groups.append(group)
            floats = []
            for op in waiting:
                if op.kind == "aten" and known.issuperset(op.inputs):
                    floats.append(op)
                    known.add(op.output)
            groups.extend([op] for op in floats)
            left = [op for op in waiting if op.output not in known]
            if len(left) == len(waiting):
                raise BackendError(
                    f"op {left[0].name!r} reads {left[0].inputs}, which no earlier op or input gives."
                )
            waiting = left
        return tuple(self._region(group, groups[i + 1 :]) for i, group in enumerate(groups))

    def _region(self, ops: list[Op], later: list[list[Op]]) -> Region:
        made = {op.output for op in ops}
        wanted = {name for group in later for op in group for name in op.inputs} | set(self.program.outputs)
        inputs = tuple(dict.fromkeys(name for op in ops for name in op.inputs if name not in made))
        outputs = tuple(op.output for op in ops if op.output in wanted)
        engine = None if ops[0].kind == "aten" else load(self.program, ops, inputs, outputs, self.isa)
        return Region(tuple(ops), inputs, outputs, engine)


def stopwatch(call: Callable[[], Any], threads: int) -> tuple[int, bool]:
    """Nanoseconds of a call, and whether another process interrupted it, which the time of a single thread tells."""
    begin, began = time.perf_counter_ns(), time.thread_time_ns()
    call()
    whole, worked = time.perf_counter_ns() - begin, time.thread_time_ns() - began
    return whole, threads == 1 and worked < UNINTERRUPTED * whole


# ----------------------------------------------------------------------------------------------- the engine
def load(program: Program, ops: Sequence[Op], inputs: Sequence[str], outputs: Sequence[str], isa: str) -> Any:
    """Build the engine of one region.

    Raises:
        BackendError: the machine lacks ``isa``, or the engine cannot run an op; the sentence names it.
    """
    data = SectionData()
    places = [{role: data.add(tensor) for role, tensor in op.tensors.items()} for op in ops]
    try:
        writer = write_section(program, ops, inputs, places)
        return extension().Engine(*data.finish(writer, outputs), isa)  # type: ignore[union-attr]
    except (ValueError, OverflowError, struct.error) as error:
        raise BackendError(f"{error}.") from None
