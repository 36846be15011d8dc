// A depthwise block: four pieces of 16 channels, one in each 128-bit lane, so that a pixel's whole cache line is read and
// written at once. Vector v of four holds channels 4 v to 4 v + 3 of every piece: what unpacking gives, and packing takes.
#pragma once
#include "cpu/kernels.h"
#include "cpu/lanes_avx512.h"

namespace pyquant {
namespace {

struct Block {
  static constexpr int kPieces = 4;
  // Of the four vectors, two at a time: with seven columns, which divide the usual widths, 14 accumulators.
  static constexpr int kPasses = 2;
  static constexpr int kVectors = 2;
  static constexpr int kColumns = 7;
  static constexpr int64_t kColumnBytes = 256;  // of a quad
  static constexpr int64_t kWeightBytes = 256;

  using Ints = __m512i;
  using Floats = __m512;
  using Weights = __m512i;
  using Part = __m512i;  // two vectors' codes in 16 bits

  // P panels of each of 4 / P streams, `apart` bytes away.
  template <int P>
  static __m512i load_pieces(const uint8_t* p, const int64_t* apart) {
    if (P == 4) return _mm512_loadu_si512(p);
    const auto half = [&](int t) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + apart[t])); };
    // Masked broadcasts from memory: unlike inserts, they leave the one shuffle port alone.
    if (P == 2) return _mm512_mask_broadcast_i64x4(_mm512_castsi256_si512(half(0)), 0xF0, half(1));
    const auto quarter = [&](int t) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + apart[t])); };
    __m512i all = _mm512_castsi128_si512(quarter(0));
    all = _mm512_mask_broadcast_i32x4(all, 0x00F0, quarter(1));
    all = _mm512_mask_broadcast_i32x4(all, 0x0F00, quarter(2));
    return _mm512_mask_broadcast_i32x4(all, 0xF000, quarter(3));
  }

  // Four rows -> [4 vectors][16 channels][4 rows].
  template <int P>
  static void interleave(const uint8_t* const* rows, int64_t offset, const int64_t* apart, uint8_t* out) {
    __m512i r[4];
    for (int i = 0; i < 4; ++i) r[i] = load_pieces<P>(rows[i] + offset, apart);
    const __m512i low01 = _mm512_unpacklo_epi8(r[0], r[1]), high01 = _mm512_unpackhi_epi8(r[0], r[1]);
    const __m512i low23 = _mm512_unpacklo_epi8(r[2], r[3]), high23 = _mm512_unpackhi_epi8(r[2], r[3]);
    _mm512_store_si512(out, _mm512_unpacklo_epi16(low01, low23));
    _mm512_store_si512(out + 64, _mm512_unpackhi_epi16(low01, low23));
    _mm512_store_si512(out + 128, _mm512_unpacklo_epi16(high01, high23));
    _mm512_store_si512(out + 192, _mm512_unpackhi_epi16(high01, high23));
  }

  static Ints load_seed(const int32_t* p, int v) { return _mm512_loadu_si512(p + 16 * v); }
  static Weights load_weights(const int8_t* p, int v) { return _mm512_loadu_si512(p + 64 * v); }
  static Ints dot(Ints acc, const uint8_t* column, int v, Weights w) {
    return Lanes::dot(acc, _mm512_load_si512(column + 64 * v), w);
  }

  // What a group of channels needs when its sums are done.
  struct Finish {
    const float *multiplier, *bias;
    Floats high, residual_zero, residual_scale;
    __m512i zero, low_bytes;

    Finish(const Epilogue& e, int64_t channel)
        : multiplier(e.multiplier + channel),
          bias(e.bias + channel),
          high(_mm512_set1_ps(e.high_less_zero)),
          residual_zero(_mm512_set1_ps(e.residual_zero)),
          residual_scale(_mm512_set1_ps(e.residual_scale)),
          zero(_mm512_set1_epi16(static_cast<int16_t>(e.zero))),
          low_bytes(_mm512_set1_epi8(static_cast<int8_t>(static_cast<int32_t>(e.low_less_zero) + e.zero))) {}

    Floats affine(Ints acc, int v) const {
      return _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(acc), _mm512_loadu_ps(multiplier + 16 * v)),
                           _mm512_loadu_ps(bias + 16 * v));
    }

    template <int P>
    Floats add_residual(Floats y, const uint8_t* residual, const int64_t* apart, int v) const {
      const __m512i bytes = load_pieces<P>(residual, apart);
      const __m512i spread = _mm512_broadcast_i32x4(
          _mm_setr_epi8(0, -1, -1, -1, 1, -1, -1, -1, 2, -1, -1, -1, 3, -1, -1, -1));
      const __m512i place = _mm512_add_epi32(spread, _mm512_set1_epi32(4 * v));
      const Floats codes = _mm512_cvtepi32_ps(_mm512_shuffle_epi8(bytes, place));
      return _mm512_add_ps(y, _mm512_mul_ps(_mm512_sub_ps(codes, residual_zero), residual_scale));
    }

    // Packing saturates, so the lower bound can wait until the codes are bytes; a NaN becomes it, as everywhere.
    Part part(const Floats (&y)[2]) const {
      const auto code = [&](Floats f) { return _mm512_cvtps_epi32(_mm512_min_ps(high, f)); };
      return _mm512_adds_epi16(_mm512_packs_epi32(code(y[0]), code(y[1])), zero);
    }

    // `n` bytes to each of the streams.
    template <int P>
    void store(const Part (&parts)[2], uint8_t* to, const int64_t* apart, int64_t n) const {
      const __m512i bytes = _mm512_max_epu8(_mm512_packus_epi16(parts[0], parts[1]), low_bytes);
      if (P == 4) {
        if (n >= 64) {
          _mm512_storeu_si512(to, bytes);
        } else {
          _mm512_mask_storeu_epi8(to, ~__mmask64{0} >> (64 - n), bytes);
        }
      } else if (P == 2) {
        const __m256i halves[2] = {_mm512_castsi512_si256(bytes), _mm512_extracti64x4_epi64(bytes, 1)};
        for (int t = 0; t < 2; ++t) {
          if (n >= 32) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + apart[t]), halves[t]);
          } else {
            _mm256_mask_storeu_epi8(to + apart[t], ~__mmask32{0} >> (32 - n), halves[t]);
          }
        }
      } else {
        const __m128i quarters[4] = {_mm512_castsi512_si128(bytes), _mm512_extracti32x4_epi32(bytes, 1),
                                     _mm512_extracti32x4_epi32(bytes, 2), _mm512_extracti32x4_epi32(bytes, 3)};
        for (int t = 0; t < 4; ++t) {
          if (n >= 16) {
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to + apart[t]), quarters[t]);
          } else {
            _mm_mask_storeu_epi8(to + apart[t], static_cast<__mmask16>((1u << n) - 1), quarters[t]);
          }
        }
      }
    }
  };
};

}  // namespace
}  // namespace pyquant
