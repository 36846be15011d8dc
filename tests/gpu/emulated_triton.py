"""The Triton kernels' PTX, compiled for sm_80 as a launch there would compile it, run on the emulator.

Inside :class:`EmulatedTriton` the kernels' own ``launch`` functions work on tensors of the CPU: each launch compiles for what the
arguments are (types, multiples of 16, ones), and its PTX runs on the tensors' memory. So the bodies that check the kernels in
Triton's interpreter check the machine's program here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from tests.gpu.emulated_cuda import memory_of
from tests.gpu.emulator import Report, run, together

TARGET = "sm_80"
_TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.uint8: "u8",
    torch.int8: "i8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "i1",
}
_OPTIONS = ("num_warps", "num_stages", "num_ctas", "enable_fp_fusion", "maxnreg")


@dataclass(frozen=True)
class Program:
    """One kernel as it was compiled, and all its launches together."""

    ptx: str
    entry: str
    shared: int
    threads: int


def _specialised(value: object, general: bool) -> tuple[str, bool, bool]:
    """Triton's type of an argument, whether it knows a factor of 16 in it, and whether it takes it for a constant.

    ``general``: the kernel says ``do_not_specialize``.
    """
    if isinstance(value, Tensor):
        return f"*{_TYPES[value.dtype]}", not general and value.data_ptr() % 16 == 0, False
    if isinstance(value, bool):
        return "i1", False, False
    if isinstance(value, int):
        wide = "i32" if -(2**31) <= value < 2**31 else "i64"
        return wide, not general and value % 16 == 0, not general and value == 1
    return "fp32", False, value is None


class EmulatedTriton:
    """Launches of ``@triton.jit`` functions, run on the emulator.

    Attributes:
        seed: the emulator's, for the next launches.
        programs: every program compiled, by name and constants.
        reports: the same -> what its launches did.
        replaced: the same -> the PTX to run instead, a mutant's.
    """

    def __init__(self) -> None:
        self.seed = 0
        self.programs: dict[str, Program] = {}
        self.reports: dict[str, Report] = {}
        self.replaced: dict[str, str] = {}

    @contextlib.contextmanager
    def on(self, *modules: Any) -> Iterator[EmulatedTriton]:
        """Within, launches of these kernel modules run on the emulator, and their tensors count as a GPU's."""

        def run_jit(function: JITFunction, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
            self._launch(function, arguments, grid, options)

        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.object(JITFunction, "run", run_jit))
            for module in modules:
                stack.enter_context(mock.patch.object(module, "of", lambda device: TARGET))
            yield self

    def _launch(
        self, function: JITFunction, arguments: Sequence[Any], grid: Any, options: dict[str, Any]
    ) -> None:
        names = function.arg_names
        values = dict(zip(names, arguments, strict=False))
        values |= {name: value for name, value in options.items() if name in names}
        settings = {name: value for name, value in options.items() if name in _OPTIONS}
        assert set(options) <= set(names) | set(_OPTIONS), f"options not known here: {sorted(options)}"
        for parameter in function.params:
            if parameter.name not in values:
                values[parameter.name] = parameter.default
        key, program, passed = self._compiled(function, values, settings)
        grid = grid(values) if callable(grid) else grid
        given = [memory_of(value) if isinstance(value, Tensor) else value for value in passed]
        report = run(
            self.replaced.get(key, program.ptx),
            program.entry,
            grid,
            program.threads,
            given,
            dynamic_shared=program.shared,
            seed=self.seed,
        )
        before = self.reports.get(key)
        self.reports[key] = report if before is None else together([before, report])

    def _compiled(
        self, function: JITFunction, values: dict[str, Any], settings: dict[str, Any]
    ) -> tuple[str, Program, list[Any]]:
        names = function.arg_names
        signature, constants, hints, passed = {}, {}, {}, []
        for i, (name, parameter) in enumerate(zip(names, function.params, strict=True)):
            kind, sixteens, constant = _specialised(values[name], parameter.do_not_specialize)
            if parameter.is_constexpr or constant:
                signature[name], constants[(i,)] = "constexpr", values[name]
                continue
            signature[name] = kind
            passed.append(values[name])
            if sixteens:
                hints[(i,)] = [["tt.divisibility", 16]]
        key = f"{function.__name__} {signature} {constants} {sorted(hints)} {settings}"
        if key not in self.programs:
            source = ASTSource(function, signature=signature, constexprs=constants, attrs=hints)
            done = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=settings)
            threads = 32 * done.metadata.num_warps
            self.programs[key] = Program(done.asm["ptx"], done.metadata.name, done.metadata.shared, threads)
        return key, self.programs[key], passed
