// Sixteen lanes as plain arrays, in loops that a compiler vectorises with whatever the machine has.
#pragma once
#include <cstdint>

namespace pyquant {
namespace {

struct Lanes {
  static constexpr int kRows = 4;
  static constexpr int kPanels = 1;
  static constexpr int kColumns = 4;

  struct Ints {
    int32_t v[16];
  };
  struct Floats {
    float v[16];
  };
  // Split by position in the dword, widened once for all the pixels of a tile.
  struct Weights {
    int16_t v[4][16];
  };
  struct Broadcast {
    int16_t v[4];
  };
  struct Columns {
    const uint8_t* p;
  };

  static Ints load_ints(const int32_t* p) {
    Ints r;
    for (int i = 0; i < 16; ++i) r.v[i] = p[i];
    return r;
  }
  static Ints set_int(int32_t v) {
    Ints r;
    for (int i = 0; i < 16; ++i) r.v[i] = v;
    return r;
  }
  // Partial sums may wrap around where the corrected sum does not, so integers are added as unsigned.
  static int32_t wrapped(uint32_t v) { return static_cast<int32_t>(v); }
  static Ints add_ints(Ints a, Ints b) {
    for (int i = 0; i < 16; ++i) a.v[i] = wrapped(static_cast<uint32_t>(a.v[i]) + static_cast<uint32_t>(b.v[i]));
    return a;
  }
  static Ints sub_ints(Ints a, Ints b) {
    for (int i = 0; i < 16; ++i) a.v[i] = wrapped(static_cast<uint32_t>(a.v[i]) - static_cast<uint32_t>(b.v[i]));
    return a;
  }
  static Ints mul_ints(Ints a, Ints b) {
    for (int i = 0; i < 16; ++i) a.v[i] = wrapped(static_cast<uint32_t>(a.v[i]) * static_cast<uint32_t>(b.v[i]));
    return a;
  }
  static Ints divide_by_16(Ints a) {
    for (int i = 0; i < 16; ++i) a.v[i] >>= 4;
    return a;
  }
  static Ints load_codes(const uint8_t* p) {
    Ints r;
    for (int i = 0; i < 16; ++i) r.v[i] = p[i];
    return r;
  }
  static void store_codes(uint8_t* p, const Ints& v, int64_t n) {
    if (n >= 16) {
      for (int i = 0; i < 16; ++i) p[i] = static_cast<uint8_t>(v.v[i]);
    } else {
      for (int64_t i = 0; i < n; ++i) p[i] = static_cast<uint8_t>(v.v[i]);
    }
  }

  static Floats load_floats(const float* p) {
    Floats r;
    for (int i = 0; i < 16; ++i) r.v[i] = p[i];
    return r;
  }
  static Floats load_floats(const float* p, int64_t n) {
    Floats r = set_float(0);
    for (int64_t i = 0; i < n; ++i) r.v[i] = p[i];
    return r;
  }
  static void store_floats(float* p, const Floats& v, int64_t n) {
    for (int64_t i = 0; i < (n < 16 ? n : 16); ++i) p[i] = v.v[i];
  }
  static Floats set_float(float v) {
    Floats r;
    for (int i = 0; i < 16; ++i) r.v[i] = v;
    return r;
  }
  static Floats to_float(const Ints& v) {
    Floats r;
    for (int i = 0; i < 16; ++i) r.v[i] = static_cast<float>(v.v[i]);
    return r;
  }
  static Floats add(Floats a, const Floats& b) {
    for (int i = 0; i < 16; ++i) a.v[i] += b.v[i];
    return a;
  }
  static Floats sub(Floats a, const Floats& b) {
    for (int i = 0; i < 16; ++i) a.v[i] -= b.v[i];
    return a;
  }
  static Floats mul(Floats a, const Floats& b) {
    for (int i = 0; i < 16; ++i) a.v[i] *= b.v[i];
    return a;
  }
  static Floats div(Floats a, const Floats& b) {
    for (int i = 0; i < 16; ++i) a.v[i] /= b.v[i];
    return a;
  }
  static Floats clamp(Floats a, const Floats& low, const Floats& high) {
    for (int i = 0; i < 16; ++i) a.v[i] = a.v[i] < low.v[i] ? low.v[i] : a.v[i];
    for (int i = 0; i < 16; ++i) a.v[i] = a.v[i] > high.v[i] ? high.v[i] : a.v[i];
    return a;
  }
  // Beside 1.5 * 2^23 floats are whole numbers, so the sum rounds to nearest, ties to even: true for |v| < 2^22, and
  // the caller has clamped v to codes.
  static Ints round(const Floats& v) {
    constexpr float kWhole = 12582912.0f;
    Ints r;
    for (int i = 0; i < 16; ++i) r.v[i] = static_cast<int32_t>((v.v[i] + kWhole) - kWhole);
    return r;
  }
  // `then` where `v` is a number, 0 where it is a NaN.
  static Floats where_number(const Floats& v, Floats then) {
    for (int i = 0; i < 16; ++i) then.v[i] = v.v[i] == v.v[i] ? then.v[i] : 0.0f;
    return then;
  }

  static Weights load_weights(const int8_t* p) {
    Weights w;
    for (int j = 0; j < 4; ++j) {
      for (int i = 0; i < 16; ++i) w.v[j][i] = p[4 * i + j];
    }
    return w;
  }
  // Nibbles as codes times 16: the low ones first.
  static Weights low_nibbles(const uint8_t* p) {
    Weights w;
    for (int j = 0; j < 4; ++j) {
      for (int i = 0; i < 16; ++i) w.v[j][i] = static_cast<int8_t>(static_cast<uint8_t>(p[4 * i + j] << 4));
    }
    return w;
  }
  static Weights high_nibbles(const uint8_t* p) {
    Weights w;
    for (int j = 0; j < 4; ++j) {
      for (int i = 0; i < 16; ++i) w.v[j][i] = static_cast<int8_t>(p[4 * i + j] & 0xF0);
    }
    return w;
  }
  static Broadcast broadcast(const uint8_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
  static Ints dot(Ints acc, const Broadcast& x, const Weights& w) {
    for (int i = 0; i < 16; ++i) {
      const int32_t sum = x.v[0] * w.v[0][i] + x.v[1] * w.v[1][i] + x.v[2] * w.v[2][i] + x.v[3] * w.v[3][i];
      acc.v[i] = wrapped(static_cast<uint32_t>(acc.v[i]) + static_cast<uint32_t>(sum));
    }
    return acc;
  }

  static Columns load_columns(const uint8_t* p) { return {p}; }
  static Ints dot_columns(Ints acc, Columns x, const Weights& w) {
    for (int i = 0; i < 16; ++i) {
      const uint8_t* four = x.p + 4 * i;
      const int32_t sum = four[0] * w.v[0][i] + four[1] * w.v[1][i] + four[2] * w.v[2][i] + four[3] * w.v[3][i];
      acc.v[i] = wrapped(static_cast<uint32_t>(acc.v[i]) + static_cast<uint32_t>(sum));
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
