"""Faults in the CUDA kernels' PTX that change nothing, each with its proof.

A proof looks at what the faulty line computes from, not at the names of its registers: see ``emulator/meaning.py``. So it holds for
this fault of this kernel and no other, whatever the compiler calls things.
"""

from __future__ import annotations

import re

from tests.gpu.emulator.meaning import Meaning
from tests.gpu.emulator.mutate import Mutant
from tests.gpu.emulator.source import Instruction, read

# The entries' arguments: csrc/cuda/OP.cu.
PARAMETERS = {
    "gemm_s8": "x w multiplier bias correction y m n k",
    "gemm_w4a4": "x w scale zero sums x_scale x_zero y m n row_bytes groups",
    "gemm_w4a8": "x w scale zero sums x_scale x_zero y m n row_bytes w_row_bytes groups group_size",
    "gemm_w4a16": "x w scale zero y partial m n k groups group_size",
}
# Every launch has rows of whole chunks of 16 bytes: pyquant.ops.cuda_layouts.aligned_rows. gemm_w4a16's are 8 numbers of 2 bytes.
_CHUNKS = {
    "gemm_s8": {"k": 16},
    "gemm_w4a4": {"row_bytes": 16},
    "gemm_w4a8": {"row_bytes": 16, "w_row_bytes": 16},
    "gemm_w4a16": {"k": 8},
}
_MOVED_BOUND = re.compile(r"setp\.(lt|le|gt|ge)\.[su]32")


def _vectors(text: str) -> list[list[str]]:
    """The operands of a product: the registers of D, A, B and C."""
    return [re.split(r",\s*", group) for group in re.findall(r"\{([^}]*)\}", text)]


def _by_row(operands: list[list[str]]) -> list[set[str]]:
    """The registers of D and C that have numbers of one row."""
    return [set(operands[i][half : half + 2]) for i in (0, 3) for half in (0, 2)]


class Proofs:
    """Of one kernel.

    Args:
        ptx: the kernel's text.
        entry: its name.
    """

    def __init__(self, ptx: str, entry: str) -> None:
        op = "_".join(entry.split("_")[:2])
        self.kernel = read(ptx, entry)
        self.meaning = Meaning(self.kernel, PARAMETERS[op].split(), _CHUNKS[op])
        self.at = {instruction.line: number for number, instruction in enumerate(self.kernel.instructions)}

    def why(self, mutant: Mutant) -> str | None:
        """Why a fault changes nothing, or None."""
        number = self.at[mutant.line]
        instruction = self.kernel.instructions[number]
        if mutant.kind == "bound shifted" and _MOVED_BOUND.fullmatch(instruction.op):
            return self._bound(instruction, number)
        if mutant.kind in ("fragment registers swapped", "sign lost") and instruction.op.startswith("mma"):
            return self._ones(mutant) or self._equal_addends(mutant, number)
        return None

    def _bound(self, instruction: Instruction, number: int) -> str | None:
        """A comparison with or without equality, which differ only where both are equal."""
        _, left, right = instruction.operands
        text, step = self.meaning.text(instruction), self.meaning.multiple(left)
        if re.fullmatch(r"-?\d+", right) and step > 1 and int(right) % step:
            return f"what is compared is a multiple of {step}: never {right}"
        if self.meaning.of(right) == "n" and step % 2 == 0 and self._only_where_n_is_odd(number):
            return "a pair's first column is even, and here n is odd"
        if text == "setp.gt.s32 row_bytes, 0":
            return "K is 1 at the least: the operators refuse a smaller one"
        return self._one_slab_more(text)

    @staticmethod
    def _one_slab_more(text: str) -> str | None:
        """Loops over slabs, ended one slab late, or begun where there is none.

        Behind the last slab both copies are of no bytes and fill shared memory with zeros (``SlabCopy::next``, ``left_ > 0``;
        gemm_w4a16's ``w_left > 0``). The products of zeros add nothing, and no group is left to end (``group < groups``; gemm_w4a16
        adds a group's sum early and then a sum of 0).
        """
        bytes_of_k = r"shr\(add\(add\(row_bytes, 63\), shr\(shr\(add\(row_bytes, 63\), 31\), 26\)\), 6\)"
        depth_of_split = r"min\(sub\(shr\(add\(add\(k, 63\).*, 6\), mul\(div\(.*, nctaid\.z\), ctaid\.z\)\), div\(.*, nctaid\.z\)\)"
        if re.fullmatch(
            rf"setp\.lt\.s32 \?, ({bytes_of_k}|{depth_of_split})|setp\.gt\.s32 {depth_of_split}, 0", text
        ):
            return "one slab more, which is zeros"
        return None

    def _ones(self, mutant: Mutant) -> str | None:
        """The product with ones: its columns are all the row's sum, so neighbours in a row may change places; and 1 has no sign."""
        before, after = (_vectors(text) for text in (mutant.before, mutant.after))
        ones = {self.meaning.of(name) for name in before[2]} in ({str(0x01010101)}, {str(0x11111111)})
        if ones and mutant.kind == "sign lost":
            kind = mutant.before.split()[0].split(".")
            kind[-2] = kind[-2].replace("s", "u")
            return "the second factor is ones" if mutant.after.split()[0] == ".".join(kind) else None
        if ones and before[1:3] == after[1:3] and _by_row(before) == _by_row(after):
            return "the second factor is ones: all columns of the product are the same"
        return None

    def _equal_addends(self, mutant: Mutant, number: int) -> str | None:
        """A group's first product, which is added to the same number everywhere."""
        before, after = (_vectors(text) for text in (mutant.before, mutant.after))
        constants = {self.meaning.constant_before(number, name) for name in before[3]}
        if mutant.kind == "sign lost" or before[:3] != after[:3] or len(constants) > 1 or None in constants:
            return None
        return f"what is added to is {constants.pop()} in all four registers"

    def _only_where_n_is_odd(self, number: int) -> bool:
        """Whether every way to an instruction takes the odd side of a branch on n's last bit."""
        return number not in self._reached(barred=True) and number in self._reached(barred=False)

    def _reached(self, barred: bool) -> set[int]:
        """The instructions that control can come to; ``barred``: where n is even."""
        instructions, labels = self.kernel.instructions, self.kernel.labels
        found: set[int] = set()
        left = [0]
        while left:
            at = left.pop()
            if at in found or at >= len(instructions):
                continue
            found.add(at)
            one = instructions[at]
            goes, ends = one.op.startswith("bra"), one.op.startswith(("bra", "ret")) and one.guard is None
            met = self._for_an_even_n(one.guard) if barred and goes and one.guard else None
            if met is not None:
                goes = ends = met != one.negated
            if goes:
                left.append(labels[one.operands[0]])
            if not ends:
                left.append(at + 1)
        return found

    def _for_an_even_n(self, operand: str) -> bool | None:
        """What a predicate is where n is even; None if other things decide it too."""
        if operand in ("0", "1", "-1"):
            return operand != "0"
        writers = self.meaning.writers.get(operand, [])
        if len(writers) != 1 or writers[0].guard is not None:
            return None
        asked = re.fullmatch(r"setp\.(eq|ne)\.[bsu]32 and\(n, 1\), ([01])", self.meaning.text(writers[0]))
        if asked:
            return (asked[1] == "eq") == (asked[2] == "0")
        if writers[0].op not in ("mov.pred", "not.pred", "xor.pred"):
            return None
        given = [self._for_an_even_n(source) for source in writers[0].operands[1:]]
        if None in given:
            return None
        # Of one factor or two: what is odd of the ones among them, turned round by `not`.
        return (sum(map(bool, given)) % 2 == 1) != (writers[0].op == "not.pred")
