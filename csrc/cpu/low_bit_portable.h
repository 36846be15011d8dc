// Codes of few bits in the compiler's own vectors; see low_bit_avx512.h for what each function is for.
#pragma once
#include "cpu/fake_quantize.h"
#include "cpu/float_types.h"
#include "cpu/lanes_portable.h"

namespace pyquant {
namespace {

struct LowBit : Lanes {
  static constexpr int kTileRows = 4;
  static constexpr int kTilePanels = 1;
  static constexpr int kRowsInRegisters = 4;
  // Compilers take minutes over eight quads of plain vectors in a row.
  static constexpr int kQuadsUnrolled = 1;

  using Quad = Weights;
  using Sums = Ints;

  // Quad `q` of a block: codes of k 4 q .. 4 q + 3. In dwords, four codes at a time.
  template <int kBits>
  static Quad quad(const uint8_t* block, int q) {
    Quad w;
    for (int i = 0; i < 4; ++i) {
      Unsigned4 codes;
      if (kBits == 8) {
        codes = dwords(block + 64 * q, i);
      } else if (kBits == 4) {
        codes = dwords(block + 64 * (q / 2), i) >> (4 * (q % 2)) & 0x0f0f0f0fu;
      } else {
        codes = dwords(block + 64 * (q / 4), i) >> (2 * (q % 4)) & 0x03030303u;
        if (kBits == 3) codes |= (dwords(block + 64 * 2, i) >> q & 0x01010101u) << 2;
      }
      for (int j = 0; j < 4; ++j) w.v[j][i] = __builtin_convertvector(codes >> (8 * j) & 255u, Short4);
    }
    return w;
  }
  static void store_quad(uint8_t* p, const Quad& w) {
    for (int i = 0; i < 4; ++i) {
      Unsigned4 codes = {};
      for (int j = 0; j < 4; ++j) codes |= __builtin_convertvector(w.v[j][i], Unsigned4) << (8 * j);
      __builtin_memcpy(p + 16 * i, &codes, 16);
    }
  }
  static Unsigned4 dwords(const uint8_t* p, int i) {
    Unsigned4 four;
    __builtin_memcpy(&four, p + 16 * i, 16);
    return four;
  }

  static Broadcast four(const int8_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
  static Sums open(const Ints& acc) { return acc; }
  static Ints close(const Ints&, const Sums& sums) { return sums; }
  // Four products of 4 bits and 8 fit 16 bits together.
  static Sums dot_codes(Sums sums, const Quad& w, const Broadcast& x) {
    for (int i = 0; i < 4; ++i) {
      Short4 products = w.v[0][i] * x.v[0];
      for (int j = 1; j < 4; ++j) products += w.v[j][i] * x.v[j];
      accumulate(sums.v[i], products);
    }
    return sums;
  }
  // sum + low halves' product + high halves' product.
  static Ints add_pair(Ints sum, const int32_t* w, int32_t x) {
    for (int i = 0; i < 16; ++i) {
      const int32_t low = static_cast<int16_t>(w[i]) * static_cast<int16_t>(x), high = (w[i] >> 16) * (x >> 16);
      sum.v[i / 4][i % 4] += static_cast<uint32_t>(low) + static_cast<uint32_t>(high);
    }
    return sum;
  }
  static void store_ints(int32_t* p, const Ints& v) { __builtin_memcpy(p, &v, sizeof v); }
  static void prefetch(const uint8_t* p) { __builtin_prefetch(p); }

  static Floats load_float_type(FloatType type, const void* p, int64_t at, int64_t n) {
    Floats r = set_float(0);
    for (int i = 0; i < n; ++i) {
      r.v[i / 4][i % 4] = type == FloatType::f32    ? static_cast<const float*>(p)[at + i]
                          : type == FloatType::bf16 ? widen(static_cast<const Bf16*>(p)[at + i])
                                                    : widen(static_cast<const Fp16*>(p)[at + i]);
    }
    return r;
  }
  static void store_float_type(FloatType type, void* p, int64_t at, const Floats& v, int64_t n) {
    if (type == FloatType::f32) return store_floats(static_cast<float*>(p) + at, v, n);
    for (int i = 0; i < n; ++i) {
      if (type == FloatType::bf16) narrow(v.v[i / 4][i % 4], static_cast<Bf16*>(p) + at + i);
      if (type == FloatType::f16) narrow(v.v[i / 4][i % 4], static_cast<Fp16*>(p) + at + i);
    }
  }
  // Magnitudes as integers: they order as the floats do, and a NaN or an infinity exceeds every number.
  static Ints magnitude(const Floats& v) {
    Ints r;
    for (int i = 0; i < 4; ++i) r.v[i] = reinterpret_cast<Unsigned4>(v.v[i]) & 0x7fffffffu;
    return r;
  }
  static Ints max_ints(Ints a, const Ints& b) {
    for (int i = 0; i < 16; ++i) {
      if (b.v[i / 4][i % 4] > a.v[i / 4][i % 4]) a.v[i / 4][i % 4] = b.v[i / 4][i % 4];
    }
    return a;
  }
  static int32_t largest(const Ints& v) {
    uint32_t most = 0;
    for (int i = 0; i < 16; ++i) most = v.v[i / 4][i % 4] > most ? v.v[i / 4][i % 4] : most;
    return static_cast<int32_t>(most);
  }
  static int32_t total(const Ints& v) {
    uint32_t sum = 0;
    for (int i = 0; i < 16; ++i) sum += v.v[i / 4][i % 4];
    return static_cast<int32_t>(sum);
  }
  static void store_bytes(int8_t* p, const Ints& v) {
    for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(v.v[i / 4][i % 4]);
  }
};

}  // namespace
}  // namespace pyquant
