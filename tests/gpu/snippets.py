"""Small PTX programs around a few instructions, to try the emulator on.

Every thread loads its own element of each input, runs the body, and stores one result.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tests.gpu.emulator import Report, run

Array = NDArray[np.generic]
# Registers of every width that a body may use: %r0..%r31, %h0.. (16 bits), %d0.. (64 bits), %q0.. (predicates).
_DECLARATIONS = ".reg .b32 %r<32>; .reg .b16 %h<32>; .reg .b64 %d<32>; .reg .pred %q<8>; .reg .b64 %at<16>;"
_THREADS = 128
_FILES = {2: "%h", 4: "%r", 8: "%d"}


def program(body: str, parameters: int = 2, shared: int = 0, files: str = "") -> str:
    """A kernel ``snippet`` of 64-bit parameters ``p0``, ``p1``...; ``%at0``, ``%at1``... hold them. Static ``tile`` of bytes."""
    given = ", ".join(f".param .u64 p{i}" for i in range(parameters))
    loads = "\n".join(f"ld.param.u64 %at{i}, [p{i}];" for i in range(parameters))
    tile = f".shared .align 16 .b8 tile[{shared}];" if shared else ""
    return f""".version 8.8
.target sm_80
.address_size 64
.visible .entry snippet({given})
{{
{_DECLARATIONS}
{files}
{tile}
{loads}
{body}
ret;
}}
"""


def each(body: str, inputs: Sequence[Array], result: np.dtype | type, *, seed: int = 0) -> Array:
    """Run a body a thread an element: inputs in ``%r1``, ``%r2``... (``%h1`` for 16 bits, ``%d1`` for 64), the result in register 0.

    Args:
        inputs: arrays of one length, of 2, 4 or 8 bytes an element.
        result: type of the result.

    Returns:
        ``[n]`` of that type.
    """
    count = inputs[0].size
    lines = ["mov.u32 %r30, %tid.x;", "mov.u32 %r31, %ctaid.x;", f"mad.lo.s32 %r30, %r31, {_THREADS}, %r30;"]
    for i, array in enumerate(inputs):
        size = array.dtype.itemsize
        lines.append(f"mad.wide.u32 %d30, %r30, {size}, %at{i + 1};")
        lines.append(f"ld.global.b{8 * size} {_FILES[size]}{i + 1}, [%d30];")
    size = np.dtype(result).itemsize
    ending = f"mad.wide.u32 %d30, %r30, {size}, %at0;\nst.global.b{8 * size} [%d30], {_FILES[size]}0;"
    text = program("\n".join([*lines, body, ending]), len(inputs) + 1)
    padded = -(-count // _THREADS) * _THREADS
    out = np.zeros(padded, result)
    run(
        text,
        "snippet",
        padded // _THREADS,
        _THREADS,
        [out, *(np.resize(array, padded) for array in inputs)],
        seed=seed,
    )
    return out[:count]


def launch(
    body: str, arrays: Sequence[Array], *, threads: int = 32, shared: int = 0, seed: int = 0, files: str = ""
) -> Report:
    """Run one block of a body that does its own loads and stores."""
    return run(program(body, len(arrays), shared, files), "snippet", 1, threads, list(arrays), seed=seed)
