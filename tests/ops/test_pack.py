"""Dense packing against a loop over bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyquant.errors import DTypeError, GridError, ShapeError
from pyquant.ops.pack import pack, unpack


def pack_by_bits(codes: list[int], bits: int, fill: int) -> list[int]:
    """One row: every bit written by itself."""
    words = -(-len(codes) * bits // 32)
    stream = 0
    for k in range(words * 32 // bits + 1):
        code = codes[k] if k < len(codes) else fill
        for bit in range(bits):
            stream |= ((code >> bit) & 1) << (k * bits + bit)
    unsigned = [(stream >> (32 * w)) & 0xFFFFFFFF for w in range(words)]
    return [w - (1 << 32) if w >= 1 << 31 else w for w in unsigned]


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(2, 8),
    signed=st.booleans(),
    rows=st.integers(1, 4),
    length=st.integers(1, 75),
    seed=st.integers(0, 10**6),
)
def test_round_trip_and_layout(bits: int, signed: bool, rows: int, length: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    low, high = (-(1 << (bits - 1)), 1 << (bits - 1)) if signed else (0, 1 << bits)
    codes = torch.randint(low, high, (rows, length), generator=generator)
    zero = torch.randint(low, high, (rows,), generator=generator)
    packed = pack(codes, bits, zero)
    assert packed.dtype == torch.int32
    assert packed.tolist() == [
        pack_by_bits(row, bits, int(z)) for row, z in zip(codes.tolist(), zero, strict=True)
    ]
    back = unpack(packed, bits, signed, length)
    assert back.dtype == torch.int32 and torch.equal(back, codes.int())


def test_without_zero_point_the_tail_is_zero() -> None:
    assert pack(torch.tensor([[1, 2, 3]]), 4).tolist() == [[0x321]]


@pytest.mark.parametrize("bits", [0, 1, 9, -4])
def test_bits_outside_2_to_8(bits: int) -> None:
    with pytest.raises(GridError, match="2 to 8"):
        pack(torch.zeros(1, 4, dtype=torch.int64), bits)
    with pytest.raises(GridError, match="2 to 8"):
        unpack(torch.zeros(1, 4, dtype=torch.int32), bits, True, 4)


def test_bad_codes() -> None:
    with pytest.raises(GridError, match="do not fit 4 bits"):
        pack(torch.tensor([[16]]), 4)
    with pytest.raises(GridError, match="do not fit 4 bits"):
        pack(torch.tensor([[-9]]), 4)
    with pytest.raises(DTypeError, match="integers"):
        pack(torch.zeros(2, 2), 4)
    with pytest.raises(ShapeError, match=r"\[N, K\]"):
        pack(torch.zeros(2, dtype=torch.int64), 4)
    with pytest.raises(ShapeError, match="one code a row"):
        pack(torch.zeros(2, 2, dtype=torch.int64), 4, torch.zeros(3, dtype=torch.int64))


def test_bad_words() -> None:
    with pytest.raises(ShapeError, match="words"):
        unpack(torch.zeros(2, 3, dtype=torch.int32), 4, True, 8)
    with pytest.raises(DTypeError, match="int32"):
        unpack(torch.zeros(2, 1, dtype=torch.int64), 4, True, 8)
