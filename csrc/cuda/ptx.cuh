// The tensor-core and copy instructions of sm_80 and later that these kernels are written in, one function each. Under nvcc
// a function is its PTX instruction; under a plain C++ compiler executor.h gives the same names their documented meaning
// (PTX ISA, "Warp Level Matrix Instructions"), so the same kernels run, and are tested, where there is no GPU.
//
// In fragments, lane l of a warp has g = l / 4 and t = l % 4. Of a 16-row operand, a[0] and a[2] hold row g, a[1] and a[3]
// row g + 8; a[0] and a[1] hold the first half of K, a[2] and a[3] the second. b0 and b1 hold column g, the two halves of
// K. A register takes the 32 bits that begin at bit 32 t of its half of K, low codes first. d[0], d[1] are row g, columns
// 2t and 2t + 1; d[2], d[3] the same of row g + 8.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)

#define DEVICE __device__ __forceinline__

namespace pyquant {

// Shared memory is addressed by its own 32-bit addresses: a generic pointer would take twice the registers.
using SharedAddress = uint32_t;

// The block's dynamic shared memory, aligned to 128 bytes.
DEVICE SharedAddress shared_memory() {
  extern __shared__ __align__(128) uint8_t bytes[];
  return static_cast<uint32_t>(__cvta_generic_to_shared(bytes));
}

// Four 8 x 16-byte matrices: lane 8 i + r gives the address of row r of matrix i; lane l gets bytes 4t.. of row g of each.
DEVICE void ldmatrix_x4(uint32_t (&r)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

// 16 bytes of shared memory into four registers.
DEVICE void load_shared_16(uint32_t (&r)[4], SharedAddress from) {
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
}

// Four bytes of shared memory.
DEVICE uint32_t load_shared_4(SharedAddress from) {
  uint32_t word;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(from) : "memory");
  return word;
}

// One byte of shared memory.
DEVICE uint32_t load_shared_1(SharedAddress from) {
  uint32_t byte;
  asm volatile("ld.shared.u8 %0, [%1];" : "=r"(byte) : "r"(from) : "memory");
  return byte;
}

// The low two bytes of a register into shared memory.
DEVICE void store_shared_2(SharedAddress to, uint32_t pair) {
  asm volatile("st.shared.u16 [%0], %1;" ::"r"(to), "h"(static_cast<uint16_t>(pair)) : "memory");
}

// Begins to copy 16 bytes from global to shared memory past the registers and L1; zeros arrive, and nothing is read, if not `valid`.
DEVICE void cp_async_16(SharedAddress to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}

// Closes a group: the copies that this thread began since the last one.
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the N youngest groups of this thread are still under way; what came is its own until a barrier.
template <int N>
DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Every thread of the block arrives before any goes on, and sees what the others wrote to shared memory.
DEVICE void block_barrier() { __syncthreads(); }

// d += a b over 32 bytes of K: a is 16 rows of uint8, or int8 if kSigned; b is 8 columns of int8. Sums wrap.
template <bool kSigned>
DEVICE void mma_s8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kSigned) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// The same over 64 nibbles of K. From sm_90 on it assembles to some 200 ordinary instructions: for sm_80..89 only.
template <bool kSigned>
DEVICE void mma_s4(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kSigned) {
    asm("mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k64.row.col.s32.u4.s4.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// The same over 32 nibbles of K, one half of mma_s4's registers: a0 and a1, or a2 and a3, with b0 or b1.
template <bool kSigned>
DEVICE void mma_s4_half(int (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
  if constexpr (kSigned) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s4.s4.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a0), "r"(a1), "r"(b0));
  } else {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u4.s4.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a0), "r"(a1), "r"(b0));
  }
}

// d += a b over 16 float16 (or bfloat16, if kBf16) of K, accumulated in float32.
template <bool kBf16>
DEVICE void mma_16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kBf16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// (a & b) | c in one LOP3: left to itself, the compiler takes two where b and c are constants.
DEVICE uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

// a * b + c on the two float16 (or bfloat16) of a register, one rounding each.
template <bool kBf16>
DEVICE uint32_t fma_pair(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  if constexpr (kBf16) {
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  } else {
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  }
  return d;
}

// float32 rounded half to even to the 16 bits of a float16 (or bfloat16).
template <bool kBf16>
DEVICE uint16_t narrow(float v) {
  uint16_t bits;
  if constexpr (kBf16) {
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(v));
  } else {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v));
  }
  return bits;
}

}  // namespace pyquant

#else
#include "executor.h"
#endif
