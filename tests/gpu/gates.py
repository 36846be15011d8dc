"""What every compiled kernel has to hold to before it ships; each gate says what is wrong with one kernel, or None."""

from __future__ import annotations

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
    """The main loop loads its operands 16 bytes a thread.

    Runs of a length that 16 does not divide begin anywhere, and Triton loads them byte by byte; so it does where a step of a
    convolution runs over taps, as in the first layer.
    """
    if kind_of(artefact) is None or (artefact.backend == "triton" and _begins_anywhere(artefact)):
        return None
    code = artefact.code
    widths = {opcode: load_width(opcode) for opcode in code.loop or code.opcodes if is_load(opcode)}
    scales = op_of(artefact) in GROUPED
    narrow = [
        opcode
        for opcode, width in widths.items()
        if width < 16 and not (scales and first_word(opcode) == "LDG")
    ]
    if not narrow and max(widths.values(), default=0) >= 16:
        return None
    return f"{artefact}: loads by their bytes a thread {dict(sorted(code.load_widths.items()))}"


def _begins_anywhere(artefact: Artefact) -> bool:
    d = artefact.description
    if op_of(artefact) == "conv_s8":
        return d.channels // d.groups % 16 != 0 or not artefact.constants["BY_TAP"]
    return d.k % 16 != 0


def tensor_share(artefact: Artefact) -> str | None:
    """On sm_80 enough of the main loop multiplies, where products rather than bytes bound the time.

    Not where every group of K has a scale: a lane has four results of an instruction of the tensor cores and makes a float of each
    group's in three, so that groups of 128 have twelve ordinary instructions for two of int4: 14 % at best, on any tile.
    """
    if (
        artefact.target != "sm_80"
        or op_of(artefact) not in SHARED_BY
        or getattr(artefact.description, "group", 0)
    ):
        return None
    (device,) = devices(artefact.target)
    done, share = work(artefact), artefact.code.tensor_share
    if bound_us(device, done.bytes_minimum, done.operations, done.kind) == bound_us(
        device, done.bytes_minimum, 0, None
    ):
        return None
    if share is not None and share >= TENSOR_SHARE:
        return None
    loop = artefact.code.loop
    tensor = sum(loop[opcode] for opcode in loop if is_tensor(opcode))
    return f"{artefact}: {tensor} of {sum(loop.values())} instructions, {tensor / max(1, sum(loop.values())):.1%}"


GATES = {gate.__name__: gate for gate in (spills, launches, tensor_cores, wide_loads, tensor_share)}
