"""Net: an integer program with what runs it. ``deploy`` makes one of a model, ``load`` of a file."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyquant.errors import BackendError, DataError, DTypeError, ShapeError
from pyquant.model import QModel
from pyquant.ops import backend as backends
from pyquant.runtime import checkpoint
from pyquant.runtime.execute_cpu import CpuExecutor
from pyquant.runtime.execute_gpu import GpuExecutor, GpuSteps
from pyquant.runtime.execute_reference import ReferenceExecutor
from pyquant.runtime.lower import lower
from pyquant.runtime.program import BOUNDARY_KINDS, INTEGER_KINDS, Op, Program
from pyquant.runtime.validate import validate


@backends.register("program", "reference")
def _reference(net: Net) -> ReferenceExecutor:
    # Plain torch, which shares work out by its own setting.
    on_cpu = net.device.type == "cpu"
    return ReferenceExecutor(net.program) if on_cpu else GpuSteps(net.program, net.device, "reference")


@backends.register("program", "cpu")
def _cpu(net: Net) -> CpuExecutor:
    return CpuExecutor(net.program, net.threads)


@backends.register("program", "triton")
@backends.register("program", "cuda")
def _gpu(net: Net) -> GpuExecutor:
    # With auto, each layer takes the best that serves it.
    return GpuExecutor(net.program, net.device, net.backend, net.tuned)


class Net:
    """A quantised network that runs in integers.

    Args:
        program: the integer program, valid.
        info: any JSON to keep with it in a file.
        backend: ``"auto"``, ``"cpu"``, ``"reference"``, ``"triton"`` or ``"cuda"``; all give the same bytes.
        threads: threads of a call on the cpu backend; None takes torch's number.
        device: where the inputs will be, such as ``"cuda"``; None is a GPU for triton and cuda, and else the CPU.
        tuned: a file of :func:`pyquant.tune`, for a network on a GPU; None leaves tiles to the kernels.

    A copy or a pickle takes the program along and chooses its backend anew, where it is opened.

    Attributes:
        choice: which backend serves, and why; ``str(net.choice)`` is one line.

    Raises:
        BackendError: the pinned backend cannot serve the program here, torch sees no such device, ``threads`` is no whole
            number above 0, or ``tuned`` is given off a GPU.
        DataError: ``tuned`` is no such file.
    """

    def __init__(
        self,
        program: Program,
        info: Mapping[str, Any] | None = None,
        *,
        backend: str = "auto",
        threads: int | None = None,
        device: torch.device | str | None = None,
        tuned: str | os.PathLike[str] | None = None,
    ) -> None:
        # bool is an int to Python, and nobody's number of threads.
        if threads is not None and (not isinstance(threads, int) or threads is True or threads < 1):
            raise BackendError(
                f"threads={threads!r} makes no sense; give a whole number from 1, or leave it out for torch's number."
            )
        self.program = program
        self.info: dict[str, Any] = dict(info or {})
        self.backend = backend
        self.threads = threads
        default = torch.device("cuda" if backend in ("triton", "cuda") else "cpu")
        self.device = default if device is None else visible(device)
        self.tuned = tuned
        self.choice = backends.choose("program", self.device, backend)
        if tuned is not None and self.choice.backend not in ("triton", "cuda"):
            raise BackendError(
                f"tuned={str(tuned)!r} is for kernels on a GPU, and this network runs on {self.choice.backend}; leave it out."
            )
        try:
            self._executor = self.choice.kernel(self)
        except BackendError as error:
            if backend != "auto" or self.choice.backend == "reference":
                raise
            why = f"the {self.choice.backend} backend cannot: {error}"
            self.choice = replace(backends.choose("program", self.device, "reference"), why=why)
            self._executor = self.choice.kernel(self)

    def __repr__(self) -> str:
        values, ops = self.program.values, self.program.ops
        inputs = ", ".join(
            f"{name} [{', '.join(map(str, ('B', *values[name].shape)))}]" for name in self.program.inputs
        )
        sites = sum(op.kind == "conv" for op in ops)
        backend, total = self.choice.backend, self.sizes["total"]
        return f"Net({inputs}; ops: {len(ops)}; sites: {sites}; backend: {backend}; bytes: {total:,})"

    def __reduce__(self) -> tuple[Any, ...]:
        # The executor holds handles of the engine, which only this process knows.
        how = partial(type(self), backend=self.backend, threads=self.threads)
        return partial(how, device=self.device, tuned=self.tuned), (self.program, self.info)

    def __call__(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run one batch.

        Args:
            inputs: one ``[B, ...]`` float32 tensor per input of the network, on its device, in torch's layout.

        Returns:
            The output in torch's layout; a tuple where the network has several.

        Raises:
            ShapeError: the number of inputs or a shape is wrong, batches differ, or the batch is empty.
            DTypeError: an input is no tensor, not float32, or not on the network's device.
        """
        self._check(inputs)
        outputs = self._executor(*inputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def _check(self, inputs: Sequence[Any]) -> None:
        names = self.program.inputs
        if len(inputs) != len(names):
            raise ShapeError(
                f"the network takes {len(names)} inputs ({', '.join(names)}), and {len(inputs)} were given."
            )
        for name, x in zip(names, inputs, strict=True):
            value = self.program.values[name]
            dtype = torch.uint8 if value.kind == "codes" else torch.float32
            if not isinstance(x, Tensor):
                raise DTypeError(f"input {name!r} is a {type(x).__name__}; give a torch tensor.")
            if x.device.type != self.device.type or x.layout != torch.strided:
                here = "the CPU" if self.device.type == "cpu" else self.device
                raise DTypeError(
                    f"input {name!r} is a {x.layout} tensor on {x.device}; give a dense tensor on {here}."
                )
            if x.dtype != dtype:
                cast = "x.float()" if dtype == torch.float32 else "codes as uint8"
                raise DTypeError(f"input {name!r} is {x.dtype} and the network takes {dtype}; give {cast}.")
            if x.dim() != len(value.shape) + 1 or tuple(x.shape[1:]) != value.shape:
                want = ", ".join(map(str, ("B", *value.shape)))
                raise ShapeError(f"input {name!r} has shape {list(x.shape)} and the network takes [{want}].")
            if x.shape[0] == 0:
                raise ShapeError(f"input {name!r} is an empty batch; give at least one sample.")
            if x.shape[0] != inputs[0].shape[0]:
                raise ShapeError(
                    f"inputs have batches of {inputs[0].shape[0]} and {x.shape[0]}; give all the same batch."
                )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the network to one file, whole or not at all.

        Raises:
            CheckpointError: the file cannot be written, or ``info`` has no JSON form.
        """
        checkpoint.save(self.program, path, self.info)

    def with_backend(
        self, backend: str, threads: int | None = None, device: torch.device | str | None = None
    ) -> Net:
        """The same network on another backend or device, or with another number of threads."""
        return Net(self.program, self.info, backend=backend, threads=threads, device=device)

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes: ``weights`` (packed codes) and ``total`` (every tensor), and what they are in float32.

        ``float_weights`` are 4 bytes a weight of the integer part; ``float_total`` adds its biases and the
        tensors of float nodes.
        """
        convs = [op for op in self.program.ops if op.kind == "conv"]
        every = [tensor for op in self.program.ops for tensor in op.tensors.values()]
        kept = [tensor for op in self.program.ops if op.kind == "aten" for tensor in op.tensors.values()]
        float_weights = 4 * sum(_weights(op, self.program) for op in convs)
        return {
            "weights": sum(op.tensors["weight"].nbytes for op in convs),
            "total": sum(tensor.nbytes for tensor in every),
            "float_weights": float_weights,
            "float_total": float_weights
            + 4 * sum(op.tensors["bias"].numel() for op in convs)
            + sum(t.nbytes for t in kept),
        }

    def share(self) -> dict[str, float]:
        """How much runs in integers.

        Returns:
            Counts of ``integer``, ``float`` and ``boundary`` (quantize, dequantize) ops, and ``share``: the
            integer ops among those that compute.
        """
        kinds = [op.kind for op in self.program.ops]
        integer = sum(kind in INTEGER_KINDS for kind in kinds)
        boundary = sum(kind in BOUNDARY_KINDS for kind in kinds)
        floats = len(kinds) - integer - boundary
        return {
            "integer": integer,
            "float": floats,
            "boundary": boundary,
            "share": integer / max(1, integer + floats),
        }

    def describe(self, batch: int = 1) -> list[dict[str, Any]]:
        """One row an op, in order, for tables.

        Returns:
            ``op`` (number), ``name``, ``kind``, ``geometry``, ``weight_bits``, ``input_bits`` and ``bytes``.
            Bits are None where an op has none, or they are not known. Of a network that is not on the CPU also ``kernel``:
            what serves a convolution of such a batch, with its tile; None for other ops, which torch runs.
        """
        steps = self._executor.steps if isinstance(self._executor, GpuExecutor) else self._executor
        served = steps.plan(batch) if isinstance(steps, GpuSteps) else None
        plan = self.info.get("plan", {})
        rows = []
        for number, op in enumerate(self.program.ops):
            row = {
                "op": number,
                "name": op.name,
                "kind": op.attributes["attrs"].get("target", op.attributes["op"])
                if op.kind == "aten"
                else op.kind,
                "geometry": _geometry(op, self.program),
                "weight_bits": op.attributes.get("weight_bits"),
                "input_bits": plan[op.name][1] if op.kind == "conv" and op.name in plan else None,
                "bytes": sum(tensor.nbytes for tensor in op.tensors.values()),
            }
            if served is not None:
                row["kernel"] = str(served[op.output]) if op.output in served else None
            rows.append(row)
        return rows


def deploy(
    q: QModel,
    *,
    backend: str = "auto",
    threads: int | None = None,
    device: torch.device | str | None = None,
) -> Net:
    """Lower a calibrated model to an integer network.

    Args:
        q: a calibrated model.
        backend, threads, device: as of :class:`Net`.

    Returns:
        The network; ``info["plan"]`` holds (weight bits, input bits) of every site.

    Raises:
        DataError: ``q`` is no such model, or not calibrated. GridError, BackendError: it has no integer form.
        CheckpointError: its program makes no sense, which a scale that exploded can cause.
    """
    if not isinstance(q, QModel):
        raise DataError(
            f"deploy takes what prepare and calibrate return, and a {type(q).__name__} was given."
        )
    q.check_calibrated("deploy")
    program = lower(q)
    validate(program)
    plan = {site: [grids.weight.bits, grids.input.bits] for site, grids in q.plan.items()}
    return Net(program, {"plan": plan}, backend=backend, threads=threads, device=device)


def load(
    path: str | os.PathLike[str],
    *,
    backend: str = "auto",
    threads: int | None = None,
    device: torch.device | str | None = None,
    tuned: str | os.PathLike[str] | None = None,
) -> Net:
    """Load a network that :meth:`Net.save` wrote; needs nothing of the Python model.

    Raises:
        CheckpointError: the file is missing, truncated, altered, or of another format.
        BackendError, DataError: as of :class:`Net`.
    """
    return Net(*checkpoint.load(path), backend=backend, threads=threads, device=device, tuned=tuned)


def visible(device: torch.device | str) -> torch.device:
    """A device by its name, which torch has to see.

    Raises:
        BackendError: it is no device, or torch sees none such.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise BackendError(f"device={device!r} is no device; use 'cpu', 'cuda' or 'cuda:0'.") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise BackendError(f"device={str(found)!r}: no CUDA device is visible to torch; use device='cpu'.")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise BackendError(
            f"there is no {found}; torch sees {torch.cuda.device_count()} CUDA device(s), counted from 0."
        )
    return found


def _weights(op: Op, program: Program) -> int:
    """Weights of a conv."""
    channels = program.values[op.inputs[0]].shape[2] // op.attributes["groups"]
    return op.tensors["bias"].numel() * math.prod(op.attributes["kernel"]) * channels


def _geometry(op: Op, program: Program) -> str:
    """Shapes in and out, and what differs from a plain op: ``"32x32x3 -> 16x16x8 k3x3 s2x2 p1,1,1,1"``."""
    shapes = [program.values[name].shape for name in (*op.inputs[:1], op.output)]
    parts = [" -> ".join("x".join(map(str, shape)) for shape in shapes)]
    a = op.attributes
    for sign, name, plain in (
        ("k", "kernel", 1),
        ("w", "window", 0),
        ("s", "stride", 1),
        ("d", "dilation", 1),
    ):
        if name in a and set(a[name]) != {plain}:
            parts.append(sign + "x".join(map(str, a[name])))
    if any(a.get("padding", ())):
        parts.append("p" + ",".join(map(str, a["padding"])))
    if a.get("groups", 1) != 1:
        parts.append(f"g{a['groups']}")
    if op.kind == "conv" and len(op.inputs) == 2:
        parts.append("+ residual")
    return " ".join(parts)
