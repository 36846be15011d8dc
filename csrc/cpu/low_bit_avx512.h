// Codes of few bits in AVX-512: sixteen channels of four k are one register, and vpdpbusd takes the weight as its
// unsigned operand and a broadcast activation as its signed one.
#pragma once
#include "cpu/fake_quantize.h"
#include "cpu/lanes_avx512.h"

namespace pyquant {
namespace {

struct LowBit : Lanes {
  // 6 rows x 2 panels: vpdpbusd's latency is covered, and gcc moves no accumulators yet.
  static constexpr int kTileRows = 6;
  static constexpr int kTilePanels = 2;
  // Up to here unpacking beside the dot product costs less than a pass through the first-level cache.
  static constexpr int kRowsInRegisters = 6;
  static constexpr int kQuadsUnrolled = 8;

  using Sums = __m512i;
  using Quad = __m512i;

  // Quad `q` of a block: codes of k 4 q .. 4 q + 3.
  template <int kBits>
  static __m512i quad(const uint8_t* block, int q) {
    const auto vector = [&](int i) { return _mm512_loadu_si512(block + 64 * i); };
    if constexpr (kBits == 8) return vector(q);
    if constexpr (kBits == 4) {
      const __m512i v = vector(q / 2);
      return _mm512_and_si512(q % 2 == 0 ? v : _mm512_srli_epi16(v, 4), _mm512_set1_epi8(15));
    }
    if constexpr (kBits == 2) {
      return _mm512_and_si512(_mm512_srli_epi16(vector(q / 4), 2 * (q % 4)), _mm512_set1_epi8(3));
    }
    // Low two bits where the mask is 1, the shifted third bit where it is 0.
    const __m512i low = _mm512_srli_epi16(vector(q / 4), 2 * (q % 4));
    const __m512i high = q < 2 ? _mm512_slli_epi16(vector(2), 2 - q) : _mm512_srli_epi16(vector(2), q - 2);
    const __m512i both = _mm512_ternarylogic_epi32(_mm512_set1_epi8(3), low, high, 0xCA);
    return _mm512_and_si512(both, _mm512_set1_epi8(7));
  }

  static __m512i four(const int8_t* p) {
    int32_t bytes;
    __builtin_memcpy(&bytes, p, 4);
    return _mm512_set1_epi32(bytes);
  }
  static void store_ints(int32_t* p, Ints v) { _mm512_storeu_si512(p, v); }
  static Sums open(Ints acc) { return acc; }
  static Ints close(Ints, Sums sums) { return sums; }
  // Assembly, because gcc copies every accumulator around the intrinsic once the loops are unrolled.
  static Sums dot_codes(Sums sums, __m512i w, __m512i x) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(w), "v"(x));
    return sums;
  }
  // sum + low halves' product + high halves' product.
  static Ints add_pair(Ints sum, const int32_t* w, int32_t x) {
    return _mm512_dpwssd_epi32(sum, _mm512_loadu_si512(w), _mm512_set1_epi32(x));
  }
  static void store_quad(uint8_t* p, __m512i v) { _mm512_store_si512(p, v); }
  static void prefetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

  static Floats load_float_type(FloatType type, const void* p, int64_t at, int64_t n) {
    const __mmask16 first = static_cast<__mmask16>((1u << n) - 1);
    if (type == FloatType::f32) return _mm512_maskz_loadu_ps(first, static_cast<const float*>(p) + at);
    const __m256i half = _mm256_maskz_loadu_epi16(first, static_cast<const uint16_t*>(p) + at);
    if (type == FloatType::f16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static void store_float_type(FloatType type, void* p, int64_t at, Floats v, int64_t n) {
    if (type == FloatType::f32) return store_floats(static_cast<float*>(p) + at, v, n);
    const __mmask16 first = static_cast<__mmask16>(n >= 16 ? 0xFFFF : (1u << n) - 1);
    __m256i half = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    if (type == FloatType::bf16) {
      // Not vcvtneps2bf16: it flushes denormals.
      const __m512i b = _mm512_castps_si512(v);
      const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(b, 16), _mm512_set1_epi32(1));
      const __m512i up = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(b, _mm512_set1_epi32(0x7fff)), odd), 16);
      const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
      half = _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(up, nan, _mm512_set1_epi32(0x7fc0)));
    }
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(p) + at, first, half);
  }
  // Magnitudes as integers: they order as the floats do, and a NaN or an infinity exceeds every number.
  static Ints magnitude(Floats v) { return _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fffffff)); }
  static Ints max_ints(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
  static int32_t largest(Ints v) {
    int32_t all[16], most = 0;
    _mm512_storeu_si512(all, v);
    for (int32_t one : all) most = one > most ? one : most;
    return most;
  }
  static int32_t total(Ints v) { return _mm512_reduce_add_epi32(v); }
  static void store_bytes(int8_t* p, Ints v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v));
  }
};

}  // namespace
}  // namespace pyquant
