// The fake-quantize row kernels for AVX-512: one register is 16 floats.
#if defined(__AVX512F__)
// gcc 12 takes its own header's undefined vectors for a mistake of ours.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "cpu/fake_quantize_vector.h"

namespace pyquant {
namespace {

struct Avx512 {
  using F = __m512;
  using M = __mmask16;

  static __mmask16 first(int lanes) { return static_cast<__mmask16>((1u << lanes) - 1); }

  static F set(float v) { return _mm512_set1_ps(v); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // max and min return the second operand where either is a NaN: a NaN passes through.
  static F clamp(F u, F low, F high) { return _mm512_min_ps(high, _mm512_max_ps(low, u)); }
  static M at_least(F u, F low) { return _mm512_cmp_ps_mask(u, low, _CMP_GE_OQ); }
  static M at_most(F u, F high) { return _mm512_cmp_ps_mask(u, high, _CMP_LE_OQ); }
  static M both(M a, M b) { return a & b; }
  static F keep(M m, F a) { return _mm512_maskz_mov_ps(m, a); }
  static F drop(M m, F a) { return _mm512_maskz_mov_ps(~m, a); }
  static F number_or(F u, F z) { return _mm512_mask_mov_ps(u, _mm512_cmp_ps_mask(u, u, _CMP_UNORD_Q), z); }

  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load_part(const float* p, int lanes) { return _mm512_maskz_loadu_ps(first(lanes), p); }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static void store_part(float* p, F v, int lanes) { _mm512_mask_storeu_ps(p, first(lanes), v); }
  static void stream(float* p, F v) { _mm512_stream_ps(p, v); }
  static void fence() { _mm_sfence(); }

  static __m256i bits(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static F widen(__m256i v, Bf16) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }
  static F widen(__m256i v, Fp16) { return _mm512_cvtph_ps(v); }
  // Not vcvtneps2bf16: it flushes denormals.
  static __m256i narrow(F v, Bf16) {
    const __m512i b = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(b, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(b, _mm512_set1_epi32(0x7fff)), odd), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(up, nan, _mm512_set1_epi32(0x7fc0)));
  }
  static __m256i narrow(F v, Fp16) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  template <class T>
  static F load(const T* p) {
    return widen(bits(p), T{});
  }
  template <class T>
  static F load_part(const T* p, int lanes) {
    return widen(_mm256_maskz_loadu_epi16(first(lanes), p), T{});
  }
  template <class T>
  static void store(T* p, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(v, T{}));
  }
  template <class T>
  static void store_part(T* p, F v, int lanes) {
    _mm256_mask_storeu_epi16(p, first(lanes), narrow(v, T{}));
  }
  template <class T>
  static void stream(T* p, F v) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), narrow(v, T{}));
  }
  static void store_codes(uint8_t* p, F v, int lanes) {
    _mm512_mask_cvtepi32_storeu_epi8(p, first(lanes), _mm512_cvtps_epi32(v));
  }

  static __m512d low(F v) { return _mm512_cvtps_pd(_mm512_castps512_ps256(v)); }
  static __m512d high(F v) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)); }

  // The product of two floats is exact in float64, so multiply-add rounds once, as multiply and add would.
  struct Sum {
    __m512d a = _mm512_setzero_pd(), b = _mm512_setzero_pd();
    void add_product(F x, F y) {
      a = _mm512_fmadd_pd(low(x), low(y), a);
      b = _mm512_fmadd_pd(high(x), high(y), b);
    }
    void add(F x) {
      a = _mm512_add_pd(a, low(x));
      b = _mm512_add_pd(b, high(x));
    }
    void store(double* p) const {
      _mm512_storeu_pd(p, a);
      _mm512_storeu_pd(p + 8, b);
    }
  };
  static void add_terms(double* p, F x, F y, int lanes) {
    const __mmask16 m = first(lanes);
    const __mmask8 ma = static_cast<__mmask8>(m), mb = static_cast<__mmask8>(m >> 8);
    _mm512_mask_storeu_pd(p, ma, _mm512_fmadd_pd(low(x), low(y), _mm512_maskz_loadu_pd(ma, p)));
    _mm512_mask_storeu_pd(p + 8, mb, _mm512_fmadd_pd(high(x), high(y), _mm512_maskz_loadu_pd(mb, p + 8)));
  }
};

}  // namespace

const RowKernels* fake_quantize_rows_avx512() { return &Table<VectorRows<Avx512>>::rows; }

}  // namespace pyquant
#else
#include "cpu/fake_quantize_rows.h"

namespace pyquant {
const RowKernels* fake_quantize_rows_avx512() { return nullptr; }
}  // namespace pyquant
#endif
