"""Bytes four to a register: what Triton would otherwise do to each by itself, at eight times the instructions.

The compiler takes a tensor of bytes apart into one register each before it computes. Between a tensor core's load
and its product there is no time for that. With ``PTX`` the four bytes of a register stay together; without, as in
the interpreter and on AMD, plain Triton computes the same.
"""

import triton
import triton.language as tl


@triton.jit
def flip(codes, mask: tl.constexpr, PTX: tl.constexpr):
    """Bytes with the bits of ``mask`` flipped, as int8: ``0x80`` takes 128 from uint8 codes, 0 changes nothing.

    Even a flip of nothing pays with ``PTX``: behind an operation of two operands Triton does not keep the bytes of
    the next product in registers of their own over the end of the loop, which costs more than the product.
    """
    if PTX:
        masks = tl.full(codes.shape, mask, tl.uint8)
        return tl.inline_asm_elementwise(
            "xor.b32 $0, $1, $2;", "=r,r,r", [codes, masks], dtype=tl.int8, is_pure=True, pack=4
        )
    return (codes ^ mask).to(tl.int8, bitcast=True)


@triton.jit
def flip_each(codes, masks, PTX: tl.constexpr):
    """As :func:`flip` with a mask for each byte, uint8 of a shape that broadcasts to that of ``codes``."""
    masks = tl.broadcast_to(masks, codes.shape)
    if PTX:
        return tl.inline_asm_elementwise(
            "xor.b32 $0, $1, $2;", "=r,r,r", [codes, masks], dtype=tl.int8, is_pure=True, pack=4
        )
    return (codes ^ masks).to(tl.int8, bitcast=True)


@triton.jit
def low_nibbles(codes, PTX: tl.constexpr):
    """16 times the two's-complement code in the lower half of each uint8, as int8."""
    if PTX:
        return tl.inline_asm_elementwise(
            "{ .reg .b32 t; shl.b32 t, $1, 4; and.b32 $0, t, 0xF0F0F0F0; }",
            "=r,r",
            [codes],
            dtype=tl.int8,
            is_pure=True,
            pack=4,
        )
    return (codes << 4).to(tl.int8, bitcast=True)


@triton.jit
def high_nibbles(codes, PTX: tl.constexpr):
    """16 times the two's-complement code in the upper half of each uint8, as int8."""
    if PTX:
        return tl.inline_asm_elementwise(
            "and.b32 $0, $1, 0xF0F0F0F0;", "=r,r", [codes], dtype=tl.int8, is_pure=True, pack=4
        )
    return (codes & 0xF0).to(tl.int8, bitcast=True)
