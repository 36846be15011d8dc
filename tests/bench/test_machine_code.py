"""Disassembly of both vendors, against figures counted by hand."""

import subprocess

import pytest

from bench import gcn, sass
from bench.machine_code import Kernel, is_load, is_tensor, load_width

# The shape of an sm_90 kernel of Triton's, shortened: a loop from 0x30 to 0x90 that waits at 0xc0, out of line; then padding.
LOOP = """
Resource usage:
 Common:
  GLOBAL:0
 Function gemm:
  REG:90 STACK:8 SHARED:21504 LOCAL:0 CONSTANT[0]:564 TEXTURE:0 SURFACE:0 SAMPLER:0

	code for sm_90a
	.target	sm_90a

		Function : gemm
	.headerflags	@"EF_CUDA_ACCELERATORS EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0000*/                   LDG.E.CONSTANT R2, [R4.64] ;              /* 0x00000a00ff017624 */
                                                                             /* 0x000fe400078e00ff */
        /*0010*/              @!P3 BRA 0xa0 ;                                /* 0x0000000000027919 */
        /*0020*/                   STL.S16 [R1+0x8], R3 ;                    /* 0x0000000000027919 */
        /*0030*/               @P1 LDGSTS.E.BYPASS.LTC128B.128 [R3], [R4.64], P3 ; /* 0x0000000004037fae */
        /*0040*/              @!P0 BRA 0xc0 ;                                /* 0x0000000000027919 */
        /*0050*/                   IGMMA.64x128x32.S8.S8 R24, gdesc[UR8], R24, !UPT ; /* 0x0000000000027919 */
        /*0060*/                   HFMA2.MMA R4, -RZ, RZ, 0, 0 ;             /* 0x0000000000027919 */
        /*0070*/                   LDGSTS.E.64 [R9], [R6.64], P0 ;           /* 0x0000000006097fae */
        /*0080*/                   UTMALDG.2D [UR8], [UR6] ;                 /* 0x0000000006097fae */
        /*0090*/                   BRA.U !UP0, 0x30 ;                        /* 0xffffffeff000008947 */
        /*00a0*/                   LDL.LU R3, [R1+0x8] ;                     /* 0x000000000000794d */
        /*00b0*/                   EXIT ;                                    /* 0x000000000000794d */
        /*00c0*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R4 ; /* 0x000000000000794d */
        /*00d0*/              @!P0 BRA 0xc0 ;                                /* 0x000000000000794d */
        /*00e0*/                   BRA 0x50 ;                                /* 0x000000000000794d */
        /*00f0*/                   BRA 0xf0;                                 /* 0xfffffff000007947 */
        /*0100*/                   NOP;                                      /* 0x0000000000007918 */
		..........
"""
WAVES = """
	.amdgcn_target "amdgpu9.42-amd-amdhsa-unknown-gfx942"
	.globl	gemm                            ; -- Begin function gemm
gemm:                                       ; @gemm
.Lfunc_begin0:
	s_load_dwordx2 s[2:3], s[0:1], 0x0
	s_cbranch_scc1 .LBB0_2
.LBB0_1:                                ; =>This Inner Loop Header: Depth=1
	.loc	1 110 13 is_stmt 1              ; kernels.py:110:13
	global_load_dwordx4 v[4:7], v[2:3], off
	buffer_load_ubyte v9, v2, s[4:7], 0 offen
	v_mfma_i32_32x32x16_i8 v[0:15], v[16:17], v[58:59], v[0:15]
	s_cbranch_scc0 .LBB0_1
.LBB0_2:                                ; %._crit_edge
	global_store_dwordx4 v[0:1], v[2:5], off
	s_endpgm
.Lfunc_end0:
	s_nop 0
amdhsa.kernels:
  - .agpr_count:     4
    .group_segment_fixed_size: 8192
    .private_segment_fixed_size: 16
    .vgpr_count:     77
    .vgpr_spill_count: 3
"""


def test_figures_and_main_loop_of_sass():
    (kernel,) = sass.parse(LOOP)
    # The KiB that sm_90's driver keeps is not the kernel's.
    assert (kernel.name, kernel.target, kernel.registers, kernel.shared) == ("gemm", "sm_90a", 90, 20480)
    assert (kernel.stack, kernel.spills) == (8, 2)
    # 0x30 to 0x90, and the three instructions that wait; not HFMA2.MMA among the tensor cores'.
    assert sum(kernel.loop.values()) == 10 and kernel.tensor_share == 1 / 10
    assert kernel.tensor_opcodes == {"IGMMA.64x128x32.S8.S8"}
    assert kernel.load_widths == {16: 2, 8: 1}
    # All but the padding.
    assert sum(kernel.opcodes.values()) == 15 and "NOP" not in kernel.opcodes


def test_a_jump_with_its_condition_among_the_operands_may_go_on():
    """With the jump over the loop gone, only going on from ``BRA.U !UP0, 0x30`` leads to the end."""
    (kernel,) = sass.parse(LOOP.replace("@!P3 BRA 0xa0", "     NOP"))
    assert kernel.opcodes["EXIT"] == 1 and kernel.opcodes["LDL.LU"] == 1


def test_a_fatbin_has_a_kernel_an_architecture():
    both = sass.parse(LOOP + LOOP.replace("sm_90a", "sm_80").replace("REG:90", "REG:72"))
    assert [(kernel.target, kernel.registers, kernel.shared) for kernel in both] == [
        ("sm_90a", 90, 20480),
        ("sm_80", 72, 21504),
    ]


def test_without_a_tensor_core_the_loop_that_loads_is_the_main_loop():
    (kernel,) = sass.parse(LOOP.replace("IGMMA.64x128x32.S8.S8", "IDP.4A.S8.S8"))
    assert kernel.tensor_share == 0 and kernel.load_widths == {16: 2, 8: 1} and kernel.tensor_opcodes == set()


def test_without_a_loop_all_loads_count():
    (kernel,) = sass.parse(LOOP.replace("BRA.U !UP0, 0x30", "NOP"))
    assert not kernel.loop and kernel.tensor_share is None and kernel.load_widths == {4: 1, 8: 1, 16: 2}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("BRA 0x50", "BRA 0x58", "no instruction at the goal of BRA"),
        ("BRA 0x50", "BRX R2 -0x40", "known only when it runs"),
        ("HFMA2.MMA R4", "BSYNC B0", "joins elsewhere"),
        (" Function gemm:", " Function other:", "no figures"),
        ("BRA 0xa0", "BRA 0x60", "more than one way in"),
    ],
)
def test_sass_that_cannot_be_followed_is_refused(old, new, message):
    assert old in LOOP
    with pytest.raises(sass.SassError, match=message):
        sass.parse(LOOP.replace(old, new))


def test_figures_and_main_loop_of_amd():
    kernel = gcn.parse(WAVES)
    assert (kernel.name, kernel.target, kernel.registers) == ("gemm", "gfx942", 77)
    assert (kernel.stack, kernel.spills, kernel.shared) == (16, 3, 8192)
    assert sum(kernel.loop.values()) == 4 and kernel.tensor_share == 1 / 4
    assert kernel.tensor_opcodes == {"v_mfma_i32_32x32x16_i8"} and kernel.load_widths == {16: 1, 1: 1}
    assert sum(kernel.opcodes.values()) == 8 and "s_nop" not in kernel.opcodes


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("s_cbranch_scc0 .LBB0_1", "s_cbranch_scc0 .LBB0_9", "no label '.LBB0_9'"),
        (".vgpr_spill_count", ".other", "no figure .vgpr_spill_count"),
        (".globl", ".local", "not the assembly of a kernel"),
        ("\ngemm:", "\nother:", "no code of gemm"),
    ],
)
def test_assembly_that_cannot_be_followed_is_refused(old, new, message):
    assert old in WAVES
    with pytest.raises(gcn.AssemblyError, match=message):
        gcn.parse(WAVES.replace(old, new))


@pytest.mark.parametrize(
    ("opcode", "width"),
    [
        ("LDG.E.128.CONSTANT", 16),
        ("LDG.E.LTC128B.64", 8),
        ("LDG.E.LTC128B", 4),
        ("LDG.E.U16", 2),
        ("LDG.E.S8.CONSTANT", 1),
        ("LDG.E.ENL2.256", 32),
        ("LDGSTS.E.BYPASS.128", 16),
        ("UTMALDG.2D", 16),
        ("global_load_dwordx3", 12),
        ("global_load_dword", 4),
        ("buffer_load_short_d16", 2),
        ("global_load_sbyte", 1),
    ],
)
def test_widths_of_loads(opcode, width):
    assert is_load(opcode) and load_width(opcode) == width


def test_what_is_a_tensor_core_instruction_and_a_load():
    tensor = [
        "IMMA.16864.S4.S4",
        "HMMA.16816.F32",
        "HGMMA.64x128x16.F32",
        "UTCIMMA",
        "UTCHMMA.2CTA",
        "v_mfma_f32_32x32x8_f16",
    ]
    other = ["HFMA2.MMA", "IMAD.WIDE", "UTCBAR", "UTCATOMSWS.AND", "UTCCP", "LDSM.16.M88.4", "v_fma_f32"]
    assert all(map(is_tensor, tensor)) and not any(map(is_tensor, other))
    assert not any(
        map(is_load, ["LDS.128", "LDL", "STG.E.128", "ds_read_b64", "s_load_dwordx4", "LDSM.16.M88.4"])
    )


def test_a_file_that_is_no_binary_is_refused(tmp_path):
    if sass.disassembler() is None:
        pytest.skip("no cuobjdump: it comes with Triton's wheel and with a CUDA toolkit.")
    bad = tmp_path / "bad.cubin"
    bad.write_text("hello")
    with pytest.raises(sass.SassError, match=r"bad\.cubin: .*[Ii]nvalid"):
        sass.read(bad)


def test_what_the_tool_prints_is_what_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sass, "disassembler", lambda: tmp_path / "cuobjdump")
    monkeypatch.setattr(
        subprocess, "run", lambda words, **options: subprocess.CompletedProcess(words, 0, LOOP, "")
    )
    assert [kernel.name for kernel in sass.read(tmp_path / "gemm.cubin")] == ["gemm"]
    monkeypatch.setattr(
        subprocess, "run", lambda words, **options: subprocess.CompletedProcess(words, 0, "", "")
    )
    with pytest.raises(sass.SassError, match="holds no machine code"):
        sass.read(tmp_path / "gemm.cubin")
    monkeypatch.setattr(sass, "disassembler", lambda: None)
    with pytest.raises(sass.SassError, match="no cuobjdump"):
        sass.read(tmp_path / "gemm.cubin")


def test_an_empty_kernel_has_no_share():
    assert Kernel("none", "sm_80", 8, 0, 0, 0, {"EXIT": 1}, {}).tensor_share is None
