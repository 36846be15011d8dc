// The fake-quantize and AdaQuant row kernels for AVX-512: one register is 16 floats.
#if defined(__AVX512F__)
// gcc 12 takes its own header's undefined vectors for a mistake of ours.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "cpu/adaquant_step_vector.h"
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
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a b
  static F root(F a) { return _mm512_sqrt_ps(a); }
  static F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // max and min return the second operand where either is a NaN: a NaN passes through.
  static F clamp(F u, F low, F high) { return _mm512_min_ps(high, _mm512_max_ps(low, u)); }
  static M same(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
  static bool all(M m) { return m == 0xffff; }
  static uint32_t bits_of(M m) { return m; }
  static M mask_of(uint32_t bits) { return static_cast<M>(bits); }
  // 0 for less than 2^-63: an exponent without its two upper bits.
  static F drop_tiny(F a) {
    return _mm512_maskz_mov_ps(_mm512_test_epi32_mask(_mm512_castps_si512(a), _mm512_set1_epi32(0x60000000)), a);
  }
  static F keep(M m, F a) { return _mm512_maskz_mov_ps(m, a); }
  static F sub_where(M m, F a, F b) { return _mm512_mask_sub_ps(a, m, a, b); }
  static F number_or(F u, F z) { return _mm512_mask_mov_ps(u, _mm512_cmp_ps_mask(u, u, _CMP_UNORD_Q), z); }

  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load_part(const float* p, int lanes) { return _mm512_maskz_loadu_ps(first(lanes), p); }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static void stream(float* p, F v) { _mm512_stream_ps(p, v); }
  static void fence() { _mm_sfence(); }

  static __m256i bits(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static F widen(__m256i v, Bf16) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }
  static F widen(__m256i v, Fp16) { return _mm512_cvtph_ps(v); }
  template <class T>
  static F load(const T* p) {
    return widen(bits(p), T{});
  }
  template <class T>
  static F load_part(const T* p, int lanes) {
    return widen(_mm256_maskz_loadu_epi16(first(lanes), p), T{});
  }
  static void store_codes(uint8_t* p, F v, int lanes) {
    _mm512_mask_cvtepi32_storeu_epi8(p, first(lanes), _mm512_cvtps_epi32(v));
  }

  // A step: kStep elements, or the first `lanes` of them and zeros; bf16 as its even and its odd halves.
  static __mmask16 low_part(int lanes) { return first(lanes < kLanes ? lanes : kLanes); }
  static __mmask16 high_part(int lanes) { return first(lanes < kLanes ? 0 : lanes - kLanes); }
  static __mmask32 part(int lanes) { return static_cast<__mmask32>((uint64_t{1} << lanes) - 1); }
  static __m512i halves(const void* p, int lanes) {
    return lanes == kStep ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi16(part(lanes), p);
  }
  template <bool kStream>
  static void store_halves(void* p, int lanes, __m512i v) {
    if (lanes < kStep) {
      _mm512_mask_storeu_epi16(p, part(lanes), v);
    } else if (kStream) {
      _mm512_stream_si512(static_cast<__m512i*>(p), v);
    } else {
      _mm512_storeu_si512(p, v);
    }
  }

  static void load2(const float* p, int lanes, F& a, F& b) {
    a = lanes == kStep ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(low_part(lanes), p);
    b = lanes == kStep ? _mm512_loadu_ps(p + kLanes) : _mm512_maskz_loadu_ps(high_part(lanes), p + kLanes);
  }
  static void load2(const Bf16* p, int lanes, F& a, F& b) {
    const __m512i v = halves(p, lanes);
    a = _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
    b = _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
  }
  static void load2(const Fp16* p, int lanes, F& a, F& b) {
    if (lanes == kStep) {
      a = _mm512_cvtph_ps(bits(p));
      b = _mm512_cvtph_ps(bits(p + kLanes));
    } else {
      a = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(low_part(lanes), p));
      b = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(high_part(lanes), p + kLanes));
    }
  }

  template <bool kStream>
  static void store2(float* p, int lanes, F a, F b) {
    if (lanes < kStep) {
      _mm512_mask_storeu_ps(p, low_part(lanes), a);
      _mm512_mask_storeu_ps(p + kLanes, high_part(lanes), b);
    } else if (kStream) {
      _mm512_stream_ps(p, a);
      _mm512_stream_ps(p + kLanes, b);
    } else {
      _mm512_storeu_ps(p, a);
      _mm512_storeu_ps(p + kLanes, b);
    }
  }
  // Rounds to the upper half, to even; not vcvtneps2bf16: it flushes denormals. A NaN here came from a bf16, whose lower half is 0, so
  // rounding cannot carry it out of the NaNs.
  static __m512i rounded(F v) {
    const __m512i b = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(b, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(_mm512_add_epi32(b, _mm512_set1_epi32(0x7fff)), odd);
  }
  static __m512i woven(__m512i even, __m512i odd) { return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(even, 16), odd); }
  template <bool kStream>
  static void store2(Bf16* p, int lanes, F a, F b) {
    store_halves<kStream>(p, lanes, woven(rounded(a), rounded(b)));
  }
  template <bool kStream>
  static void store2(Fp16* p, int lanes, F a, F b) {
    const __m256i low = _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256i high = _mm512_cvtps_ph(b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    store_halves<kStream>(p, lanes, _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
  }

  // Stores the elements of a step that the masks keep, and 0 for the others; `from` is where a and b were loaded.
  template <bool kStream>
  static void keep2(float* p, int lanes, const float*, M keep_a, F a, M keep_b, F b) {
    store2<kStream>(p, lanes, keep(keep_a, a), keep(keep_b, b));
  }
  template <bool kStream>
  static void keep2(Bf16* p, int lanes, const Bf16*, M keep_a, F a, M keep_b, F b) {
    store_halves<kStream>(p, lanes, woven(_mm512_castps_si512(keep(keep_a, a)), _mm512_castps_si512(keep(keep_b, b))));
  }
  template <bool kStream>
  static void keep2(Fp16* p, int lanes, const Fp16* from, M keep_a, F, M keep_b, F) {
    store_halves<kStream>(p, lanes, _mm512_maskz_mov_epi16(_mm512_kunpackw(keep_b, keep_a), halves(from, lanes)));
  }

  static __m512d low(F v) { return _mm512_cvtps_pd(_mm512_castps512_ps256(v)); }
  static __m512d high(F v) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)); }

  struct Sum {
    __m512d a = _mm512_setzero_pd(), b = _mm512_setzero_pd();
    void load(const double* p) {
      a = _mm512_loadu_pd(p);
      b = _mm512_loadu_pd(p + 8);
    }
    void store(double* p) const {
      _mm512_storeu_pd(p, a);
      _mm512_storeu_pd(p + 8, b);
    }
    __m256d four() const {
      const __m512d eight = _mm512_add_pd(a, b);
      return _mm256_add_pd(_mm512_castpd512_pd256(eight), _mm512_extractf64x4_pd(eight, 1));
    }
  };
  // As fold_lanes, the last steps of both sums beside each other.
  static void fold(const Sum& slopes, const Sum& outsides, double* slope, double* outside) {
    const __m256d s = slopes.four(), o = outsides.four();
    const __m256d two = _mm256_add_pd(_mm256_permute2f128_pd(s, o, 0x20), _mm256_permute2f128_pd(s, o, 0x31));
    const __m256d one = _mm256_add_pd(two, _mm256_permute_pd(two, 0x5));
    _mm_storel_pd(slope, _mm256_castpd256_pd128(one));
    _mm_storel_pd(outside, _mm256_extractf128_pd(one, 1));
  }
  // Adds d * slope to one sum, and d where it is outside to the other. The product of two floats is exact in float64, so
  // multiply-add rounds once, as multiply and add would.
  static void add_terms(Sum& slopes, Sum& outsides, F d, F slope, M inside) {
    const __m512d da = low(d), db = high(d);
    slopes.a = _mm512_fmadd_pd(da, low(slope), slopes.a);
    slopes.b = _mm512_fmadd_pd(db, high(slope), slopes.b);
    const __mmask16 out = static_cast<__mmask16>(~inside);
    outsides.a = _mm512_mask_add_pd(outsides.a, static_cast<__mmask8>(out), outsides.a, da);
    outsides.b = _mm512_mask_add_pd(outsides.b, static_cast<__mmask8>(out >> 8), outsides.b, db);
  }
};

}  // namespace

const RowKernels* fake_quantize_rows_avx512() { return &Table<VectorRows<Avx512>>::rows; }
const AdaquantRowKernels* adaquant_rows_avx512() { return &AdaquantVector<Avx512>::kernels; }

}  // namespace pyquant
#else
#include "cpu/adaquant_step_rows.h"

namespace pyquant {
const RowKernels* fake_quantize_rows_avx512() { return nullptr; }
const AdaquantRowKernels* adaquant_rows_avx512() { return nullptr; }
}  // namespace pyquant
#endif
