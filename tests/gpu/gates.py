"""What every compiled kernel has to hold to before it ships; each gate says what is wrong with one kernel, or None."""

from __future__ import annotations

import math
import re
from collections import Counter

from bench.compiled import Artefact
from bench.machine_code import first_word, is_load, is_tensor, load_width
from bench.roofline import bound_us, devices
from bench.traffic import work

# Bytes of shared memory that one block may have: CUDA programming guide, "Compute capabilities"; AMD's LDS.
SHARED = {
    "sm_80": 163 * 1024,
    "sm_86": 99 * 1024,
    "sm_89": 99 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "sm_120": 99 * 1024,
    "gfx942": 64 * 1024,
}
INT4 = {"gemm_w4a4"}
INT8 = {"gemm_s8", "gemm_w4a8", "conv_s8"}
HALF = {"gemm_w4a16"}
# Codes of these are summed or rounded one by one; nothing multiplies matrices.
NONE = {"fake_quantize", "quantize_rows", "depthwise_s8", "gemm_w4a16_sum"}
# How opcodes of the tensor cores start: those of a warp, and those that an architecture has for whole blocks.
# A group of 32 products fills half of an int4 instruction of 64: it takes the one of 32.
WARP_OF_32 = ("IMMA.16832.S4.S4", "IMMA.16832.U4.S4")
WARP = {
    "int4": ("IMMA.16864.S4.S4", "IMMA.16864.U4.S4"),
    "int8": ("IMMA.16832.S8.S8", "IMMA.16832.U8.S8"),
    "half": ("HMMA.16816.F32",),
}
WIDE = {
    ("sm_90", "int8"): "IGMMA.",
    ("sm_90", "half"): "HGMMA.",
    ("sm_100", "int8"): "UTCIMMA",
    ("sm_100", "half"): "UTCHMMA",
}
MATRIX = {"int8": "v_mfma_i32_", "half": "v_mfma_f32_"}
# On sm_80 at least so much of the main loops of W4A4 and W8A8 are instructions of the tensor cores.
TENSOR_SHARE, SHARED_BY = 0.40, {"gemm_s8", "gemm_w4a4"}
# Bits of a code of x and of the weight, as they are stored.
BITS = {"gemm_s8": (8, 8), "conv_s8": (8, 8), "gemm_w4a4": (4, 4), "gemm_w4a8": (8, 4), "gemm_w4a16": (16, 4)}
# These load scales of groups in their main loop, a few bytes at a time, beside operands that asynchronous copies bring.
GROUPED = {"gemm_w4a16", "gemm_w4a8", "gemm_w4a4"}


def op_of(artefact: Artefact) -> str:
    """The op without the type of its result."""
    return artefact.op.removesuffix("_float")


def kind_of(artefact: Artefact) -> str | None:
    """What its tensor cores multiply: ``int4``, ``int8``, ``half``; None where it has no use for them."""
    op = op_of(artefact)
    kinds = {"int4": INT4, "int8": INT8, "half": HALF}
    found = [kind for kind, ops in kinds.items() if op in ops and artefact.kernel != "add_splits_kernel"]
    assert found or op in NONE or artefact.kernel == "add_splits_kernel", f"no gate knows the op {op}"
    return found[0] if found else None


def spills(artefact: Artefact) -> str | None:
    """Nothing that belongs into registers lies in memory."""
    code = artefact.code
    if code.spills or code.stack:
        return f"{artefact}: {code.spills} spills, {code.stack} bytes of stack, {code.registers} registers"
    return None


def launches(artefact: Artefact) -> str | None:
    """A block fits on its device."""
    if artefact.shared > SHARED[artefact.target]:
        return f"{artefact}: {artefact.shared} bytes of shared memory, of {SHARED[artefact.target]}"
    if artefact.blocks < 1:
        return f"{artefact}: {artefact.threads} threads of {artefact.code.registers} registers do not fit"
    return None


def tensor_cores(artefact: Artefact) -> str | None:
    """It multiplies on the tensor cores that it is meant for, and on no others."""
    kind, found = kind_of(artefact), artefact.code.tensor_opcodes
    if kind is None:
        return f"{artefact}: {sorted(found)} where nothing is to be multiplied" if found else None
    wanted = _wanted(artefact, kind)
    if found and all(opcode.startswith(wanted) for opcode in found):
        return None
    return f"{artefact}: {sorted(found) or 'no tensor cores'}, wanted {' or '.join(wanted)}"


def _wanted(artefact: Artefact, kind: str) -> tuple[str, ...]:
    if artefact.target == "gfx942":
        return (MATRIX[kind],)
    if kind == "int4" and artefact.description.group == 32:
        return WARP_OF_32
    wide = WIDE.get((artefact.target, kind))
    if wide is None or artefact.backend == "cuda":
        return WARP[kind]
    # Instructions of whole blocks take 64 rows and four warps; smaller tiles have those of a warp.
    return (wide,) if artefact.constants["BLOCK_M"] >= 64 else (wide, *WARP[kind])


def wide_loads(artefact: Artefact) -> str | None:
    """The main loop loads its operands 16 bytes a thread, counted by the bytes that a step needs.

    Every copy to shared memory has to be one of an operand, and every load on AMD, where nothing else tells them apart; scales of
    groups may be loads of any width beside the copies, on AMD of 4 bytes at most or of 16. Two operands may be narrower. Rows of a
    length that 16 does not divide begin anywhere, and Triton loads them byte by byte; so it does where a step of a convolution runs
    over taps, as in the first layer. And where one tile has all the rows of x, these are so few that a step has less than 16 bytes
    of them for every thread; weights are what the time goes into there, and are never excused.
    """
    if kind_of(artefact) is None:
        return None
    wanted, scales = _operand_loads(artefact), op_of(artefact) in GROUPED
    if not wanted:
        return None
    code = artefact.code
    operands, others = Counter[int](), Counter[int]()
    for opcode, count in (code.loop or code.opcodes).items():
        if is_load(opcode):
            copied = artefact.target == "gfx942" or first_word(opcode) == "LDGSTS"
            (operands if copied else others)[load_width(opcode)] += count
    # A loop may hold several steps.
    steps = _steps(artefact) if artefact.target == "gfx942" else operands[16] // max(1, wanted[16])
    rest = Counter(operands)
    rest.subtract({width: count * steps for width, count in wanted.items()})
    left = {width: count for width, count in rest.items() if count}
    if artefact.target == "gfx942" and min(left.values(), default=0) > 0:
        others.update(left)
        left = {}
        scales = scales and set(others) <= {2, 4, 16}
    if (
        steps
        and not left
        and (not others or scales or (_begins_anywhere(artefact) and set(others) <= {1, 2}))
    ):
        return None
    return (
        f"{artefact}: loads by their bytes a thread {dict(sorted(code.load_widths.items()))}, "
        f"a step's operands need {dict(sorted(wanted.items()))}"
    )


def _operand_loads(artefact: Artefact) -> Counter[int]:
    """Bytes of a load -> how many such loads of operands each thread has in a step."""
    tile, d, op = artefact.constants, artefact.description, op_of(artefact)
    x_bits, weight_bits = BITS[op]
    weight = tile["BLOCK_N"] * tile["BLOCK_K"] * weight_bits // 8
    x = tile["BLOCK_M"] * tile["BLOCK_K"] * x_bits // 8
    # Two nibbles of a byte multiply two stretches of x, which Triton loads one by one.
    stretches = 2 if artefact.backend == "triton" and weight_bits < x_bits else 1
    wide = 16 * artefact.threads
    found = Counter[int]()
    anywhere = artefact.backend == "triton" and _begins_anywhere(artefact)
    # Codes of four bits are repacked, and padded to whole steps.
    if not anywhere or weight_bits < x_bits:
        found[16] += -(-weight // wide)
    if not anywhere:
        few = artefact.backend == "triton" and op != "conv_s8" and d.m <= tile["BLOCK_M"]
        if few and x // stretches < wide:
            found[x // stretches // artefact.threads] += stretches
        else:
            found[16] += stretches * -(-x // stretches // wide)
    return found


def _steps(artefact: Artefact) -> int:
    """How many steps' products are in the loop of a kernel for AMD, by the shapes that its opcodes name."""
    done = 0
    for opcode, count in artefact.code.loop.items():
        shape = re.search(r"_(\d+)x(\d+)x(\d+)_?", opcode) if is_tensor(opcode) else None
        if shape is not None:
            done += count * math.prod(map(int, shape.groups()))
    tile = [artefact.constants[size] for size in ("BLOCK_M", "BLOCK_N", "BLOCK_K")]
    return done * (artefact.threads // 64) // math.prod(tile)


def _begins_anywhere(artefact: Artefact) -> bool:
    d = artefact.description
    if op_of(artefact) == "conv_s8":
        return d.channels // d.groups % 16 != 0 or not artefact.constants["BY_TAP"]
    return d.k % 16 != 0


def tensor_share(artefact: Artefact) -> str | None:
    """On sm_80 enough of the main loop multiplies, where products rather than bytes bound the time.

    Not where every group of K has a scale: a lane has four results of an instruction of the tensor cores and makes a float of each
    group's in three, so that groups of 128 have twelve ordinary instructions for two of int4: 14 % at best, on any tile.
    Nor where the result is so small that tiles of 128 x 128, which reach the share, are too few for half of the multiprocessors:
    a smaller tile loads more for each of its products, and keeps more multiprocessors at it.
    """
    if (
        artefact.target != "sm_80"
        or op_of(artefact) not in SHARED_BY
        or getattr(artefact.description, "group", 0)
    ):
        return None
    (device,) = devices(artefact.target)
    shape = artefact.description
    if -(-shape.m // 128) * -(-shape.n // 128) <= device.processors // 2:
        return None
    done, share = work(artefact), artefact.code.tensor_share
    by_bytes = bound_us(device, done.bytes_minimum, 0, None)
    if bound_us(device, done.bytes_minimum, done.operations_minimum, done.kind) == by_bytes:
        return None
    if share is not None and share >= TENSOR_SHARE:
        return None
    loop = artefact.code.loop
    tensor = sum(loop[opcode] for opcode in loop if is_tensor(opcode))
    return f"{artefact}: {tensor} of {sum(loop.values())} instructions, {tensor / max(1, sum(loop.values())):.1%}"


GATES = {gate.__name__: gate for gate in (spills, launches, tensor_cores, wide_loads, tensor_share)}
