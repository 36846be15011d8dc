"""What a compiler made of a kernel: its registers and memory, and the instructions of its main loop. Read, never run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

# Multiply-adds on NVIDIA's tensor cores, by the first word of an opcode: sm_80's, sm_90's of a warp group, sm_100's on tensor memory.
# HFMA2.MMA is none of them.
TENSOR = frozenset(
    f"{unit}{kind}MMA" for unit in ("", "UTC") for kind in ("I", "H", "Q", "O", "B", "D", "IG", "HG", "QG", "BG")
)  # fmt: skip
# AMD's, by how they start.
MATRIX = ("v_mfma_", "v_smfmac_")
GLOBAL_LOADS = frozenset({"LDG", "LDGSTS", "UTMALDG", "UBLKCP"})
VECTOR_LOADS = ("global_load_", "buffer_load_")
# Copies of NVIDIA's tensor memory accelerator move whole boxes: as wide as memory is.
BULK = frozenset({"UTMALDG", "UBLKCP"})
# Bytes of a thread's load by a word of the opcode; a word of four bytes where none says more.
WIDTHS = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
VECTOR_WIDTHS = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "short": 2, "ushort": 2, "sshort": 2}


@dataclass(frozen=True)
class Kernel:
    """One kernel of one binary.

    Args:
        name: of its entry.
        target: ``sm_80`` or ``gfx942``, say; ``sm_90a`` where the binary is of that architecture only.
        registers: a thread's.
        stack: bytes of memory of its own a thread needs.
        spills: what went there instead of staying in a register: on NVIDIA the instructions that load or store it, on AMD registers.
        shared: static shared memory of a block in bytes; what a launch adds is not in the binary.
        opcodes: how many of each, of all that can run.
        loop: the same of the main loop, each instruction once; empty where there is none.
    """

    name: str
    target: str
    registers: int
    stack: int
    spills: int
    shared: int
    opcodes: Mapping[str, int]
    loop: Mapping[str, int]

    @property
    def tensor_share(self) -> float | None:
        """Tensor-core instructions of those of the main loop; None without a loop."""
        issued = sum(self.loop.values())
        return None if not issued else sum(self.loop[op] for op in self.loop if is_tensor(op)) / issued

    @property
    def tensor_opcodes(self) -> frozenset[str]:
        """Tensor-core opcodes of the whole kernel."""
        return frozenset(opcode for opcode in self.opcodes if is_tensor(opcode))

    @property
    def load_widths(self) -> dict[int, int]:
        """Bytes that a thread's global load of the main loop moves -> how many such loads; of the whole kernel without a loop."""
        found: Counter[int] = Counter()
        for opcode, count in (self.loop or self.opcodes).items():
            if is_load(opcode):
                found[load_width(opcode)] += count
        return dict(found)


def first_word(opcode: str) -> str:
    """``IMMA`` of ``IMMA.16832.S8.S8``."""
    return opcode.partition(".")[0]


def is_tensor(opcode: str) -> bool:
    """Whether it multiplies on tensor cores."""
    return first_word(opcode) in TENSOR or opcode.startswith(MATRIX)


def is_load(opcode: str) -> bool:
    """Whether it reads global memory into registers or shared memory."""
    return first_word(opcode) in GLOBAL_LOADS or opcode.startswith(VECTOR_LOADS)


def load_width(opcode: str) -> int:
    """Bytes that a global load moves for one thread."""
    if first_word(opcode) in BULK:
        return 16
    if opcode.startswith(VECTOR_LOADS):
        return next((VECTOR_WIDTHS[word] for word in opcode.split("_")[2:] if word in VECTOR_WIDTHS), 1)
    return next((WIDTHS[word] for word in opcode.split(".") if word in WIDTHS), 4)
