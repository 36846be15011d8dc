"""An emulator of the PTX that nvcc and Triton write for sm_80: real artefacts run without a GPU, and held to the rules.

It is adversarial where the rules leave a choice and strict where they do not:

- warps run in random order (by ``seed``), blocks too; registers and shared memory start out poisoned;
- cp.async lands at the wait that asks for it and not before; bytes in flight may not be touched;
- every access is checked for bounds and alignment, and shared memory for races between barriers;
- barriers that not all threads reach, unknown opcodes, modifiers and forms are errors;
- approximate instructions err at random within their bound, so that no result's bytes may hang on them;
- everything else is exact: integer and float arithmetic, conversions and tensor cores' sums round as PTX says.

What it does not know: generic addresses, local memory, calls, barriers of some threads, blocks that wait for each other.
"""

from .errors import EmulatorError
from .launch import run
from .report import Report, together

__all__ = ["EmulatorError", "Report", "run", "together"]
