"""What is shipped compiles for every target without a GPU: nothing spilled, within a block's shared memory."""

import re
from dataclasses import replace
from functools import cache

import pytest

triton = pytest.importorskip("triton", reason="pip install 'pyquant-engine[gpu]'")
from pyquant.kernels import shipped as ahead  # noqa: E402
from pyquant.kernels import targets  # noqa: E402

# Seconds a compilation: the fast tests take the first case of every kernel on the oldest target of either maker.
FAST = ("sm_80", "gfx942")
# The instruction a product has to become: NVIDIA's in PTX, AMD's in assembly.
INT8 = r"mma\.sync\S*\.s8\.s8|wgmma\S*\.s8\.s8|tcgen05\.mma\S*kind::i8"
HALF = r"mma\.sync\S*\.b?f16\.b?f16|wgmma\S*\.b?f16\.b?f16|tcgen05\.mma\S*kind::f16"
PRODUCTS = {
    "gemm_s8_kernel": INT8,
    "gemm_w4a8_kernel": INT8,
    "conv_s8_kernel": INT8,
    "gemm_w4a16_kernel": HALF,
}


@cache
def first_of_each_kernel(target):
    return list({one.function.__name__: one for one in reversed(ahead.shipped(target))}.values())


def check(one, target):
    compiled = ahead.compile(one, target)
    assert compiled.spills == 0, f"{compiled.spills} bytes spilled with {compiled.registers} registers"
    assert compiled.shared <= targets.TARGETS[target].shared
    assert compiled.registers * compiled.threads <= 65_536 or target == "gfx942"
    if compiled.ptx is not None:
        assert "fma.rn.f32" not in compiled.ptx, "a product was fused with a sum"
        assert re.search(PRODUCTS.get(one.function.__name__, ""), compiled.ptx)


@pytest.mark.parametrize(
    ("target", "one"), [(t, one) for t in FAST for one in first_of_each_kernel(t)], ids=str
)
def test_a_selection_compiles(target, one):
    check(one, target)


@pytest.mark.slow
@pytest.mark.parametrize("target", ahead.TARGETS)
def test_everything_compiles(target):
    wrong = {}
    for one in ahead.shipped(target):
        try:
            check(one, target)
        except AssertionError as error:
            wrong[str(one)] = str(error)
    assert wrong == {}


@pytest.mark.parametrize("target", ahead.TARGETS)
def test_every_tile_of_a_table_is_shipped(target):
    """A tile that no case chooses is one that no test ever compiles."""
    for module in ahead.TILED:
        chosen = {module.choose(d, target).tile for d in module.CASES.values()}
        assert chosen >= set(module.TILES[target]), f"{module.__name__}: {set(module.TILES[target]) - chosen}"


def test_a_spill_is_seen():
    """A tile too large for its warps: what the gate is there for."""
    one = next(one for one in ahead.shipped("sm_80") if str(one).startswith("gemm_s8-M4096-gemm"))
    wide = replace(one.configuration, tile=replace(one.configuration.tile, m=256))
    assert ahead.compile(replace(one, configuration=wide), "sm_80").spills > 0


def test_the_choice_can_be_printed():
    one = next(iter(ahead.TILED))
    said = str(one.choose(one.CASES["M4096"], "sm_80"))
    assert (
        said
        == "gemm_s8 on sm_80: 128x256x128, x_unsigned=True to_codes=True whole_k=True ptx=True, 8 warps, 3 stages"
    )
