// A tile of R pixels x one or two panels of channels for AVX-512-VNNI, from seeds to codes, in assembly. In intrinsics
// gcc runs out of registers: it parks pointers in vector registers and fetches them back at every step, through one of
// the two ports that vpdpbusd needs, and the epilogue has to pass through memory.
//
// zmm8..31 are the sums, zmm0..1 the panels' weights of four k, zmm4 a pixel's codes. Pixels 0 to 8 have their pointers
// in registers, the last three in memory. Behind the products, zmm0..1 are multipliers, zmm2..3 biases, zmm6 an order of
// dwords, zmm7 the upper bound; zmm4..5 hold what comes and goes.
#pragma once
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "cpu/kernels.h"

namespace pyquant {
namespace {

struct alignas(64) RegisterTile {
  static constexpr int64_t kClamp = 1;  // the codes' bounds are not 0 and 255
  static constexpr int64_t kZero = 2;   // their zero point is not 0
  static constexpr int64_t kResidual = 4;
  static constexpr int64_t kPartial = 8;  // the last panel is part full
  static constexpr int64_t kSums = 16;    // stop at the sums

  const uint8_t* const* x;         // [R]
  const int8_t* weight;            // of the first panel
  const int64_t* segment_offset;   // [segments]
  const int32_t* seed;             // [panels * 16], as are the next two
  const float* multiplier;
  const float* bias;
  void* const* y;                  // [R]
  const uint8_t* const* residual;  // [R]
  int32_t* sums;                   // [panels][R][16], 64-byte aligned
  int64_t channel;                 // the first
  int64_t panel_bytes;
  int64_t segments;
  int64_t run;                     // bytes of a segment
  int64_t flags;
  uint64_t mask;                   // of the channels that exist, with kPartial
  int64_t segments_left;           // these two are the tile's own
  const uint8_t* last_pixels[3];
  // Constants of the epilogue, the same in all lanes.
  alignas(64) __m512i zero;        // in 16 bits
  __m512i lowest;                  // in bytes
  __m512 high_less_zero, residual_zero, residual_scale;
  __m512i place, spread, order;    // of codes: kCodeOffset, the bytes to put under it, and dwords of packed ones
};

#define PQ_AT(field) "%c[" #field "](%%rdi)"

// Pixel, its two sums, the register of its pointer.
#define PQ_PIXELS_1(DO, q) DO(0, 8, 9, rbx, q)
#define PQ_PIXELS_2(DO, q) PQ_PIXELS_1(DO, q) DO(1, 10, 11, r8, q)
#define PQ_PIXELS_3(DO, q) PQ_PIXELS_2(DO, q) DO(2, 12, 13, r9, q)
#define PQ_PIXELS_4(DO, q) PQ_PIXELS_3(DO, q) DO(3, 14, 15, r10, q)
#define PQ_PIXELS_5(DO, q) PQ_PIXELS_4(DO, q) DO(4, 16, 17, r11, q)
#define PQ_PIXELS_6(DO, q) PQ_PIXELS_5(DO, q) DO(5, 18, 19, r12, q)
#define PQ_PIXELS_7(DO, q) PQ_PIXELS_6(DO, q) DO(6, 20, 21, r13, q)
#define PQ_PIXELS_8(DO, q) PQ_PIXELS_7(DO, q) DO(7, 22, 23, r14, q)
#define PQ_PIXELS_9(DO, q) PQ_PIXELS_8(DO, q) DO(8, 24, 25, r15, q)
#define PQ_PIXELS_10(DO, q) PQ_PIXELS_9(DO, q) DO##_FAR(9, 26, 27, rax, q)
#define PQ_PIXELS_11(DO, q) PQ_PIXELS_10(DO, q) DO##_FAR(10, 28, 29, rax, q)
#define PQ_PIXELS_12(DO, q) PQ_PIXELS_11(DO, q) DO##_FAR(11, 30, 31, rax, q)

#define PQ_SEED(r, a, b, p, q) "vmovdqu64 (%%rax), %%zmm" #a "\n vmovdqu64 64(%%rax), %%zmm" #b "\n"
#define PQ_SEED_FAR PQ_SEED
#define PQ_SUM(r, a, b, p, q) "vmovdqa64 %%zmm" #a ", " #r "*64(%%rax)\n vmovdqa64 %%zmm" #b ", " #r "*64(%%rax,%%rdx)\n"
#define PQ_SUM_FAR PQ_SUM
// Pointers to the end of the segment: rdx is the distance from the pixel's first byte.
#define PQ_POINTER(r, a, b, p, q) "movq " #r "*8(%%rcx), %%" #p "\n addq %%rdx, %%" #p "\n"
#define PQ_POINTER_FAR(r, a, b, p, q) PQ_POINTER(r, a, b, p, q) "movq %%" #p ", (" #r "-9)*8+" PQ_AT(last_pixels) "\n"
// Four codes of each pixel, `q` steps on.
#define PQ_DOT(r, a, b, p, q)                                                                                         \
  "vpbroadcastd " #q "*4(%%" #p ",%%rcx), %%zmm4\n"                                                                   \
  "vpdpbusd %%zmm0, %%zmm4, %%zmm" #a "\n vpdpbusd %%zmm1, %%zmm4, %%zmm" #b "\n"
#define PQ_DOT_FAR(r, a, b, p, q) "movq (" #r "-9)*8+" PQ_AT(last_pixels) ", %%" #p "\n" PQ_DOT(r, a, b, p, q)
// Weights that come from L3 or beyond are fetched 512 bytes ahead of their use; from L2 that costs more than it gains.
#define PQ_FETCH(q) "prefetcht0 512+" #q "*64(%%rsi)\n prefetcht0 512+" #q "*64(%%rsi,%%rdx)\n"
#define PQ_STAY(q)
#define PQ_STEP(R, q, AHEAD)                                                                                          \
  "vmovdqu64 " #q "*64(%%rsi), %%zmm0\n vmovdqu64 " #q "*64(%%rsi,%%rdx), %%zmm1\n"                                   \
  AHEAD(q) PQ_PIXELS_##R(PQ_DOT, q)

#define PQ_TO_FLOAT(a, m, b) "vcvtdq2ps %%zmm" #a ", %%zmm" #a "\n"
#define PQ_MULTIPLY(a, m, b) "vmulps %%zmm" #m ", %%zmm" #a ", %%zmm" #a "\n"
#define PQ_ADD_BIAS(a, m, b) "vaddps %%zmm" #b ", %%zmm" #a ", %%zmm" #a "\n"
#define PQ_BELOW_HIGH(a, m, b) "vminps %%zmm" #a ", %%zmm7, %%zmm" #a "\n"
#define PQ_ROUND(a, m, b) "vcvtps2dq %%zmm" #a ", %%zmm" #a "\n"
#define PQ_RESIDUAL(a, p, at)                                                                                         \
  "vbroadcasti32x4 " #at "(%%" #p ",%%rbx), %%zmm4\n vmovdqa64 " PQ_AT(place) ", %%zmm5\n"                            \
  "vpshufb " PQ_AT(spread) ", %%zmm4, %%zmm5%{%%k1%}\n vsubps " PQ_AT(residual_zero) ", %%zmm5, %%zmm5\n"             \
  "vmulps " PQ_AT(residual_scale) ", %%zmm5, %%zmm5\n vaddps %%zmm5, %%zmm" #a ", %%zmm" #a "\n"
#define PQ_CONSTANTS_ONE                                                                                              \
  "movq " PQ_AT(multiplier) ", %%rax\n vmovups (%%rax), %%zmm0\n movq " PQ_AT(bias) ", %%rdx\n vmovups (%%rdx), %%zmm2\n"
#define PQ_CONSTANTS PQ_CONSTANTS_ONE "vmovups 64(%%rax), %%zmm1\n vmovups 64(%%rdx), %%zmm3\n"
#define PQ_FOUR(M, a, b, c, d) M(a, 0, 2) M(b, 1, 3) M(c, 0, 2) M(d, 1, 3)

// Floats to codes in a. After the packing, dword 4 i + n is codes 4 i to 4 i + 3 of the n-th of the four; after vpermd the
// n-th quarter is. Packing saturates, so the lower bound can wait until the codes are bytes; a NaN becomes it, as everywhere.
#define PQ_PACK(a, b, c, d)                                                                                           \
  "testl $1, %%ecx\n jz 1f\n" PQ_FOUR(PQ_BELOW_HIGH, a, b, c, d) "1:\n"                                               \
  PQ_FOUR(PQ_ROUND, a, b, c, d)                                                                                       \
  "vpackssdw %%zmm" #b ", %%zmm" #a ", %%zmm" #a "\n vpackssdw %%zmm" #d ", %%zmm" #c ", %%zmm" #c "\n"               \
  "testl $2, %%ecx\n jz 1f\n vpaddsw " PQ_AT(zero) ", %%zmm" #a ", %%zmm" #a "\n"                                     \
  "vpaddsw " PQ_AT(zero) ", %%zmm" #c ", %%zmm" #c "\n1:\n"                                                           \
  "vpackuswb %%zmm" #c ", %%zmm" #a ", %%zmm" #a "\n"                                                                 \
  "testl $1, %%ecx\n jz 1f\n vpmaxub " PQ_AT(lowest) ", %%zmm" #a ", %%zmm" #a "\n1:\n"                               \
  "vpermd %%zmm" #a ", %%zmm6, %%zmm" #a "\n"

// Codes of pixels r and s.
#define PQ_CODES(r, s, a, b, c, d)                                                                                    \
  PQ_FOUR(PQ_TO_FLOAT, a, b, c, d) PQ_FOUR(PQ_MULTIPLY, a, b, c, d) PQ_FOUR(PQ_ADD_BIAS, a, b, c, d)                  \
  "testl $4, %%ecx\n jz 1f\n movq " #r "*8(%%r10), %%r8\n movq " #s "*8(%%r10), %%r9\n"                               \
  PQ_RESIDUAL(a, r8, 0) PQ_RESIDUAL(b, r8, 16) PQ_RESIDUAL(c, r9, 0) PQ_RESIDUAL(d, r9, 16) "1:\n"                    \
  PQ_PACK(a, b, c, d)                                                                                                 \
  "movq " #r "*8(%%rsi), %%r8\n movq " #s "*8(%%rsi), %%r9\n"                                                         \
  "testl $8, %%ecx\n jnz 1f\n vmovdqu64 %%ymm" #a ", (%%r8,%%rbx)\n"                                                  \
  "vextracti64x4 $1, %%zmm" #a ", (%%r9,%%rbx)\n jmp 8f\n1:\n"                                                        \
  "vextracti64x4 $1, %%zmm" #a ", %%ymm4\n vmovdqu8 %%ymm" #a ", (%%r8,%%rbx)%{%%k2%}\n"                              \
  "vmovdqu8 %%ymm4, (%%r9,%%rbx)%{%%k2%}\n8:\n"
#define PQ_LAST_CODES(r, a, b)                                                                                        \
  "vmovdqa64 %%zmm" #a ", %%zmm30\n vmovdqa64 %%zmm" #b ", %%zmm31\n" PQ_CODES(r, r, a, b, 30, 31)

#define PQ_FINISH_1 PQ_LAST_CODES(0, 8, 9)
#define PQ_FINISH_2 PQ_CODES(0, 1, 8, 9, 10, 11)
#define PQ_FINISH_3 PQ_FINISH_2 PQ_LAST_CODES(2, 12, 13)
#define PQ_FINISH_4 PQ_FINISH_2 PQ_CODES(2, 3, 12, 13, 14, 15)
#define PQ_FINISH_5 PQ_FINISH_4 PQ_LAST_CODES(4, 16, 17)
#define PQ_FINISH_6 PQ_FINISH_4 PQ_CODES(4, 5, 16, 17, 18, 19)
#define PQ_FINISH_7 PQ_FINISH_6 PQ_LAST_CODES(6, 20, 21)
#define PQ_FINISH_8 PQ_FINISH_6 PQ_CODES(6, 7, 20, 21, 22, 23)
#define PQ_FINISH_9 PQ_FINISH_8 PQ_LAST_CODES(8, 24, 25)
#define PQ_FINISH_10 PQ_FINISH_8 PQ_CODES(8, 9, 24, 25, 26, 27)
#define PQ_FINISH_11 PQ_FINISH_10 PQ_LAST_CODES(10, 28, 29)
#define PQ_FINISH_12 PQ_FINISH_10 PQ_CODES(10, 11, 28, 29, 30, 31)

// One panel: its sums are the first of each pixel's two. Codes of four pixels; the last may be there several times.
#define PQ_SEED_ONE(r, a, b, p, q) "vmovdqu64 (%%rax), %%zmm" #a "\n"
#define PQ_SEED_ONE_FAR PQ_SEED_ONE
#define PQ_SUM_ONE(r, a, b, p, q) "vmovdqa64 %%zmm" #a ", " #r "*64(%%rax)\n"
#define PQ_SUM_ONE_FAR PQ_SUM_ONE
#define PQ_DOT_ONE(r, a, b, p, q)                                                                                     \
  "vpbroadcastd " #q "*4(%%" #p ",%%rcx), %%zmm4\n vpdpbusd %%zmm0, %%zmm4, %%zmm" #a "\n"
#define PQ_DOT_ONE_FAR(r, a, b, p, q) "movq (" #r "-9)*8+" PQ_AT(last_pixels) ", %%" #p "\n" PQ_DOT_ONE(r, a, b, p, q)
#define PQ_STEP_ONE(R, q, AHEAD) "vmovdqu64 " #q "*64(%%rsi), %%zmm0\n" PQ_PIXELS_##R(PQ_DOT_ONE, q)
#define PQ_FOUR_ONE(M, a, b, c, d) M(a, 0, 2) M(b, 0, 2) M(c, 0, 2) M(d, 0, 2)
#define PQ_CODES_ONE(r, s, t, u, a, b, c, d)                                                                          \
  PQ_FOUR_ONE(PQ_TO_FLOAT, a, b, c, d) PQ_FOUR_ONE(PQ_MULTIPLY, a, b, c, d)                                           \
  PQ_FOUR_ONE(PQ_ADD_BIAS, a, b, c, d)                                                                                \
  "testl $4, %%ecx\n jz 1f\n movq " #r "*8(%%r10), %%r8\n movq " #s "*8(%%r10), %%r9\n"                               \
  "movq " #t "*8(%%r10), %%r11\n movq " #u "*8(%%r10), %%r12\n"                                                       \
  PQ_RESIDUAL(a, r8, 0) PQ_RESIDUAL(b, r9, 0) PQ_RESIDUAL(c, r11, 0) PQ_RESIDUAL(d, r12, 0) "1:\n"                    \
  PQ_PACK(a, b, c, d)                                                                                                 \
  "movq " #r "*8(%%rsi), %%r8\n movq " #s "*8(%%rsi), %%r9\n"                                                         \
  "movq " #t "*8(%%rsi), %%r11\n movq " #u "*8(%%rsi), %%r12\n"                                                       \
  "testl $8, %%ecx\n jnz 1f\n vmovdqu64 %%xmm" #a ", (%%r8,%%rbx)\n"                                                  \
  "vextracti32x4 $1, %%zmm" #a ", (%%r9,%%rbx)\n vextracti32x4 $2, %%zmm" #a ", (%%r11,%%rbx)\n"                      \
  "vextracti32x4 $3, %%zmm" #a ", (%%r12,%%rbx)\n jmp 8f\n1:\n"                                                       \
  "vextracti32x4 $1, %%zmm" #a ", %%xmm4\n vextracti32x4 $2, %%zmm" #a ", %%xmm5\n"                                   \
  "vextracti32x4 $3, %%zmm" #a ", %%xmm" #b "\n vmovdqu8 %%xmm" #a ", (%%r8,%%rbx)%{%%k2%}\n"                         \
  "vmovdqu8 %%xmm4, (%%r9,%%rbx)%{%%k2%}\n vmovdqu8 %%xmm5, (%%r11,%%rbx)%{%%k2%}\n"                                  \
  "vmovdqu8 %%xmm" #b ", (%%r12,%%rbx)%{%%k2%}\n8:\n"
#define PQ_COPY(from, to) "vmovdqa64 %%zmm" #from ", %%zmm" #to "\n"

#define PQ_FINISH_ONE_1 PQ_COPY(8, 9) PQ_COPY(8, 11) PQ_COPY(8, 13) PQ_CODES_ONE(0, 0, 0, 0, 8, 9, 11, 13)
#define PQ_FINISH_ONE_2 PQ_COPY(10, 9) PQ_COPY(10, 11) PQ_CODES_ONE(0, 1, 1, 1, 8, 10, 9, 11)
#define PQ_FINISH_ONE_3 PQ_COPY(12, 9) PQ_CODES_ONE(0, 1, 2, 2, 8, 10, 12, 9)
#define PQ_FINISH_ONE_4 PQ_CODES_ONE(0, 1, 2, 3, 8, 10, 12, 14)
#define PQ_FINISH_ONE_5                                                                                               \
  PQ_FINISH_ONE_4 PQ_COPY(16, 9) PQ_COPY(16, 11) PQ_COPY(16, 13) PQ_CODES_ONE(4, 4, 4, 4, 16, 9, 11, 13)
#define PQ_FINISH_ONE_6 PQ_FINISH_ONE_4 PQ_COPY(18, 9) PQ_COPY(18, 11) PQ_CODES_ONE(4, 5, 5, 5, 16, 18, 9, 11)
#define PQ_FINISH_ONE_7 PQ_FINISH_ONE_4 PQ_COPY(20, 9) PQ_CODES_ONE(4, 5, 6, 6, 16, 18, 20, 9)
#define PQ_FINISH_ONE_8 PQ_FINISH_ONE_4 PQ_CODES_ONE(4, 5, 6, 7, 16, 18, 20, 22)
#define PQ_FINISH_ONE_9                                                                                               \
  PQ_FINISH_ONE_8 PQ_COPY(24, 9) PQ_COPY(24, 11) PQ_COPY(24, 13) PQ_CODES_ONE(8, 8, 8, 8, 24, 9, 11, 13)
#define PQ_FINISH_ONE_10 PQ_FINISH_ONE_8 PQ_COPY(26, 9) PQ_COPY(26, 11) PQ_CODES_ONE(8, 9, 9, 9, 24, 26, 9, 11)
#define PQ_FINISH_ONE_11 PQ_FINISH_ONE_8 PQ_COPY(28, 9) PQ_CODES_ONE(8, 9, 10, 10, 24, 26, 28, 9)
#define PQ_FINISH_ONE_12 PQ_FINISH_ONE_8 PQ_CODES_ONE(8, 9, 10, 11, 24, 26, 28, 30)

#define PQ_FIELD(name) [name] "i"(offsetof(RegisterTile, name))

template <int R>
void pair_tile(RegisterTile& tile);
// The same where weights are seen for the first time.
template <int R>
void fresh_pair_tile(RegisterTile& tile);
template <int R>
void single_tile(RegisterTile& tile);

#define PQ_TILE(R, name, ONE, AHEAD)                                                                                  \
  template <>                                                                                                         \
  __attribute__((noinline)) void name<R>(RegisterTile & tile) {                                                       \
    asm volatile(                                                                                                     \
        "movq " PQ_AT(seed) ", %%rax\n" PQ_PIXELS_##R(PQ_SEED##ONE, 0)                                                \
        "movq " PQ_AT(segments) ", %%rax\n movq %%rax, " PQ_AT(segments_left) "\n"                                    \
        "movq " PQ_AT(weight) ", %%rsi\n"                                                                             \
        "2:\n" /* a segment */                                                                                        \
        "movq " PQ_AT(segments) ", %%rax\n subq " PQ_AT(segments_left) ", %%rax\n"                                    \
        "movq " PQ_AT(segment_offset) ", %%rdx\n movq (%%rdx,%%rax,8), %%rdx\n addq " PQ_AT(run) ", %%rdx\n"          \
        "movq " PQ_AT(x) ", %%rcx\n" PQ_PIXELS_##R(PQ_POINTER, 0)                                                     \
        "movq " PQ_AT(panel_bytes) ", %%rdx\n xorl %%ecx, %%ecx\n subq " PQ_AT(run) ", %%rcx\n"                       \
        "cmpq $-16, %%rcx\n jg 4f\n .p2align 5\n"                                                                     \
        "3:\n" /* four steps */                                                                                       \
        PQ_STEP##ONE(R, 0, AHEAD) PQ_STEP##ONE(R, 1, AHEAD) PQ_STEP##ONE(R, 2, AHEAD) PQ_STEP##ONE(R, 3, AHEAD)       \
        "addq $256, %%rsi\n addq $16, %%rcx\n cmpq $-16, %%rcx\n jle 3b\n"                                            \
        "4:\n testq %%rcx, %%rcx\n jz 6f\n"                                                                           \
        "5:\n" /* one step */                                                                                         \
        PQ_STEP##ONE(R, 0, AHEAD) "addq $64, %%rsi\n addq $4, %%rcx\n jnz 5b\n"                                       \
        "6:\n decq " PQ_AT(segments_left) "\n jnz 2b\n"                                                               \
        "movl " PQ_AT(flags) ", %%ecx\n testl $16, %%ecx\n jnz 7f\n"                                                  \
        PQ_CONSTANTS##ONE                                                                                             \
        "vmovdqa64 " PQ_AT(order) ", %%zmm6\n vmovaps " PQ_AT(high_less_zero) ", %%zmm7\n"                            \
        "movabsq $0x1111111111111111, %%rax\n kmovq %%rax, %%k1\n kmovq " PQ_AT(mask) ", %%k2\n"                      \
        "movq " PQ_AT(y) ", %%rsi\n movq " PQ_AT(residual) ", %%r10\n movq " PQ_AT(channel) ", %%rbx\n"               \
        PQ_FINISH##ONE##_##R                                                                                          \
        "jmp 9f\n"                                                                                                    \
        "7:\n movq " PQ_AT(sums) ", %%rax\n movl $" #R "*64, %%edx\n" PQ_PIXELS_##R(PQ_SUM##ONE, 0)                   \
        "9:\n"                                                                                                        \
        :                                                                                                             \
        : "D"(&tile), PQ_FIELD(x), PQ_FIELD(weight), PQ_FIELD(segment_offset), PQ_FIELD(seed),                        \
          PQ_FIELD(multiplier), PQ_FIELD(bias), PQ_FIELD(y), PQ_FIELD(residual), PQ_FIELD(sums),                      \
          PQ_FIELD(channel), PQ_FIELD(panel_bytes), PQ_FIELD(segments), PQ_FIELD(run), PQ_FIELD(flags),               \
          PQ_FIELD(mask), PQ_FIELD(segments_left), PQ_FIELD(last_pixels), PQ_FIELD(zero), PQ_FIELD(lowest),           \
          PQ_FIELD(high_less_zero), PQ_FIELD(residual_zero), PQ_FIELD(residual_scale), PQ_FIELD(place),               \
          PQ_FIELD(spread), PQ_FIELD(order)                                                                           \
        : "memory", "cc", "rax", "rbx", "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",           \
          "r15", "k1", "k2", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",          \
          "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20",          \
          "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31");         \
  }

#define PQ_LOW_TILES(name, ONE, AHEAD)                                                                                \
  PQ_TILE(1, name, ONE, AHEAD) PQ_TILE(2, name, ONE, AHEAD) PQ_TILE(3, name, ONE, AHEAD)                              \
  PQ_TILE(4, name, ONE, AHEAD) PQ_TILE(5, name, ONE, AHEAD)
#define PQ_TALL_TILES(name, ONE, AHEAD)                                                                               \
  PQ_TILE(6, name, ONE, AHEAD) PQ_TILE(7, name, ONE, AHEAD) PQ_TILE(8, name, ONE, AHEAD)                              \
  PQ_TILE(9, name, ONE, AHEAD) PQ_TILE(10, name, ONE, AHEAD) PQ_TILE(11, name, ONE, AHEAD)                            \
  PQ_TILE(12, name, ONE, AHEAD)
PQ_TALL_TILES(pair_tile, , PQ_STAY)
PQ_LOW_TILES(fresh_pair_tile, , PQ_FETCH)
PQ_TALL_TILES(fresh_pair_tile, , PQ_FETCH)
PQ_LOW_TILES(single_tile, _ONE, PQ_STAY)
PQ_TALL_TILES(single_tile, _ONE, PQ_STAY)

}  // namespace
}  // namespace pyquant
