// The fake-quantize and AdaQuant row kernels for AVX2: 16 floats are two registers.
#if defined(__AVX2__)
#include <immintrin.h>

#include <cstring>

#include "cpu/adaquant_step_vector.h"
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
  static F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
  static F fnma(F x, F y, F z) { return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)}; }  // z - x y
  static F root(F x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
  static __m256 round(__m256 v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F round(F x) { return {round(x.a), round(x.b)}; }
  // max and min return the second operand where either is a NaN: a NaN passes through.
  static F clamp(F u, F low, F high) {
    return {_mm256_min_ps(high.a, _mm256_max_ps(low.a, u.a)), _mm256_min_ps(high.b, _mm256_max_ps(low.b, u.b))};
  }
  static M same(F x, F y) { return {_mm256_cmp_ps(x.a, y.a, _CMP_EQ_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_EQ_OQ)}; }
  static bool all(M m) { return _mm256_movemask_ps(_mm256_and_ps(m.a, m.b)) == 0xff; }
  static uint32_t bits_of(M m) { return static_cast<uint32_t>(_mm256_movemask_ps(m.a) | _mm256_movemask_ps(m.b) << 8); }
  static M mask_of(uint32_t bits) {
    const __m256i all = _mm256_set1_epi32(static_cast<int>(bits));
    const __m256i low = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128), high = _mm256_slli_epi32(low, 8);
    return {_mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(all, low), low)),
            _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(all, high), high))};
  }
  // 0 for less than 2^-63: an exponent without its two upper bits.
  static __m256 drop_tiny(__m256 x) {
    const __m256i upper = _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x60000000));
    return _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_cmpgt_epi32(upper, _mm256_setzero_si256())));
  }
  static F drop_tiny(F x) { return {drop_tiny(x.a), drop_tiny(x.b)}; }
  static F keep(M m, F x) { return {_mm256_and_ps(m.a, x.a), _mm256_and_ps(m.b, x.b)}; }
  static F drop(M m, F x) { return {_mm256_andnot_ps(m.a, x.a), _mm256_andnot_ps(m.b, x.b)}; }
  static F sub_where(M m, F x, F y) { return sub(x, keep(m, y)); }
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
  template <class T>
  static F load(const T* p) {
    const __m128i* v = reinterpret_cast<const __m128i*>(p);
    return {widen(_mm_loadu_si128(v), T{}), widen(_mm_loadu_si128(v + 1), T{})};
  }
  static void store_codes(uint8_t* p, F v, int lanes) {
    alignas(32) int32_t words[kLanes];
    _mm256_store_si256(reinterpret_cast<__m256i*>(words), _mm256_cvtps_epi32(v.a));
    _mm256_store_si256(reinterpret_cast<__m256i*>(words + 8), _mm256_cvtps_epi32(v.b));
    for (int j = 0; j < lanes; ++j) p[j] = static_cast<uint8_t>(words[j]);
  }
  // AVX2 masks words, not halves: the end of a row passes through a small buffer.
  template <class T>
  static F load_part(const T* p, int lanes) {
    T buffer[kLanes] = {};
    std::memcpy(buffer, p, static_cast<size_t>(lanes) * sizeof(T));
    return load(buffer);
  }

  // A step: kStep elements, or the first `lanes` of them and zeros; bf16 as its even and its odd halves.
  static void whole2(const float* p, F& a, F& b) {
    a = load(p);
    b = load(p + kLanes);
  }
  static void whole2(const Fp16* p, F& a, F& b) {
    a = load(p);
    b = load(p + kLanes);
  }
  static __m256 even(__m256i v) { return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16)); }
  static __m256 odd(__m256i v) {
    return _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
  }
  static void whole2(const Bf16* p, F& a, F& b) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + kLanes));
    a = {even(v), even(w)};
    b = {odd(v), odd(w)};
  }
  template <class T>
  static void load2(const T* p, int lanes, F& a, F& b) {
    if (lanes == kStep) return whole2(p, a, b);
    T buffer[kStep] = {};
    std::memcpy(buffer, p, static_cast<size_t>(lanes) * sizeof(T));
    whole2(buffer, a, b);
  }

  template <bool kStream>
  static void whole2(float* p, F a, F b) {
    store<kStream>(p, a.a);
    store<kStream>(p + 8, a.b);
    store<kStream>(p + 16, b.a);
    store<kStream>(p + 24, b.b);
  }
  template <bool kStream>
  static void store(float* p, __m256 v) {
    kStream ? _mm256_stream_ps(p, v) : _mm256_storeu_ps(p, v);
  }
  template <bool kStream>
  static void store(void* p, __m256i v) {
    kStream ? _mm256_stream_si256(static_cast<__m256i*>(p), v) : _mm256_storeu_si256(static_cast<__m256i*>(p), v);
  }
  // Rounds to the upper half, to even. A NaN here came from a bf16, whose lower half is 0, so rounding cannot carry it out of the NaNs.
  static __m256i rounded(__m256 v) {
    const __m256i b = _mm256_castps_si256(v);
    const __m256i odd_bit = _mm256_and_si256(_mm256_srli_epi32(b, 16), _mm256_set1_epi32(1));
    return _mm256_add_epi32(_mm256_add_epi32(b, _mm256_set1_epi32(0x7fff)), odd_bit);
  }
  static __m256i woven(__m256i even_halves, __m256i odd_halves) {
    return _mm256_blend_epi16(_mm256_srli_epi32(even_halves, 16), odd_halves, 0xaa);
  }
  template <bool kStream>
  static void whole2(Bf16* p, F a, F b) {
    store<kStream>(p, woven(rounded(a.a), rounded(b.a)));
    store<kStream>(p + kLanes, woven(rounded(a.b), rounded(b.b)));
  }
  template <bool kStream>
  static void whole2(Fp16* p, F a, F b) {
    store<kStream>(p, narrow(a));
    store<kStream>(p + kLanes, narrow(b));
  }
  static __m256i narrow(F v) {
    return _mm256_set_m128i(_mm256_cvtps_ph(v.b, _MM_FROUND_TO_NEAREST_INT), _mm256_cvtps_ph(v.a, _MM_FROUND_TO_NEAREST_INT));
  }
  template <bool kStream, class T>
  static void store2(T* p, int lanes, F a, F b) {
    if (lanes == kStep) return whole2<kStream>(p, a, b);
    alignas(32) T buffer[kStep];
    whole2<false>(buffer, a, b);
    std::memcpy(p, buffer, static_cast<size_t>(lanes) * sizeof(T));
  }
  // Stores the elements of a step that the masks keep, and 0 for the others; `from` is where a and b were loaded.
  template <bool kStream, class T>
  static void keep2(T* p, int lanes, const T*, M keep_a, F a, M keep_b, F b) {
    store2<kStream>(p, lanes, keep(keep_a, a), keep(keep_b, b));
  }

  // Four float64 registers, lanes ascending.
  struct Sum {
    __m256d v[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()};
    static __m256d quarter(F x, int q) {
      const __m256 half = q < 2 ? x.a : x.b;
      return _mm256_cvtps_pd(q % 2 == 0 ? _mm256_castps256_ps128(half) : _mm256_extractf128_ps(half, 1));
    }
    void load(const double* p) {
      for (int q = 0; q < 4; ++q) v[q] = _mm256_loadu_pd(p + 4 * q);
    }
    void store(double* p) const {
      for (int q = 0; q < 4; ++q) _mm256_storeu_pd(p + 4 * q, v[q]);
    }
    double fold() const {
      const __m256d four = _mm256_add_pd(_mm256_add_pd(v[0], v[2]), _mm256_add_pd(v[1], v[3]));
      const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
      return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
    }
  };
  // As fold_lanes.
  static void fold(const Sum& slopes, const Sum& outsides, double* slope, double* outside) {
    *slope = slopes.fold();
    *outside = outsides.fold();
  }
  // Adds d * slope to one sum, and d where it is outside to the other. The product of two floats is exact in float64, so
  // multiply-add rounds once, as multiply and add would.
  static void add_terms(Sum& slopes, Sum& outsides, F d, F slope, M inside) {
    const F out = drop(inside, d);
    for (int q = 0; q < 4; ++q) {
      slopes.v[q] = _mm256_fmadd_pd(Sum::quarter(d, q), Sum::quarter(slope, q), slopes.v[q]);
      outsides.v[q] = _mm256_add_pd(outsides.v[q], Sum::quarter(out, q));
    }
  }
};

}  // namespace

const RowKernels* fake_quantize_rows_avx2() { return &Table<VectorRows<Avx2>>::rows; }
const AdaquantRowKernels* adaquant_rows_avx2() { return &AdaquantVector<Avx2>::kernels; }

}  // namespace pyquant
#else
#include "cpu/adaquant_step_rows.h"

namespace pyquant {
const RowKernels* fake_quantize_rows_avx2() { return nullptr; }
const AdaquantRowKernels* adaquant_rows_avx2() { return nullptr; }
}  // namespace pyquant
#endif
