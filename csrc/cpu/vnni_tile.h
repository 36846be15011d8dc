// The inner loop of unpacked codes for AVX-512-VNNI, in assembly: with intrinsics gcc moves or spills accumulators from
// 14 on, and every move takes one of the two ports that vpdpbusd runs on. Twelve rows x two panels fill the registers:
// zmm8..31 are sums, zmm0..1 the two panels' codes of four k, zmm4..5 broadcast activations.
#pragma once
#include <cstdint>

namespace pyquant {
namespace {

enum class VnniEnd { keep, total, pairs_total };

// sum = seed + codes x activations, then by `end`: keep it; or add float(sum) * scale to the totals; or that after
// adding the products of the pairs (16 bits each) to it.
struct VnniTile {
  const int8_t* x;          // the first of R rows, 64 bytes apart; every block of 32 k moves on by step[0], step[1] in turn
  const uint8_t* codes[2];  // [blocks][8][64] of each panel
  const int32_t* seed;      // [R]
  int32_t* sums;            // [R][2][16], 64-byte aligned: what `continued` begins from instead, and where `keep` puts sums
  float* totals;            // [R][2][16], 64-byte aligned
  const float* scale[2];    // [16] of each panel
  const int32_t* pair[2];   // [16] of each panel
  const int32_t* row_pair;  // [R]
  int64_t step[2];
  int64_t chunk;            // from 64 k to the next, for prefetching
  int64_t blocks;
  int64_t continued;
  VnniEnd end;
};

#define PQ_ROW(r, even, odd, quad)                                 \
  "vpbroadcastd " #r "*64+" #quad "*4(%[x]), %%zmm4\n"             \
  "vpdpbusd %%zmm4, %%zmm0, %%zmm" #even "\n"                      \
  "vpdpbusd %%zmm4, %%zmm1, %%zmm" #odd "\n"
#define PQ_NEXT(r, even, odd, quad) "prefetcht0 " #r "*64(%[x], %[chunk])\n"
#define PQ_SEED(r, even, odd, quad)                                \
  "vpbroadcastd " #r "*4(%[seed]), %%zmm" #even "\n"               \
  "vpbroadcastd " #r "*4(%[seed]), %%zmm" #odd "\n"
#define PQ_LOAD(r, even, odd, quad)                                \
  "vmovdqa64 " #r "*128(%[sums]), %%zmm" #even "\n"                \
  "vmovdqa64 " #r "*128+64(%[sums]), %%zmm" #odd "\n"
#define PQ_STORE(r, even, odd, quad)                               \
  "vmovdqa64 %%zmm" #even ", " #r "*128(%[sums])\n"                \
  "vmovdqa64 %%zmm" #odd ", " #r "*128+64(%[sums])\n"

#define PQ_PAIRS(r, even, odd, quad)                               \
  "vpbroadcastd " #r "*4(%[x]), %%zmm4\n"                   \
  "vpdpwssd %%zmm4, %%zmm0, %%zmm" #even "\n"                      \
  "vpdpwssd %%zmm4, %%zmm1, %%zmm" #odd "\n"
#define PQ_TOTAL(r, even, odd, quad)                               \
  "vcvtdq2ps %%zmm" #even ", %%zmm4\n"                             \
  "vcvtdq2ps %%zmm" #odd ", %%zmm5\n"                              \
  "vmulps %%zmm0, %%zmm4, %%zmm4\n"                                \
  "vmulps %%zmm1, %%zmm5, %%zmm5\n"                                \
  "vaddps " #r "*128(%[totals]), %%zmm4, %%zmm4\n"                 \
  "vaddps " #r "*128+64(%[totals]), %%zmm5, %%zmm5\n"              \
  "vmovaps %%zmm4, " #r "*128(%[totals])\n"                        \
  "vmovaps %%zmm5, " #r "*128+64(%[totals])\n"

#define PQ_ROWS_1(DO, q) DO(0, 8, 9, q)
#define PQ_ROWS_2(DO, q) PQ_ROWS_1(DO, q) DO(1, 10, 11, q)
#define PQ_ROWS_3(DO, q) PQ_ROWS_2(DO, q) DO(2, 12, 13, q)
#define PQ_ROWS_4(DO, q) PQ_ROWS_3(DO, q) DO(3, 14, 15, q)
#define PQ_ROWS_5(DO, q) PQ_ROWS_4(DO, q) DO(4, 16, 17, q)
#define PQ_ROWS_6(DO, q) PQ_ROWS_5(DO, q) DO(5, 18, 19, q)
#define PQ_ROWS_7(DO, q) PQ_ROWS_6(DO, q) DO(6, 20, 21, q)
#define PQ_ROWS_8(DO, q) PQ_ROWS_7(DO, q) DO(7, 22, 23, q)
#define PQ_ROWS_9(DO, q) PQ_ROWS_8(DO, q) DO(8, 24, 25, q)
#define PQ_ROWS_10(DO, q) PQ_ROWS_9(DO, q) DO(9, 26, 27, q)
#define PQ_ROWS_11(DO, q) PQ_ROWS_10(DO, q) DO(10, 28, 29, q)
#define PQ_ROWS_12(DO, q) PQ_ROWS_11(DO, q) DO(11, 30, 31, q)

#define PQ_QUAD(R, q)                             \
  "vmovdqa64 " #q "*64(%[w0]), %%zmm0\n"          \
  "vmovdqa64 " #q "*64(%[w1]), %%zmm1\n"          \
  PQ_ROWS_##R(PQ_ROW, q)

template <int R>
void vnni_tile(const VnniTile& t);

#define PQ_TILE(R)                                                                                                   \
  template <>                                                                                                        \
  void vnni_tile<R>(const VnniTile& t) {                                                                             \
    const int8_t* x = t.x;                                                                                           \
    const uint8_t *w0 = t.codes[0], *w1 = t.codes[1];                                                                \
    int64_t step = t.step[0], other = t.step[1], blocks = t.blocks;                                                  \
    asm volatile(                                                                                                    \
        "testq %[continued], %[continued]\n"                                                                         \
        "jnz 1f\n"                                                                                                   \
        PQ_ROWS_##R(PQ_SEED, 0)                                                                                      \
        "jmp 2f\n"                                                                                                   \
        "1:\n"                                                                                                       \
        PQ_ROWS_##R(PQ_LOAD, 0)                                                                                      \
        ".p2align 5\n"                                                                                               \
        "2:\n"                                                                                                       \
        PQ_ROWS_##R(PQ_NEXT, 0)                                                                                      \
        PQ_QUAD(R, 0) PQ_QUAD(R, 1) PQ_QUAD(R, 2) PQ_QUAD(R, 3)                                                      \
        PQ_QUAD(R, 4) PQ_QUAD(R, 5) PQ_QUAD(R, 6) PQ_QUAD(R, 7)                                                      \
        "addq $512, %[w0]\n"                                                                                         \
        "addq $512, %[w1]\n"                                                                                         \
        "addq %[step], %[x]\n"                                                                                       \
        "xchgq %[step], %[other]\n"                                                                                  \
        "decq %[blocks]\n"                                                                                           \
        "jnz 2b\n"                                                                                                   \
        "cmpl $1, %[end]\n"                                                                                          \
        "je 4f\n"                                                                                                    \
        "ja 3f\n"                                                                                                    \
        PQ_ROWS_##R(PQ_STORE, 0)                                                                                     \
        "jmp 5f\n"                                                                                                   \
        "3:\n"                                                                                                       \
        "movq %[pair0], %[w0]\n"                                                                                     \
        "movq %[pair1], %[w1]\n"                                                                                     \
        "movq %[row_pair], %[x]\n"                                                                                   \
        "vmovdqu64 (%[w0]), %%zmm0\n"                                                                                \
        "vmovdqu64 (%[w1]), %%zmm1\n"                                                                                \
        PQ_ROWS_##R(PQ_PAIRS, 0)                                                                                     \
        "4:\n"                                                                                                       \
        "vmovups (%[scale0]), %%zmm0\n"                                                                              \
        "vmovups (%[scale1]), %%zmm1\n"                                                                              \
        PQ_ROWS_##R(PQ_TOTAL, 0)                                                                                     \
        "5:\n"                                                                                                       \
        : [x] "+r"(x), [w0] "+r"(w0), [w1] "+r"(w1), [step] "+r"(step), [other] "+r"(other), [blocks] "+r"(blocks)   \
        : [seed] "r"(t.seed), [sums] "r"(t.sums), [continued] "r"(t.continued), [end] "m"(t.end), [totals] "r"(t.totals),   \
          [scale0] "r"(t.scale[0]), [scale1] "r"(t.scale[1]), [pair0] "m"(t.pair[0]), [pair1] "m"(t.pair[1]),        \
          [row_pair] "m"(t.row_pair), [chunk] "r"(t.chunk)                                                                                 \
        : "memory", "cc", "xmm0", "xmm1", "xmm4", "xmm5", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13",         \
          "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24",         \
          "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31");                                            \
  }

PQ_TILE(1)
PQ_TILE(2)
PQ_TILE(3)
PQ_TILE(4)
PQ_TILE(5)
PQ_TILE(6)
PQ_TILE(7)
PQ_TILE(8)
PQ_TILE(9)
PQ_TILE(10)
PQ_TILE(11)
PQ_TILE(12)

}  // namespace
}  // namespace pyquant
