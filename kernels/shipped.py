"""Every configuration that is shipped, and its compilation ahead of time, for which no GPU is needed.

A case is a shape that a kernel is meant for; what :func:`shipped` lists for it is exactly what a launch of that
shape compiles: the same choice of tile, the same constants, the same facts about sizes and pointers.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import conv_s8, depthwise_s8, fake_quantize, gemm_s8, gemm_w4a8, gemm_w4a16, quantize_rows
from . import targets as architectures
from .configuration import Configuration

TARGETS = tuple(architectures.TARGETS)
# Kernels with a table of tiles.
TILED = (gemm_s8, gemm_w4a8, gemm_w4a16, conv_s8)
MODULES = (*TILED, depthwise_s8, fake_quantize, quantize_rows)
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Shipped:
    """One kernel as it is compiled.

    Attributes:
        kernel: name of the op's file.
        case: the shape it is compiled for.
        function: the ``@triton.jit`` function.
        signature: parameter -> Triton's type; ``:16`` after it: a multiple of 16, or aligned to 16 bytes.
        configuration: how.
    """

    kernel: str
    case: str
    function: Any
    signature: dict[str, str]
    configuration: Configuration

    @property
    def constants(self) -> dict[str, Any]:
        """Every other parameter -> value."""
        return self.configuration.constants

    @property
    def num_warps(self) -> int:
        """Triton's ``num_warps``."""
        return self.configuration.tile.warps

    @property
    def num_stages(self) -> int:
        """Triton's ``num_stages``."""
        return self.configuration.tile.stages

    def __str__(self) -> str:
        return f"{self.kernel}-{self.case}-{self.function.__name__}"


@dataclass(frozen=True)
class Compiled:
    """What came out.

    Attributes:
        ptx: the PTX; None on AMD.
        binary: cubin or hsaco.
        entry: the kernel's name in it.
        registers: of one thread.
        shared: bytes of a block.
        spills: bytes of registers that a thread keeps in memory.
        threads: of a block.
    """

    ptx: str | None
    binary: bytes
    entry: str
    registers: int
    shared: int
    spills: int
    threads: int


def shipped(target: str) -> list[Shipped]:
    """Everything that is shipped for a target of :data:`TARGETS`."""
    found = []
    for module in MODULES:
        for case, description in module.CASES.items():
            for function, configuration, signature in module.compiled(description, target):
                found.append(Shipped(configuration.kernel, case, function, signature, configuration))
    return found


def compile(one: Shipped, target: str) -> Compiled:
    """Compile as a launch on ``target`` would."""
    architecture = architectures.TARGETS[target]
    names = one.function.arg_names
    signature = {name: one.signature.get(name, "constexpr").removesuffix(":16") for name in names}
    hints = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if one.signature.get(name, "").endswith(":16")
    }
    # A tensor that is not given is a constant too.
    constants = {(i,): one.constants.get(name) for i, name in enumerate(names) if name not in one.signature}
    source = ASTSource(one.function, signature=signature, constexprs=constants, attrs=hints)
    options = {"num_warps": one.num_warps, "num_stages": one.num_stages, "enable_fp_fusion": False}
    done = triton.compile(
        source,
        target=GPUTarget(architecture.backend, architecture.arch, architecture.warp),
        options=options,
    )
    ptx = done.asm.get("ptx")
    binary = done.asm["hsaco" if ptx is None else "cubin"]
    registers, spills = _on_amd(done.asm["amdgcn"]) if ptx is None else _on_nvidia(binary)
    threads = one.num_warps * architecture.warp
    return Compiled(ptx, binary, done.metadata.name, registers, done.metadata.shared, spills, threads)


def _on_nvidia(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes of a thread's stack: these kernels have nothing on it but what was spilled."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [_TOOLS / "cuobjdump", "-res-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", said)
    return int(found[1]), int(found[2]) + int(found[3])


def _on_amd(assembly: str) -> tuple[int, int]:
    registers = re.search(r"\.vgpr_count:\s+(\d+)", assembly)
    scratch = re.search(r"\.private_segment_fixed_size:\s+(\d+)", assembly)
    return int(registers[1]), int(scratch[1])
