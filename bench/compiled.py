"""Every kernel that ships, compiled for a target and read: what ``gpu_static`` tables and the gates of ``tests/gpu`` look at.

Compiling takes a second or two a kernel, so what was read is kept in ``build/gpu_static`` under a hash of all that it follows from.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench import gcn, sass
from bench.machine_code import Kernel
from bench.occupancy import GFX942, blocks
from bench.record import ROOT
from bench.roofline import devices

BUILD = ROOT / "build" / "gpu_static"
FATBIN = ROOT / "pyquant" / "pyquant_cuda.fatbin"
# What reads the machine code: an artefact is read anew when one of them changes.
_READERS = ("loops.py", "machine_code.py", "sass.py", "gcn.py", "compiled.py")
_TENSOR_MEMORY = re.compile(r"tcgen05\.alloc\S*\s+\[\S+\],\s*(\d+)")

# Rows, outputs and products a sum of the shape that CUDA kernels are looked at with.
LARGE = 4096


@dataclass(frozen=True)
class Product:
    """``[m, k]`` times ``[n, k]``, with the words of the Triton kernels' descriptions; without zero points.

    Args:
        group: codes of K that share a scale; 0: all of them.
        splits: parts of K that are summed in a kernel of their own.
    """

    m: int
    n: int
    k: int
    group: int = 0
    zero: bool = False
    x_zero: bool = False
    dtype: str = "fp32"
    splits: int = 1


@dataclass(frozen=True)
class Artefact:
    """One kernel as it ships, compiled for one target.

    Args:
        backend: ``triton`` or ``cuda``.
        op: what it computes: ``gemm_s8``, say.
        kernel: its own name; an op may need several.
        case: the shape it is looked at with.
        target: ``sm_80``, say.
        code: what the compiler made of it.
        threads: of a block.
        shared: bytes of shared memory of a block, static and dynamic.
        tensor_columns: of tensor memory that a block takes on sm_100.
        description: that shape, with the attributes of the Triton kernel's ``Description``.
        constants: what it was compiled with.
    """

    backend: str
    op: str
    kernel: str
    case: str
    target: str
    code: Kernel
    threads: int
    shared: int
    tensor_columns: int
    description: Any
    constants: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.backend}-{self.kernel}-{self.case}-{self.target}"

    @property
    def blocks(self) -> int:
        """How many a multiprocessor holds at once; 0: it cannot be launched."""
        return blocks(self.target, self.threads, self.code.registers, self.shared, self.tensor_columns)


def missing_triton() -> str | None:
    """Why Triton's kernels cannot be compiled here, or None."""
    if find_spec("triton") is None:
        return "no Triton: pip install 'pyquant-engine[gpu]'"
    return None if sass.disassembler() is not None else "no cuobjdump: it comes with Triton's wheel"


def missing_fatbin() -> str | None:
    """Why there are no CUDA kernels to read, or None."""
    if not FATBIN.is_file():
        return "no CUDA kernels: they are built where nvcc is found"
    return None if sass.disassembler() is not None else "no cuobjdump: it comes with Triton's wheel"


def triton_artefacts(target: str, first: bool = False) -> Iterator[Artefact]:
    """Every configuration of :func:`pyquant.kernels.shipped.shipped`, once where cases share one.

    Args:
        target: one of its targets.
        first: only the first configuration of each kernel.
    """
    from pyquant.kernels import shipped

    seen = set()
    for one in shipped.shipped(target):
        key = _key(one, target)
        mark = one.function.__name__ if first else key
        if mark in seen:
            continue
        seen.add(mark)
        found = _read(one, target, key)
        yield Artefact(
            "triton",
            one.kernel,
            one.function.__name__,
            # Values and codes have a kernel each.
            f"{one.case}-to-codes"
            if one.kernel == "fake_quantize" and one.constants.get("TO_CODES")
            else one.case,
            target,
            Kernel(**found["code"]),
            found["threads"],
            found["shared"],
            found["tensor_columns"],
            import_module(f"pyquant.kernels.{one.kernel}").CASES[one.case],
            dict(one.constants),
        )


def cuda_artefacts(target: str) -> Iterator[Artefact]:
    """Every kernel of :data:`pyquant.ops.cuda_configurations.KERNELS` that the fatbin should have for a target.

    Raises:
        SassError: the fatbin lacks one.
    """
    from pyquant.ops.cuda_configurations import KERNELS

    codes = _fatbin()
    for kernel in KERNELS:
        if target not in kernel.architectures:
            continue
        code = codes.get((target, kernel.entry))
        if code is None:
            raise sass.SassError(f"{FATBIN.name} has no {kernel.entry} for {target}: build it anew.")
        shape = _product(kernel, target)
        yield Artefact(
            "cuda",
            kernel.op,
            kernel.entry,
            "-".join([f"M{shape.m}", *([f"g{shape.group}"] if shape.group else [])]),
            target,
            code,
            kernel.block,
            code.shared + kernel.shared_bytes,
            0,
            shape,
            dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_K"), kernel.tile, strict=True)),
        )


def _product(kernel: Any, target: str) -> Product:
    """The shape that a CUDA kernel is looked at with: a batch for the largest tile of its kind, else as many rows as the tile has."""
    from pyquant.ops.cuda_configurations import KERNELS, w4a16_splits

    if kernel.op == "gemm_w4a16_sum":
        # It follows the product of the same type and the fewest rows.
        kernel = next(
            one for one in KERNELS if one.op == "gemm_w4a16" and kernel.entry.split("_")[-1] in one.entry
        )
    group = _largest_group(kernel)
    rows = kernel.tile[0]
    alike = [one.tile[0] for one in KERNELS if one.op == kernel.op and _largest_group(one) == group]
    if kernel.op == "gemm_w4a16":
        splits = w4a16_splits(kernel, rows, LARGE, LARGE, devices(target)[0].processors)
        return Product(rows, LARGE, LARGE, group, splits=splits)
    return Product(LARGE if rows == max(alike) else rows, LARGE, LARGE, group)


def _largest_group(kernel: Any) -> int:
    """With the fewest scales to load; 0: one a row."""
    return max(size or 0 for size in kernel.group_sizes)


def artefacts(target: str) -> Iterator[Artefact]:
    """Triton's and CUDA's kernels of a target, as far as they can be compiled and read here."""
    if missing_triton() is None:
        yield from triton_artefacts(target)
    if missing_fatbin() is None:
        yield from cuda_artefacts(target)


def _fatbin() -> dict[tuple[str, str], Kernel]:
    """(target, entry) -> what the fatbin holds."""
    key = hashlib.sha256(FATBIN.read_bytes() + _readers()).hexdigest()[:32]
    path = BUILD / f"{key}.json"
    if not path.is_file():
        _keep(path, [asdict(kernel) for kernel in sass.read(FATBIN)])
    kernels = [Kernel(**found) for found in json.loads(path.read_text(encoding="utf-8"))]
    return {(kernel.target.rstrip("af"), kernel.name): kernel for kernel in kernels}


@cache
def _readers() -> bytes:
    folder = Path(__file__).parent
    return b"".join((folder / name).read_bytes() for name in _READERS)


def _key(one: Any, target: str) -> str:
    """A hash of everything a compiled kernel follows from, with the functions that it calls."""
    import triton

    facts = (
        triton.__version__,
        target,
        one.function.cache_key,
        sorted(one.signature.items()),
        sorted((name, repr(value)) for name, value in one.constants.items()),
        one.num_warps,
        one.num_stages,
    )
    return hashlib.sha256(repr(facts).encode() + _readers()).hexdigest()[:32]


def _read(one: Any, target: str, key: str) -> dict[str, Any]:
    """What a compiled kernel is, kept from an earlier time or compiled now."""
    path = BUILD / f"{key}.json"
    if not path.is_file():
        _keep(path, _compile(one, target))
    return json.loads(path.read_text(encoding="utf-8"))


def _compile(one: Any, target: str) -> dict[str, Any]:
    import triton
    from pyquant.kernels import shipped

    with tempfile.TemporaryDirectory() as folder, triton.knobs.cache.scope():
        # Triton keeps AMD's assembly in its cache only; a cache of its own holds no other kernel's.
        triton.knobs.cache.dir = folder
        compiled = shipped.compile(one, target)
        if target == GFX942:
            (assembly,) = Path(folder).rglob("*.amdgcn")
            code = gcn.parse(assembly.read_text(encoding="utf-8"))
        else:
            cubin = Path(folder) / "kernel.cubin"
            cubin.write_bytes(compiled.binary)
            (code,) = sass.read(cubin)
    columns = [int(found) for found in _TENSOR_MEMORY.findall(compiled.ptx or "")]
    return {
        "code": asdict(code),
        "threads": compiled.threads,
        "shared": compiled.shared,
        "tensor_columns": sum(columns),
    }


def _keep(path: Path, found: Any) -> None:
    """Write all or nothing: tests may run side by side."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        json.dump(found, file)
    Path(file.name).replace(path)
