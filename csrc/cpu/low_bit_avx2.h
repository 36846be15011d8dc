// Codes of few bits in AVX2: sixteen channels of four k are two registers. AVX-VNNI's vpdpbusd takes the weight as its
// unsigned operand and a broadcast activation as its signed one. Without it: with codes of up to 4 bits maddubs cannot
// saturate, and eight of its sums fit 16 bits (8 * 2 * 15 * 128 = 30,720), so a block is widened once.
#pragma once
#include "cpu/fake_quantize.h"
#include "cpu/lanes_avx2.h"

namespace pyquant {
namespace {

struct LowBit : Lanes {
  static constexpr int kTilePanels = 1;
#if defined(__AVXVNNI__)
  // 6 rows x 1 panel: 12 registers of sums cover vpdpbusd's latency.
  static constexpr int kTileRows = 6;
  // Up to here unpacking beside the dot product, twice even, costs less than a pass through the first-level cache.
  static constexpr int kRowsInRegisters = 12;
#else
  // 4 rows x 1 panel: 8 registers of 16-bit sums; the 32-bit ones are met once a block.
  static constexpr int kTileRows = 4;
  static constexpr int kRowsInRegisters = 8;
#endif
  static constexpr int kQuadsUnrolled = 8;

  struct Quad {
    __m256i low, high;
  };

  // Quad `q` of a block: codes of k 4 q .. 4 q + 3.
  template <int kBits>
  static Quad quad(const uint8_t* block, int q) {
    return {half_quad<kBits>(block, q), half_quad<kBits>(block + 32, q)};
  }
  template <int kBits>
  static __m256i half_quad(const uint8_t* block, int q) {
    const auto vector = [&](int i) { return load(block + 64 * i); };
    if constexpr (kBits == 8) return vector(q);
    if constexpr (kBits == 4) {
      const __m256i v = vector(q / 2);
      return _mm256_and_si256(q % 2 == 0 ? v : _mm256_srli_epi16(v, 4), _mm256_set1_epi8(15));
    }
    const __m256i low = _mm256_and_si256(_mm256_srli_epi16(vector(q / 4), 2 * (q % 4)), _mm256_set1_epi8(3));
    if constexpr (kBits == 2) return low;
    const __m256i high = q < 2 ? _mm256_slli_epi16(vector(2), 2 - q) : _mm256_srli_epi16(vector(2), q - 2);
    return _mm256_or_si256(low, _mm256_and_si256(high, _mm256_set1_epi8(4)));
  }
  static void store_quad(uint8_t* p, Quad v) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(p), v.low);
    _mm256_store_si256(reinterpret_cast<__m256i*>(p + 32), v.high);
  }

  static __m256i four(const int8_t* p) {
    int32_t bytes;
    __builtin_memcpy(&bytes, p, 4);
    return _mm256_set1_epi32(bytes);
  }
#if defined(__AVXVNNI__)
  using Sums = Ints;
  static Sums open(Ints acc) { return acc; }
  static Ints close(Ints, Sums sums) { return sums; }
  static Sums dot_codes(Sums sums, Quad w, __m256i x) {
    return {sum_products(sums.low, w.low, x), sum_products(sums.high, w.high, x)};
  }
#else
  struct Sums {
    __m256i low, high;
  };
  static Sums open(Ints) { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static Ints close(Ints acc, Sums sums) {
    const __m256i ones = _mm256_set1_epi16(1);
    return add_ints(acc, {_mm256_madd_epi16(sums.low, ones), _mm256_madd_epi16(sums.high, ones)});
  }
  static Sums dot_codes(Sums sums, Quad w, __m256i x) {
    return {_mm256_add_epi16(sums.low, _mm256_maddubs_epi16(w.low, x)),
            _mm256_add_epi16(sums.high, _mm256_maddubs_epi16(w.high, x))};
  }
#endif
  // sum + low halves' product + high halves' product.
  static Ints add_pair(Ints sum, const int32_t* w, int32_t x) {
    const __m256i row = _mm256_set1_epi32(x);
    return add_ints(sum, {_mm256_madd_epi16(load(w), row), _mm256_madd_epi16(load(w + 8), row)});
  }
  static void store_ints(int32_t* p, Ints v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v.low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), v.high);
  }
  static void prefetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1); }

  static __m256 widen(FloatType type, __m128i half) {
    if (type == FloatType::f16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static Floats load_float_type(FloatType type, const void* p, int64_t at, int64_t n) {
    if (type == FloatType::f32) {
      const float* from = static_cast<const float*>(p) + at;
      return n >= 16 ? load_floats(from) : load_floats(from, n);
    }
    const uint16_t* from = static_cast<const uint16_t*>(p) + at;
    alignas(32) uint16_t all[16] = {};
    __builtin_memcpy(all, from, static_cast<size_t>(n) * sizeof(uint16_t));
    const __m128i* halves = reinterpret_cast<const __m128i*>(all);
    return {widen(type, _mm_load_si128(halves)), widen(type, _mm_load_si128(halves + 1))};
  }
  static __m128i narrow(FloatType type, __m256 v) {
    if (type == FloatType::f16) return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
    const __m256i b = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(b, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(b, _mm256_set1_epi32(0x7fff)), odd), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i words = _mm256_blendv_epi8(up, _mm256_set1_epi32(0x7fc0), nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  }
  static void store_float_type(FloatType type, void* p, int64_t at, Floats v, int64_t n) {
    if (type == FloatType::f32) return store_floats(static_cast<float*>(p) + at, v, n);
    alignas(16) uint16_t all[16];
    _mm_store_si128(reinterpret_cast<__m128i*>(all), narrow(type, v.low));
    _mm_store_si128(reinterpret_cast<__m128i*>(all + 8), narrow(type, v.high));
    __builtin_memcpy(static_cast<uint16_t*>(p) + at, all, static_cast<size_t>(n) * sizeof(uint16_t));
  }
  // Magnitudes as integers: they order as the floats do, and a NaN or an infinity exceeds every number.
  static Ints magnitude(Floats v) {
    const __m256i mask = _mm256_set1_epi32(0x7fffffff);
    return {_mm256_and_si256(_mm256_castps_si256(v.low), mask), _mm256_and_si256(_mm256_castps_si256(v.high), mask)};
  }
  static Ints max_ints(Ints a, Ints b) { return {_mm256_max_epi32(a.low, b.low), _mm256_max_epi32(a.high, b.high)}; }
  static int32_t largest(Ints v) {
    int32_t all[8], most = 0;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(all), _mm256_max_epi32(v.low, v.high));
    for (int32_t one : all) most = one > most ? one : most;
    return most;
  }
  static int32_t total(Ints v) {
    int32_t all[8], sum = 0;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(all), _mm256_add_epi32(v.low, v.high));
    for (int32_t one : all) sum += one;
    return sum;
  }
  static void store_bytes(int8_t* p, Ints v) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(v.low, v.high), 0xD8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
  }
};

}  // namespace
}  // namespace pyquant
