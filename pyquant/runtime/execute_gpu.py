"""The GPU executor: the steps of a program on CUDA tensors, captured once as a graph and replayed.

The steps are the reference's, on the device, except for what takes the time: convolutions, linear layers among them, are the
op ``conv_s8`` by the kernels of triton or cuda, whose page says which of the two comes first. One that ends in floats is a
matrix product of its windows.

Nothing here has run on a GPU yet. What has, on a CPU and byte for byte: the steps, with the CUDA kernels executed by the tests'
executor and with Triton's in its interpreter; and the rules of which call replays what, with a graph that only says it is one.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pyquant.ops.conv_s8  # noqa: F401 (registers what is chosen from)
from pyquant.errors import BackendError
from pyquant.ops.backend import Choice, choose
from pyquant.ops.checks import check_accumulator
from pyquant.ops.conv_call import DENSE, dense, windows
from pyquant.ops.cuda_launch import index_of, stream_of
from pyquant.ops.tuned import read as tiles_of
from pyquant.runtime.execute_reference import ReferenceExecutor, to_torch_layout
from pyquant.runtime.geometry import check_op, rows_shape
from pyquant.runtime.inputs import checked_inputs
from pyquant.runtime.program import Op, Program

# Graphs that a caller keeps, each with an arena of its own; of more shapes the one unused for longest goes.
GRAPHS = 16
# Runs before a capture: the first compiles, loads and lays out, the second finds all of it there.
WARM_UP = 2


class GpuSteps(ReferenceExecutor):
    """Runs a program op by op on a device.

    Args:
        program: the integer program.
        device: where to compute; inputs have to be there.
        backend: of the convolutions: ``"auto"``, ``"reference"``, ``"triton"`` or ``"cuda"``; all give the same bytes.
        tuned: a file of :func:`pyquant.runtime.tune.tune`, whose tiles are taken; None leaves them to the kernels.

    Attributes:
        choices: of each convolution that has run, what served it; ``str`` of one names its kernel.

    Raises:
        BackendError: the pinned backend cannot serve an op of the program.
        ShapeError: the program's values do not fit each other, or sums could leave int32.
        DataError: ``tuned`` is no such file.
    """

    def __init__(
        self,
        program: Program,
        device: torch.device | str,
        backend: str = "auto",
        tuned: str | os.PathLike[str] | None = None,
    ) -> None:
        for op in program.ops:
            check_op(op, program.values)
        device = torch.device(device)
        self.device = torch.device("cuda", index_of(device)) if device.type == "cuda" else device
        self.backend = backend
        self.tiles = None if tuned is None else tiles_of(Path(tuned), self.device)
        self.choices: dict[str, Choice] = {}
        # Weights as the op takes them, by the value that a convolution makes; of the others the reference has them.
        self.laid: dict[str, Tensor] = {}
        super().__init__(program)
        for op in program.ops:
            if op.kind == "conv":
                self._prepare(op)
        self.program = _on(program, self.device)
        if backend != "auto":
            self.plan(1)

    def plan(self, batch: int) -> dict[str, Choice]:
        """What would serve each convolution of a batch, by the value that it makes; nothing is run.

        Raises:
            BackendError: the pinned backend cannot.
        """
        found = {}
        for op in self.program.ops:
            if op.output in self.laid:
                shapes = [self.program.values[name].shape for name in op.inputs]
                codes = [torch.empty(batch, *s, dtype=torch.uint8, device="meta") for s in shapes]
                name, arguments = self._call(op, codes)
                try:
                    found[op.output] = self._choose(name, arguments)
                except BackendError as error:
                    raise BackendError(f"{op.name!r} of the program: {error}") from None
        return found

    def _prepare(self, op: Op) -> None:
        """Lay out the weight as the op takes it, int8 less its zero point, where that fits."""
        weight = self.weights[op.output].permute(0, 2, 3, 1)
        zero = op.tensors.get("weight_zero")
        if zero is not None:
            weight = weight - zero[:, None, None, None]
        check_accumulator(weight[0].numel(), op.attributes["x_zero"], weight, op.name)
        why = None
        groups, floats = op.attributes["groups"], self._ends_in_floats(op)
        if floats and groups != 1 and weight.numel() * groups > DENSE:
            why = f"its results are floats, and its {groups} groups too wide to be one"
        elif int(weight.min()) < -128 or int(weight.max()) > 127:
            why = "its weight less the zero point does not fit int8"
        if why is None:
            weight = weight.to(torch.int8).contiguous()
            laid = dense(weight, groups).flatten(1) if floats else weight
            self.laid[op.output] = laid.to(self.device)
            del self.weights[op.output]
            return
        self.weights[op.output] = self.weights[op.output].to(self.device)
        if self.backend not in ("auto", "reference"):
            raise BackendError(
                f"backend={self.backend!r} cannot serve {op.name!r}: {why}; use auto or reference."
            )

    def _conv(self, op: Op, inputs: Sequence[Tensor]) -> Tensor:
        if op.output not in self.laid:
            return super()._conv(op, inputs)
        name, arguments = self._call(op, inputs)
        choice = self._choose(name, arguments)
        self.choices[op.output] = choice
        y = self._launch(choice, arguments)
        if not self._ends_in_floats(op):
            return y
        height, width, n = rows_shape(self.program.values[op.output])
        return to_torch_layout(y.reshape(-1, height, width, n), self.program.values[op.output].shape)

    def _call(self, op: Op, inputs: Sequence[Tensor]) -> tuple[str, tuple[Any, ...]]:
        """The op that computes a convolution, and its arguments."""
        a, weight = op.attributes, self.laid[op.output]
        given = weight, op.tensors["multiplier"], op.tensors["bias"], a["x_zero"]
        where = a["stride"], a["padding"], a["dilation"]
        if self._ends_in_floats(op):
            rows = windows(inputs[0], a["kernel"], *where, a["x_zero"])
            return "gemm_s8_float", (rows.flatten(0, 2), *given)
        residual = (inputs[1], a["residual_zero"], a["residual_scale"]) if len(inputs) > 1 else ()
        codes = a["y_zero"], a["low"], a["high"]
        return "conv_s8", (inputs[0], *given, *codes, *where, a["groups"], *residual)

    def _choose(self, name: str, arguments: Sequence[Any]) -> Choice:
        choice = choose(name, self.device, self.backend, arguments)
        return choice if self.tiles is None else self.tiles.apply(choice)

    def _launch(self, choice: Choice, arguments: Sequence[Any]) -> Tensor:
        return choice.kernel(*arguments)

    def _ends_in_floats(self, op: Op) -> bool:
        return self.program.values[op.output].kind == "float"


class GpuExecutor:
    """Runs a program by replaying captured graphs: one, with its own memory, for each thread, stream and shape of a batch.

    Args:
        program, device, backend, tuned: as of :class:`GpuSteps`.

    Raises:
        BackendError, ShapeError, DataError: as of :class:`GpuSteps`.
    """

    def __init__(
        self,
        program: Program,
        device: torch.device | str = "cuda",
        backend: str = "auto",
        tuned: str | os.PathLike[str] | None = None,
    ) -> None:
        self.program = program
        self.steps = GpuSteps(program, device, backend, tuned)
        self._callers = threading.local()
        self._capturing = threading.Lock()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run one batch on the device's current stream; the outputs are the caller's to keep.

        Args:
            inputs: ``[B, ...]`` float32 tensors on the device in torch's layout; where an input is codes, uint8 ``[B, H, W, C]``.

        Raises:
            ShapeError: a shape or the number of inputs is wrong, or the batch is empty.
            DTypeError: a dtype or device is wrong.
            BackendError: the device has no memory left, or cannot capture a graph of this program.
        """
        given = checked_inputs(self.program, inputs, self.steps.device)
        graphs = self._callers.__dict__.setdefault("graphs", OrderedDict())
        key = (given[0].device, stream_of(given[0].device), given[0].shape[0])
        if key not in graphs:
            with self._capturing:
                graphs[key] = captured(self.steps, given)
            while len(graphs) > GRAPHS:
                graphs.popitem(last=False)
        graphs.move_to_end(key)
        with torch.no_grad():
            return graphs[key](*given)


def captured(steps: GpuSteps, inputs: Sequence[Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """Capture the steps for inputs of these shapes.

    Returns:
        A function of such inputs: copies them to where the graph reads, replays it, and copies its outputs.

    Raises:
        BackendError: the device has no memory left, or cannot capture a graph of this program.
    """
    device = inputs[0].device
    here = [x.detach().clone() for x in inputs]
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.device(device), torch.cuda.stream(side):
            # Loads the kernels' code, too, which a capture might not survive.
            for _ in range(WARM_UP):
                steps(*here)
            # Other threads go on with their own work meanwhile.
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                outputs = steps(*here)
    except torch.OutOfMemoryError as error:
        raise BackendError(
            f"{device} has no memory left for a batch of {inputs[0].shape[0]}; give smaller ones."
        ) from error
    except RuntimeError as error:
        if isinstance(error, BackendError):
            raise
        raise BackendError(
            f"{device} cannot capture this program as a graph: {str(error).splitlines()[0]}."
        ) from error
    torch.cuda.current_stream(device).wait_stream(side)

    def replay(*given: Tensor) -> tuple[Tensor, ...]:
        for to, x in zip(here, given, strict=True):
            to.copy_(x)
        graph.replay()
        return tuple(y.clone() for y in outputs)

    return replay


def _on(program: Program, device: torch.device) -> Program:
    """The program with its tensors on a device, less the packed weights, which no step reads."""

    def moved(op: Op) -> Op:
        tensors = {
            role: t.to(device) for role, t in op.tensors.items() if role != "weight" or op.kind != "conv"
        }
        return replace(op, tensors=tensors)

    return replace(program, ops=tuple(map(moved, program.ops)))
