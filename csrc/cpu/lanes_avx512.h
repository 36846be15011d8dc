// Sixteen lanes in one AVX-512 register; four products a lane from one vpdpbusd.
#pragma once
#if defined(__GNUC__) && !defined(__clang__)
// gcc's own header leaves the merge operand of unmasked intrinsics unset, and gcc warns of it at every use.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <cstdint>

namespace pyquant {
namespace {

struct Lanes {
  using Ints = __m512i;
  using Floats = __m512;

  static Ints load_ints(const int32_t* p) { return _mm512_loadu_si512(p); }
  static void store_ints(int32_t* p, Ints v) { _mm512_storeu_si512(p, v); }
  static Ints set_int(int32_t v) { return _mm512_set1_epi32(v); }
  static Ints add_ints(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
  static Ints sub_ints(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
  static Ints mul_ints(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
  static Ints load_codes(const uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  // Codes as floats plus kCodeOffset: a code in the low bits of 2^23 is that number plus the code, and takes one shuffle
  // where widening and converting take two. Whoever subtracts a zero point takes the offset off with it, exactly.
  static constexpr float kCodeOffset = 8388608.0f;
  static Floats load_code_floats(const uint8_t* p) {
    const __m512i order = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i codes = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    constexpr __mmask64 kLowest = 0x1111111111111111;
    return _mm512_castsi512_ps(_mm512_mask_shuffle_epi8(_mm512_set1_epi32(0x4B000000), kLowest, codes, order));
  }
  static void store_codes(uint8_t* p, Ints v, int64_t n) {
    __m128i bytes = _mm512_cvtepi32_epi8(v);
    // Keeps gcc from joining this with the store below: vpmovdb to masked memory is microcoded on Zen 4.
    asm("" : "+x"(bytes));
    if (n >= 16) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
    } else {
      _mm_mask_storeu_epi8(p, static_cast<__mmask16>((1u << n) - 1), bytes);
    }
  }

  // Sixteen pixels of three codes each, 48 bytes; every lane holds a code.
  static void store_triples(uint8_t* p, const Ints (&v)[3]) {
    const Ints pixels = _mm512_or_si512(v[0], _mm512_or_si512(_mm512_slli_epi32(v[1], 8), _mm512_slli_epi32(v[2], 16)));
    const __m512i close = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
    const __m512i order = _mm512_setr_epi32(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 15, 15, 15, 15);
    const __m512i bytes = _mm512_permutexvar_epi32(order, _mm512_shuffle_epi8(pixels, close));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_castsi512_si256(bytes));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 32), _mm512_extracti32x4_epi32(bytes, 2));
  }

  // Thirty-two codes to each of two rows: v[0] and v[1] to `a`, v[2] and v[3] to `b`, min(max(round(v), low), high) + zero.
  // Packing saturates, so the lower bound can wait until the codes are bytes; a NaN becomes it, as everywhere. With
  // kSaturate the bounds are 0 and 255 and no v is beyond an integer, so packing is enough.
  template <bool kSaturate>
  static void store_pair(uint8_t* a, uint8_t* b, const Floats (&v)[4], Floats low, Floats high, Ints zero) {
    const auto code = [&](Floats f) { return _mm512_cvtps_epi32(kSaturate ? f : _mm512_min_ps(high, f)); };
    const __m512i zeros = _mm512_packs_epi32(zero, zero);
    const __m512i first = _mm512_adds_epi16(_mm512_packs_epi32(code(v[0]), code(v[1])), zeros);
    const __m512i second = _mm512_adds_epi16(_mm512_packs_epi32(code(v[2]), code(v[3])), zeros);
    __m512i bytes = _mm512_packus_epi16(first, second);
    if (!kSaturate) {
      const __m512i lowest = _mm512_add_epi32(_mm512_cvtps_epi32(low), zero);
      const __m512i words = _mm512_packs_epi32(lowest, lowest);
      bytes = _mm512_max_epu8(bytes, _mm512_packus_epi16(words, words));
    }
    // Dword 4 i + n holds channels 4 i to 4 i + 3 of v[n].
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i sorted = _mm512_permutexvar_epi32(order, bytes);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(a), _mm512_castsi512_si256(sorted));
    // Assembly, because gcc extracts to a register first, which takes the port that the products want.
    asm("vextracti64x4 $1, %1, %0" : "=m"(*reinterpret_cast<__m256i*>(b)) : "v"(sorted));
  }

  static Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
  static Floats load_floats(const float* p, int64_t n) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
  }
  static void store_floats(float* p, Floats v, int64_t n) {
    if (n >= 16) {
      _mm512_storeu_ps(p, v);
    } else {
      _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), v);
    }
  }
  static Floats set_float(float v) { return _mm512_set1_ps(v); }
  static Floats to_float(Ints v) { return _mm512_cvtepi32_ps(v); }
  static Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
  static Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
  static Floats clamp(Floats v, Floats low, Floats high) { return _mm512_min_ps(_mm512_max_ps(v, low), high); }
  // The rounding mode in force is to nearest, ties to even.
  static Ints round(Floats v) { return _mm512_cvtps_epi32(v); }
  // `then` where `v` is a number, 0 where it is a NaN.
  static Floats where_number(Floats v, Floats then) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(v, v, _CMP_ORD_Q), then);
  }

  // Whether every lane is at most `most` from 0.
  static bool all_within(Floats v, Floats most) {
    return _mm512_cmp_ps_mask(_mm512_abs_ps(v), most, _CMP_LE_OQ) == 0xFFFF;
  }

  // Assembly, because gcc copies every accumulator around the intrinsic once the loops are unrolled.
  static Ints dot(Ints acc, __m512i x, __m512i w) {
    asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(x), "v"(w));
    return acc;
  }
};

}  // namespace
}  // namespace pyquant
