"""Launches on the emulator that account for every argument: the counts that ``bench.traffic``'s arithmetic is held to.

What a block asks of an operand counts each time, as it has to come from L2 or beyond each time. Factors (scales, biases, sums of
codes), which a block's threads share and find in L1 again, count once a block. What is stored counts each time.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyquant.ops.cuda_configurations import KERNELS
from tests.gpu import emulated_cuda, emulated_triton
from tests.gpu.emulated_triton import EmulatedTriton
from tests.gpu.emulator import Report, launch, run
from tests.gpu.emulator.global_memory import GlobalMemory

_SCALED = ("x", "w", "scale", "zero", "sums", "x_scale", "x_zero", "y")
# Arguments of a CUDA kernel as far as they are pointers, by op.
POINTERS = {
    "gemm_s8": ("x", "w", "multiplier", "bias", "correction", "y"),
    "gemm_s8_float": ("x", "w", "multiplier", "bias", "correction", "y"),
    "gemm_w4a4": _SCALED,
    "gemm_w4a8": _SCALED,
    "gemm_w4a16": ("x", "w", "scale", "zero", "y", "partial"),
    "gemm_w4a16_sum": ("partial", "y"),
}
# Triton's function, or the op of a CUDA kernel -> arguments of which every access counts.
_OPERANDS = {
    **dict.fromkeys(POINTERS, ("x", "w", "partial")),
    "gemm_s8_kernel": ("x", "weight"),
    "gemm_w4a8_kernel": ("x", "codes"),
    "gemm_w4a16_kernel": ("x", "codes"),
    "add_splits_kernel": ("parts",),
    "conv_s8_kernel": ("x", "weight", "residual"),
    "depthwise_s8_kernel": ("x", "residual"),
    "fake_quantize_kernel": ("x",),
    "backward_kernel": ("dy", "x"),
    # Its tile may be smaller than its block, whose threads then share what they load.
    "sums_kernel": (),
    "quantize_rows_kernel": ("x",),
    "row_sums_kernel": ("codes",),
}
_PRODUCT = re.compile(r"mma\.sync\S*\.m(\d+)n(\d+)k(\d+)\.")


@dataclass(frozen=True)
class Launch:
    """What one launch did.

    Attributes:
        name: Triton's function, or the op of a CUDA kernel.
        constants: Triton's, by name; of CUDA its tile, by the same names.
        threads: of a block.
        asked: argument -> bytes loaded from it, thread by thread.
        needed: the same, each byte once a block.
        stored: bytes.
        operations: of tensor cores; a multiply-add is two.
    """

    name: str
    constants: dict[str, Any]
    threads: int
    asked: dict[str, int]
    needed: dict[str, int]
    stored: int
    operations: int

    @property
    def bytes(self) -> int:
        """Loaded and stored, as the module says."""
        operands = _OPERANDS[self.name]
        loaded = sum(self.asked[key] if key in operands else self.needed[key] for key in self.asked)
        return loaded + self.stored


class _Memory(GlobalMemory):
    """Global memory that notes what is loaded of each array."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []
        self.needed: list[int] = []
        self._seen: list[NDArray[np.bool_]] = []

    def place(self, array: NDArray[np.generic]) -> int:
        base = super().place(array)
        self.asked.append(0)
        self.needed.append(0)
        self._seen.append(np.zeros(self.allocations[-1].buffer.size, bool))
        return base

    def load(self, addresses: NDArray[np.generic], width: int) -> NDArray[np.generic]:
        rows = super().load(addresses, width)
        found = np.searchsorted(np.array(self.bases, np.uint64), addresses, side="right") - 1
        for at in np.unique(found):
            here = addresses[found == at] - np.uint64(self.bases[at])
            self.asked[at] += here.size * width
            self._seen[at].reshape(-1, width)[here // np.uint64(width)] = True
        return rows

    def end_block(self) -> None:
        for at, seen in enumerate(self._seen):
            self.needed[at] += int(np.count_nonzero(seen))
            seen[:] = False


def operations(report: Report) -> int:
    """Multiplications and additions of all tensor-core instructions that ran."""
    total = 0
    for opcode, warps in report.operations.items():
        found = _PRODUCT.match(opcode)
        if found:
            m, n, k = map(int, found.groups())
            total += 2 * m * n * k * warps
        else:
            assert "mma" not in opcode, f"the size of {opcode} is not known here"
    return total


class Meter:
    """The account of all launches within :meth:`on`, of CUDA's kernels and of Triton's.

    Attributes:
        launches: in order.
        triton: the emulator of Triton's kernels.
    """

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.triton = _NamingTriton()

    @contextlib.contextmanager
    def on(self, *modules: Any) -> Iterator[Meter]:
        """Within, launches of these Triton modules run on the emulator, and its launches are accounted for."""
        with (
            mock.patch.object(emulated_cuda, "run", self._run_cuda),
            mock.patch.object(emulated_triton, "run", self._run_triton),
            self.triton.on(*modules),
        ):
            yield self

    def _run_cuda(
        self, ptx: str, entry: str, grid: Any, block: int, arguments: Sequence[Any], **options: Any
    ) -> Report:
        (kernel,) = [kernel for kernel in KERNELS if kernel.entry == entry]
        names = POINTERS[kernel.op]
        of = {
            _pointer(given): name
            for given, name in zip(arguments, names, strict=False)
            if not isinstance(given, int)
        }
        tile = dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_K"), kernel.tile, strict=True))
        return self._run(kernel.op, tile, of, ptx, entry, grid, block, arguments, **options)

    def _run_triton(
        self, ptx: str, entry: str, grid: Any, block: int, arguments: Sequence[Any], **options: Any
    ) -> Report:
        given = self.triton
        return self._run(
            given.function, given.constants, given.names, ptx, entry, grid, block, arguments, **options
        )

    def _run(
        self,
        name: str,
        constants: dict[str, Any],
        names: dict[int, str],
        ptx: str,
        entry: str,
        grid: Any,
        block: int,
        arguments: Sequence[Any],
        **options: Any,
    ) -> Report:
        memory, run_block = _Memory(), launch._run_block

        def counted(*given: Any) -> None:
            run_block(*given)
            memory.end_block()

        with (
            mock.patch.object(launch, "GlobalMemory", lambda: memory),
            mock.patch.object(launch, "_run_block", counted),
        ):
            report = run(ptx, entry, grid, block, arguments, **options)
        # An array of nothing has no address of its own.
        arrays = [allocation.array for allocation in memory.allocations]
        of = [names[_pointer(array)] if array.size else f"empty {i}" for i, array in enumerate(arrays)]
        assert sum(memory.asked) == report.loaded
        self.launches.append(
            Launch(
                name,
                constants,
                block,
                dict(zip(of, memory.asked, strict=True)),
                dict(zip(of, memory.needed, strict=True)),
                report.stored,
                operations(report),
            )
        )
        return report


class _NamingTriton(EmulatedTriton):
    """Notes what is launched, and the names of its tensors."""

    def _launch(self, function: Any, arguments: Sequence[Any], grid: Any, options: dict[str, Any]) -> None:
        values = dict(zip(function.arg_names, arguments, strict=False))
        self.function: str = function.__name__
        self.constants = {name: value for name, value in options.items() if name in function.arg_names}
        self.names = {given.data_ptr(): name for name, given in values.items() if isinstance(given, Tensor)}
        super()._launch(function, arguments, grid, options)


def _pointer(array: NDArray[np.generic]) -> int:
    return array.__array_interface__["data"][0]
