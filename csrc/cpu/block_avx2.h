// A depthwise block for AVX2: two pieces of 16 channels, one in each 128-bit lane. Vector v of four holds channels 4 v to
// 4 v + 3 of both pieces: what unpacking gives, and packing takes. There is no vpdpbusd, and maddubs saturates, so columns are
// interleaved as 16-bit numbers, rows 0 and 2 of a quad apart from 1 and 3, and multiplied with pmaddwd.
#pragma once
#include "cpu/kernels.h"
#include "cpu/lanes_avx2.h"

namespace pyquant {
namespace {

struct Block {
  static constexpr int kPieces = 2;
  // Of the four vectors, two at a time: 8 accumulators and 4 registers of weights out of 16.
  static constexpr int kPasses = 2;
  static constexpr int kVectors = 2;
  static constexpr int kColumns = 4;
  static constexpr int64_t kColumnBytes = 256;  // of a quad
  static constexpr int64_t kWeightBytes = 128;

  using Ints = __m256i;
  using Floats = __m256;
  using Part = __m256i;  // two vectors' codes in 16 bits
  struct Weights {
    __m256i even, odd;
  };

  static __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

  // P panels of each of 2 / P streams, `apart` bytes away.
  template <int P>
  static __m256i load_pieces(const uint8_t* p, const int64_t* apart) {
    if (P == 2) return load(p);
    const auto half = [&](int t) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + apart[t])); };
    return _mm256_inserti128_si256(_mm256_castsi128_si256(half(0)), half(1), 1);
  }

  // Four rows -> [4 vectors][even, odd][8 channels][2 rows] in 16 bits.
  template <int P>
  static void interleave(const uint8_t* const* rows, int64_t offset, const int64_t* apart, uint8_t* out) {
    __m256i r[4];
    for (int i = 0; i < 4; ++i) r[i] = load_pieces<P>(rows[i] + offset, apart);
    const __m256i none = _mm256_setzero_si256();
    for (int odd = 0; odd < 2; ++odd) {
      const __m256i low = _mm256_unpacklo_epi8(r[odd], r[2 + odd]), high = _mm256_unpackhi_epi8(r[odd], r[2 + odd]);
      __m256i* to = reinterpret_cast<__m256i*>(out) + odd;
      _mm256_store_si256(to, _mm256_unpacklo_epi8(low, none));
      _mm256_store_si256(to + 2, _mm256_unpackhi_epi8(low, none));
      _mm256_store_si256(to + 4, _mm256_unpacklo_epi8(high, none));
      _mm256_store_si256(to + 6, _mm256_unpackhi_epi8(high, none));
    }
  }

  static Ints load_seed(const int32_t* p, int v) { return load(p + 8 * v); }
  static Weights load_weights(const int8_t* p, int v) {
    const __m256i bytes = load(p + 32 * v);
    return {Lanes::signed_even(bytes), Lanes::signed_odd(bytes)};
  }
  static Ints dot(Ints acc, const uint8_t* column, int v, const Weights& w) {
    const __m256i* x = reinterpret_cast<const __m256i*>(column) + 2 * v;
    return Lanes::sum_products(acc, _mm256_load_si256(x), w.even, _mm256_load_si256(x + 1), w.odd);
  }

  // What a group of channels needs when its sums are done.
  struct Finish {
    const float *multiplier, *bias;
    Floats high, residual_zero, residual_scale;
    __m256i zero, low_bytes;

    Finish(const Epilogue& e, int64_t channel)
        : multiplier(e.multiplier + channel),
          bias(e.bias + channel),
          high(_mm256_set1_ps(e.high_less_zero)),
          residual_zero(_mm256_set1_ps(e.residual_zero)),
          residual_scale(_mm256_set1_ps(e.residual_scale)),
          zero(_mm256_set1_epi16(static_cast<int16_t>(e.zero))),
          low_bytes(_mm256_set1_epi8(static_cast<int8_t>(static_cast<int32_t>(e.low_less_zero) + e.zero))) {}

    Floats affine(Ints acc, int v) const {
      return _mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(acc), _mm256_loadu_ps(multiplier + 8 * v)),
                           _mm256_loadu_ps(bias + 8 * v));
    }

    template <int P>
    Floats add_residual(Floats y, const uint8_t* residual, const int64_t* apart, int v) const {
      const __m256i bytes = load_pieces<P>(residual, apart);
      const __m256i place = _mm256_setr_epi8(0, -1, -1, -1, 1, -1, -1, -1, 2, -1, -1, -1, 3, -1, -1, -1,  //
                                             0, -1, -1, -1, 1, -1, -1, -1, 2, -1, -1, -1, 3, -1, -1, -1);
      const __m256i shifted = _mm256_add_epi32(place, _mm256_set1_epi32(4 * v));
      const Floats codes = _mm256_cvtepi32_ps(_mm256_shuffle_epi8(bytes, shifted));
      return _mm256_add_ps(y, _mm256_mul_ps(_mm256_sub_ps(codes, residual_zero), residual_scale));
    }

    // Packing saturates, so the lower bound can wait until the codes are bytes; a NaN becomes it, as everywhere.
    Part part(const Floats (&y)[2]) const {
      const auto code = [&](Floats f) { return _mm256_cvtps_epi32(_mm256_min_ps(high, f)); };
      return _mm256_adds_epi16(_mm256_packs_epi32(code(y[0]), code(y[1])), zero);
    }

    // `n` bytes to each of the streams.
    template <int P>
    void store(const Part (&parts)[2], uint8_t* to, const int64_t* apart, int64_t n) const {
      const __m256i bytes = _mm256_max_epu8(_mm256_packus_epi16(parts[0], parts[1]), low_bytes);
      if (n >= 16 * P && P == 2) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bytes);
      } else if (n >= 16 * P) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(bytes));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + apart[1]), _mm256_extracti128_si256(bytes, 1));
      } else {
        alignas(32) uint8_t all[32];
        _mm256_store_si256(reinterpret_cast<__m256i*>(all), bytes);
        __builtin_memcpy(to, all, static_cast<size_t>(n));
        if (P == 1) __builtin_memcpy(to + apart[1], all + 16, static_cast<size_t>(n));
      }
    }
  };
};

}  // namespace
}  // namespace pyquant
