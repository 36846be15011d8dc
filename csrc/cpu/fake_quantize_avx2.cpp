// The fake-quantize row kernels for AVX2: 16 floats are two registers.
#if defined(__AVX2__)
#include <immintrin.h>

#include <cstring>

#include "cpu/fake_quantize_vector.h"

namespace pyquant {
namespace {

struct Pair {
  __m256 a, b;
};

struct Avx2 {
  using F = Pair;
  using M = Pair;

  static F set(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
  static F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
  static F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
  static F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
  static F div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
  static __m256 round(__m256 v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F round(F x) { return {round(x.a), round(x.b)}; }
  // max and min return the second operand where either is a NaN: a NaN passes through.
  static F clamp(F u, F low, F high) {
    return {_mm256_min_ps(high.a, _mm256_max_ps(low.a, u.a)), _mm256_min_ps(high.b, _mm256_max_ps(low.b, u.b))};
  }
  static M at_least(F u, F low) { return {_mm256_cmp_ps(u.a, low.a, _CMP_GE_OQ), _mm256_cmp_ps(u.b, low.b, _CMP_GE_OQ)}; }
  static M at_most(F u, F high) { return {_mm256_cmp_ps(u.a, high.a, _CMP_LE_OQ), _mm256_cmp_ps(u.b, high.b, _CMP_LE_OQ)}; }
  static M both(M x, M y) { return {_mm256_and_ps(x.a, y.a), _mm256_and_ps(x.b, y.b)}; }
  static F keep(M m, F x) { return {_mm256_and_ps(m.a, x.a), _mm256_and_ps(m.b, x.b)}; }
  static F drop(M m, F x) { return {_mm256_andnot_ps(m.a, x.a), _mm256_andnot_ps(m.b, x.b)}; }
  static F number_or(F u, F z) {
    return {_mm256_blendv_ps(u.a, z.a, _mm256_cmp_ps(u.a, u.a, _CMP_UNORD_Q)),
            _mm256_blendv_ps(u.b, z.b, _mm256_cmp_ps(u.b, u.b, _CMP_UNORD_Q))};
  }

  static F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static void store(float* p, F v) {
    _mm256_storeu_ps(p, v.a);
    _mm256_storeu_ps(p + 8, v.b);
  }
  static void stream(float* p, F v) {
    _mm256_stream_ps(p, v.a);
    _mm256_stream_ps(p + 8, v.b);
  }
  static void fence() { _mm_sfence(); }

  static __m256 widen(__m128i v, Bf16) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16)); }
  static __m256 widen(__m128i v, Fp16) { return _mm256_cvtph_ps(v); }
  static __m128i low_halves(__m256i v) { return _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)); }
  static __m128i narrow(__m256 v, Bf16) {
    const __m256i b = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(b, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(b, _mm256_set1_epi32(0x7fff)), odd), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    return low_halves(_mm256_blendv_epi8(up, _mm256_set1_epi32(0x7fc0), nan));
  }
  static __m128i narrow(__m256 v, Fp16) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
  template <class T>
  static F load(const T* p) {
    const __m128i* v = reinterpret_cast<const __m128i*>(p);
    return {widen(_mm_loadu_si128(v), T{}), widen(_mm_loadu_si128(v + 1), T{})};
  }
  template <class T>
  static void store(T* p, F v) {
    __m128i* to = reinterpret_cast<__m128i*>(p);
    _mm_storeu_si128(to, narrow(v.a, T{}));
    _mm_storeu_si128(to + 1, narrow(v.b, T{}));
  }
  template <class T>
  static void stream(T* p, F v) {
    __m128i* to = reinterpret_cast<__m128i*>(p);
    _mm_stream_si128(to, narrow(v.a, T{}));
    _mm_stream_si128(to + 1, narrow(v.b, T{}));
  }

  // AVX2 masks words, not halves: the ends of a row pass through a small buffer.
  template <class T>
  static F load_part(const T* p, int lanes) {
    T buffer[kLanes] = {};
    std::memcpy(buffer, p, static_cast<size_t>(lanes) * sizeof(T));
    return load(buffer);
  }
  template <class T>
  static void store_part(T* p, F v, int lanes) {
    T buffer[kLanes];
    store(buffer, v);
    std::memcpy(p, buffer, static_cast<size_t>(lanes) * sizeof(T));
  }
  static void store_codes(uint8_t* p, F v, int lanes) {
    alignas(32) int32_t words[kLanes];
    _mm256_store_si256(reinterpret_cast<__m256i*>(words), _mm256_cvtps_epi32(v.a));
    _mm256_store_si256(reinterpret_cast<__m256i*>(words + 8), _mm256_cvtps_epi32(v.b));
    for (int j = 0; j < lanes; ++j) p[j] = static_cast<uint8_t>(words[j]);
  }

  // Four float64 registers, lanes ascending.
  struct Sum {
    __m256d v[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()};
    static __m256d quarter(F x, int q) {
      const __m256 half = q < 2 ? x.a : x.b;
      return _mm256_cvtps_pd(q % 2 == 0 ? _mm256_castps256_ps128(half) : _mm256_extractf128_ps(half, 1));
    }
    // The product of two floats is exact in float64, so multiply-add rounds once, as multiply and add would.
    void add_product(F x, F y) {
      for (int q = 0; q < 4; ++q) v[q] = _mm256_fmadd_pd(quarter(x, q), quarter(y, q), v[q]);
    }
    void add(F x) {
      for (int q = 0; q < 4; ++q) v[q] = _mm256_add_pd(v[q], quarter(x, q));
    }
    void load(const double* p) {
      for (int q = 0; q < 4; ++q) v[q] = _mm256_loadu_pd(p + 4 * q);
    }
    void store(double* p) const {
      for (int q = 0; q < 4; ++q) _mm256_storeu_pd(p + 4 * q, v[q]);
    }
  };
  static void add_terms(double* p, F x, F y, int lanes) {
    Sum sum;
    if (lanes == kLanes) {
      sum.load(p);
      sum.add_product(x, y);
      sum.store(p);
      return;
    }
    double terms[kLanes];
    sum.add_product(x, y);
    sum.store(terms);
    for (int j = 0; j < lanes; ++j) p[j] += terms[j];
  }
};

}  // namespace

const RowKernels* fake_quantize_rows_avx2() { return &Table<VectorRows<Avx2>>::rows; }

}  // namespace pyquant
#else
#include "cpu/fake_quantize_rows.h"

namespace pyquant {
const RowKernels* fake_quantize_rows_avx2() { return nullptr; }
}  // namespace pyquant
#endif
