// Sixteen lanes in two AVX2 registers. With AVX-VNNI, vpdpbusd sums four products a lane. Without it, because maddubs
// saturates, bytes are widened to 16 bits, the even and the odd ones of each dword apart, and multiplied with pmaddwd.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace pyquant {
namespace {

struct Lanes {
  static constexpr int kColumns = 4;
#if defined(__AVXVNNI__)
  // 6 pixels x 1 panel: 12 accumulators cover vpdpbusd's latency; 2 registers of weights and 1 of activations out of 16.
  static constexpr int kRows = 6;
  static constexpr int kSteps = 4;
#else
  // 4 pixels x 1 panel: 8 accumulators, 4 registers of weights and 2 of activations out of 16.
  static constexpr int kRows = 4;
  static constexpr int kSteps = 1;
#endif

  struct Ints {
    __m256i low, high;
  };
  struct Floats {
    __m256 low, high;
  };
  struct Columns {
    __m256i low, high;
  };

  static __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

  static Ints load_ints(const int32_t* p) { return {load(p), load(p + 8)}; }
  static void store_ints(int32_t* p, Ints v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v.low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), v.high);
  }
  static Ints set_int(int32_t v) { return {_mm256_set1_epi32(v), _mm256_set1_epi32(v)}; }
  static Ints add_ints(Ints a, Ints b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
  static Ints sub_ints(Ints a, Ints b) { return {_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)}; }
  static Ints mul_ints(Ints a, Ints b) {
    return {_mm256_mullo_epi32(a.low, b.low), _mm256_mullo_epi32(a.high, b.high)};
  }
  static Ints load_codes(const uint8_t* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
  }
  static constexpr float kCodeOffset = 0.0f;
  static Floats load_code_floats(const uint8_t* p) { return to_float(load_codes(p)); }
  static void store_codes(uint8_t* p, Ints v, int64_t n) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(v.low, v.high), 0xD8);
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    if (n >= 16) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
    } else {
      alignas(16) uint8_t all[16];
      _mm_store_si128(reinterpret_cast<__m128i*>(all), bytes);
      __builtin_memcpy(p, all, static_cast<size_t>(n));
    }
  }

  // Sixteen pixels of three codes each, 48 bytes; every lane holds a code.
  static void store_triples(uint8_t* p, const Ints (&v)[3]) {
    store_eight(p, v[0].low, v[1].low, v[2].low);
    store_eight(p + 24, v[0].high, v[1].high, v[2].high);
  }
  static void store_eight(uint8_t* p, __m256i a, __m256i b, __m256i c) {
    const __m256i pixels = _mm256_or_si256(a, _mm256_or_si256(_mm256_slli_epi32(b, 8), _mm256_slli_epi32(c, 16)));
    const __m256i close =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
    const __m256i order = _mm256_setr_epi32(0, 1, 2, 4, 5, 6, 7, 7);
    const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(pixels, close), order);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(bytes));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p + 16), _mm256_extracti128_si256(bytes, 1));
  }

  static Floats load_floats(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static Floats load_floats(const float* p, int64_t n) {
    alignas(32) float all[16] = {};
    __builtin_memcpy(all, p, static_cast<size_t>(n) * sizeof(float));
    return load_floats(all);
  }
  static void store_floats(float* p, Floats v, int64_t n) {
    if (n >= 16) {
      _mm256_storeu_ps(p, v.low);
      _mm256_storeu_ps(p + 8, v.high);
    } else {
      alignas(32) float all[16];
      _mm256_store_ps(all, v.low);
      _mm256_store_ps(all + 8, v.high);
      __builtin_memcpy(p, all, static_cast<size_t>(n) * sizeof(float));
    }
  }
  static Floats set_float(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
  static Floats to_float(Ints v) { return {_mm256_cvtepi32_ps(v.low), _mm256_cvtepi32_ps(v.high)}; }
  static Floats add(Floats a, Floats b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
  static Floats sub(Floats a, Floats b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
  static Floats mul(Floats a, Floats b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
  static Floats div(Floats a, Floats b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
  static Floats clamp(Floats v, Floats low, Floats high) {
    return {_mm256_min_ps(_mm256_max_ps(v.low, low.low), high.low),
            _mm256_min_ps(_mm256_max_ps(v.high, low.high), high.high)};
  }
  // The rounding mode in force is to nearest, ties to even.
  static Ints round(Floats v) { return {_mm256_cvtps_epi32(v.low), _mm256_cvtps_epi32(v.high)}; }
  // `then` where `v` is a number, 0 where it is a NaN.
  static Floats where_number(Floats v, Floats then) {
    return {_mm256_and_ps(_mm256_cmp_ps(v.low, v.low, _CMP_ORD_Q), then.low),
            _mm256_and_ps(_mm256_cmp_ps(v.high, v.high, _CMP_ORD_Q), then.high)};
  }

  // Whether every lane is at most `most` from 0.
  static bool all_within(Floats v, Floats most) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    const __m256 low = _mm256_cmp_ps(_mm256_andnot_ps(sign, v.low), most.low, _CMP_LE_OQ);
    const __m256 high = _mm256_cmp_ps(_mm256_andnot_ps(sign, v.high), most.high, _CMP_LE_OQ);
    return _mm256_movemask_ps(_mm256_and_ps(low, high)) == 0xFF;
  }

  static Columns load_columns(const uint8_t* p) { return {load(p), load(p + 32)}; }
#if defined(__AVXVNNI__)
  using Weights = Columns;
  static Weights load_weights(const int8_t* p) { return {load(p), load(p + 32)}; }
  // acc + the sums of four products of unsigned and signed bytes.
  static __m256i sum_products(__m256i acc, __m256i u, __m256i s) { return _mm256_dpbusd_avx_epi32(acc, u, s); }
  // One piece of assembly for a row: with more freedom gcc moves accumulators, and all prefetches to the front.
  template <int D>
  static void dot_row(Ints& acc, const uint8_t* x, int64_t k, const Weights& w) {
    __m256i four;
    asm volatile(
        "vpbroadcastd %c[d](%[x],%[k]), %[four]\n\t%{vex%} vpdpbusd %[low], %[four], %[a0]\n\t"
        "%{vex%} vpdpbusd %[high], %[four], %[a1]"
        : [a0] "+x"(acc.low), [a1] "+x"(acc.high), [four] "=&x"(four)
        : [low] "x"(w.low), [high] "x"(w.high), [x] "r"(x), [k] "r"(k), [d] "i"(D));
  }
  static Ints dot_columns(Ints acc, Columns x, const Weights& w) {
    return {sum_products(acc.low, x.low, w.low), sum_products(acc.high, x.high, w.high)};
  }
#else
  struct Weights {
    __m256i low_even, low_odd, high_even, high_odd;
  };
  struct Broadcast {
    __m256i even, odd;
  };
  static __m256i signed_even(__m256i bytes) { return _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8); }
  static __m256i signed_odd(__m256i bytes) { return _mm256_srai_epi16(bytes, 8); }
  static __m256i unsigned_even(__m256i bytes) { return _mm256_and_si256(bytes, _mm256_set1_epi16(255)); }
  static __m256i unsigned_odd(__m256i bytes) { return _mm256_srli_epi16(bytes, 8); }
  static Weights widen(__m256i low, __m256i high) {
    return {signed_even(low), signed_odd(low), signed_even(high), signed_odd(high)};
  }
  static Weights load_weights(const int8_t* p) { return widen(load(p), load(p + 32)); }
  static Broadcast broadcast(const uint8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    const __m256i bytes = _mm256_set1_epi32(four);
    return {unsigned_even(bytes), unsigned_odd(bytes)};
  }
  static __m256i sum_products(__m256i acc, __m256i x_even, __m256i w_even, __m256i x_odd, __m256i w_odd) {
    return _mm256_add_epi32(acc, _mm256_add_epi32(_mm256_madd_epi16(x_even, w_even), _mm256_madd_epi16(x_odd, w_odd)));
  }
  static Ints dot(Ints acc, Broadcast x, const Weights& w) {
    return {sum_products(acc.low, x.even, w.low_even, x.odd, w.low_odd),
            sum_products(acc.high, x.even, w.high_even, x.odd, w.high_odd)};
  }
  template <int D>
  static void dot_row(Ints& acc, const uint8_t* x, int64_t k, const Weights& w) {
    acc = dot(acc, broadcast(x + k + D), w);
  }
  static Ints dot_columns(Ints acc, Columns x, const Weights& w) {
    return {sum_products(acc.low, unsigned_even(x.low), w.low_even, unsigned_odd(x.low), w.low_odd),
            sum_products(acc.high, unsigned_even(x.high), w.high_even, unsigned_odd(x.high), w.high_odd)};
  }
#endif

  // Four rows of 16 bytes -> [16][4].
  static void interleave(const uint8_t* const* rows, int64_t offset, uint8_t* out) {
    __m128i r[4];
    for (int i = 0; i < 4; ++i) r[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i] + offset));
    const __m128i low01 = _mm_unpacklo_epi8(r[0], r[1]), high01 = _mm_unpackhi_epi8(r[0], r[1]);
    const __m128i low23 = _mm_unpacklo_epi8(r[2], r[3]), high23 = _mm_unpackhi_epi8(r[2], r[3]);
    __m128i* to = reinterpret_cast<__m128i*>(out);
    _mm_store_si128(to, _mm_unpacklo_epi16(low01, low23));
    _mm_store_si128(to + 1, _mm_unpackhi_epi16(low01, low23));
    _mm_store_si128(to + 2, _mm_unpacklo_epi16(high01, high23));
    _mm_store_si128(to + 3, _mm_unpackhi_epi16(high01, high23));
  }
};

}  // namespace
}  // namespace pyquant
