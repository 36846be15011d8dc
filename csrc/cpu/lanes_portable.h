// Sixteen lanes as four 16-byte vectors of the compiler's own vector extension (gcc and clang): SSE2, NEON, or plain code.
// Loops over arrays would do in principle, but gcc unrolls them before it looks for vectors.
#pragma once
#include <cstddef>
#include <cstdint>

namespace pyquant {
namespace {

typedef int32_t Int4 __attribute__((vector_size(16)));
typedef uint32_t Unsigned4 __attribute__((vector_size(16)));
typedef float Float4 __attribute__((vector_size(16)));
typedef int16_t Short4 __attribute__((vector_size(8)));

struct Lanes {
  static constexpr int kRows = 4;
  static constexpr int kSteps = 1;
  static constexpr int kColumns = 4;

  // Partial sums may wrap around where the corrected sum does not, so integers are kept as unsigned.
  struct Ints {
    Unsigned4 v[4];
  };
  struct Floats {
    Float4 v[4];
  };
  // Split by position in the dword, and widened once for all the pixels of a tile.
  struct Weights {
    Short4 v[4][4];
  };
  struct Broadcast {
    int16_t v[4];
  };
  struct Columns {
    Short4 v[4][4];
  };

  static Ints load_ints(const int32_t* p) {
    Ints r;
    __builtin_memcpy(&r, p, sizeof(r));
    return r;
  }
  static void store_ints(int32_t* p, const Ints& v) { __builtin_memcpy(p, &v, sizeof(v)); }
  static Ints set_int(int32_t v) {
    const uint32_t u = static_cast<uint32_t>(v);
    const Unsigned4 four = {u, u, u, u};
    return {{four, four, four, four}};
  }
  static Ints add_ints(Ints a, const Ints& b) {
    for (int i = 0; i < 4; ++i) a.v[i] += b.v[i];
    return a;
  }
  static Ints sub_ints(Ints a, const Ints& b) {
    for (int i = 0; i < 4; ++i) a.v[i] -= b.v[i];
    return a;
  }
  static Ints mul_ints(Ints a, const Ints& b) {
    for (int i = 0; i < 4; ++i) a.v[i] *= b.v[i];
    return a;
  }
  static Ints load_codes(const uint8_t* p) {
    Ints r;
    for (int i = 0; i < 4; ++i) r.v[i] = Unsigned4{p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3]};
    return r;
  }
  static constexpr float kCodeOffset = 0.0f;
  static Floats load_code_floats(const uint8_t* p) { return to_float(load_codes(p)); }
  static void store_codes(uint8_t* p, const Ints& v, int64_t n) {
    uint8_t all[16];
    for (int i = 0; i < 16; ++i) all[i] = static_cast<uint8_t>(v.v[i / 4][i % 4]);
    __builtin_memcpy(p, all, static_cast<size_t>(n < 16 ? n : 16));
  }

  // Sixteen pixels of three codes each, 48 bytes; every lane holds a code.
  static void store_triples(uint8_t* p, const Ints (&v)[3]) {
    for (int i = 0; i < 48; ++i) p[i] = static_cast<uint8_t>(v[i % 3].v[i / 12][i / 3 % 4]);
  }

  static Floats load_floats(const float* p) {
    Floats r;
    __builtin_memcpy(&r, p, sizeof(r));
    return r;
  }
  static Floats load_floats(const float* p, int64_t n) {
    Floats r = set_float(0);
    __builtin_memcpy(&r, p, static_cast<size_t>(n) * sizeof(float));
    return r;
  }
  static void store_floats(float* p, const Floats& v, int64_t n) {
    __builtin_memcpy(p, &v, static_cast<size_t>(n < 16 ? n : 16) * sizeof(float));
  }
  static Floats set_float(float v) {
    const Float4 four = {v, v, v, v};
    return {{four, four, four, four}};
  }
  static Floats to_float(const Ints& v) {
    Floats r;
    for (int i = 0; i < 4; ++i) r.v[i] = __builtin_convertvector(reinterpret_cast<Int4>(v.v[i]), Float4);
    return r;
  }
  static Floats add(Floats a, const Floats& b) {
    for (int i = 0; i < 4; ++i) a.v[i] += b.v[i];
    return a;
  }
  static Floats sub(Floats a, const Floats& b) {
    for (int i = 0; i < 4; ++i) a.v[i] -= b.v[i];
    return a;
  }
  static Floats mul(Floats a, const Floats& b) {
    for (int i = 0; i < 4; ++i) a.v[i] *= b.v[i];
    return a;
  }
  static Floats div(Floats a, const Floats& b) {
    for (int i = 0; i < 4; ++i) a.v[i] /= b.v[i];
    return a;
  }
  static Float4 select(Int4 mask, Float4 yes, Float4 no) {
    return reinterpret_cast<Float4>((reinterpret_cast<Int4>(yes) & mask) | (reinterpret_cast<Int4>(no) & ~mask));
  }
  static Floats clamp(Floats a, const Floats& low, const Floats& high) {
    for (int i = 0; i < 4; ++i) {
      const Float4 raised = select(a.v[i] < low.v[i], low.v[i], a.v[i]);
      a.v[i] = select(raised > high.v[i], high.v[i], raised);
    }
    return a;
  }
  // Beside 1.5 * 2^23 floats are whole numbers, so the sum rounds to nearest, ties to even: true for |v| < 2^22, and the
  // caller has clamped v to codes.
  static Ints round(const Floats& v) {
    constexpr float kWhole = 12582912.0f;
    Ints r;
    for (int i = 0; i < 4; ++i) {
      r.v[i] = reinterpret_cast<Unsigned4>(__builtin_convertvector((v.v[i] + kWhole) - kWhole, Int4));
    }
    return r;
  }
  // `then` where `v` is a number, 0 where it is a NaN.
  static Floats where_number(const Floats& v, Floats then) {
    for (int i = 0; i < 4; ++i) then.v[i] = select(v.v[i] == v.v[i], then.v[i], Float4{});
    return then;
  }

  // Whether every lane is at most `most` from 0.
  static bool all_within(const Floats& v, const Floats& most) {
    Int4 beyond = {};
    for (int i = 0; i < 4; ++i) beyond |= (v.v[i] > most.v[i]) | (v.v[i] < -most.v[i]);
    return (beyond[0] | beyond[1] | beyond[2] | beyond[3]) == 0;
  }

  // 64 bytes as four vectors of dwords -> the j-th byte of each, signed or not, as 16 bits.
  static void split(const void* p, bool is_signed, Short4 (&to)[4][4]) {
    for (int i = 0; i < 4; ++i) {
      Int4 dwords;
      __builtin_memcpy(&dwords, static_cast<const uint8_t*>(p) + 16 * i, 16);
      for (int j = 0; j < 4; ++j) {
        const Int4 byte = is_signed ? (dwords << (24 - 8 * j)) >> 24 : (dwords >> (8 * j)) & 255;
        to[j][i] = __builtin_convertvector(byte, Short4);
      }
    }
  }
  static Weights load_weights(const int8_t* p) {
    Weights w;
    split(p, true, w.v);
    return w;
  }
  // A product of uint8 and int8 fits 16 bits; a sum of two does not.
  static void accumulate(Unsigned4& acc, Short4 products) {
    acc += reinterpret_cast<Unsigned4>(__builtin_convertvector(products, Int4));
  }
  static Broadcast broadcast(const uint8_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
  static Ints dot(Ints acc, const Broadcast& x, const Weights& w) {
    for (int j = 0; j < 4; ++j) {
      const Short4 four = {x.v[j], x.v[j], x.v[j], x.v[j]};
      for (int i = 0; i < 4; ++i) accumulate(acc.v[i], four * w.v[j][i]);
    }
    return acc;
  }
  template <int D>
  static void dot_row(Ints& acc, const uint8_t* x, int64_t k, const Weights& w) {
    acc = dot(acc, broadcast(x + k + D), w);
  }

  static Columns load_columns(const uint8_t* p) {
    Columns c;
    split(p, false, c.v);
    return c;
  }
  static Ints dot_columns(Ints acc, const Columns& x, const Weights& w) {
    for (int j = 0; j < 4; ++j) {
      for (int i = 0; i < 4; ++i) accumulate(acc.v[i], x.v[j][i] * w.v[j][i]);
    }
    return acc;
  }

  // Four rows of 16 bytes -> [16][4].
  static void interleave(const uint8_t* const* rows, int64_t offset, uint8_t* out) {
    for (int j = 0; j < 4; ++j) {
      for (int i = 0; i < 16; ++i) out[4 * i + j] = rows[j][offset + i];
    }
  }
};

}  // namespace
}  // namespace pyquant
