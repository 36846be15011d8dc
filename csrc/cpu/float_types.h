// float32 from and to the two 16-bit types, in plain C++: rounded half to even, a NaN to the quiet one.
#pragma once
#include <cstdint>
#include <cstring>

#include "cpu/fake_quantize_rows.h"

namespace pyquant {
namespace {

inline uint32_t bits_of(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

inline float widen(float v) { return v; }

inline float widen(Bf16 v) { return float_of(static_cast<uint32_t>(v.bits) << 16); }

inline float widen(Fp16 v) {
  const uint32_t sign = static_cast<uint32_t>(v.bits & 0x8000) << 16;
  const uint32_t magnitude = v.bits & 0x7fff;
  if (magnitude >= 0x7c00) return float_of(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  if (magnitude >= 0x0400) return float_of(sign | ((magnitude << 13) + ((127 - 15) << 23)));
  const float denormal = static_cast<float>(magnitude) * 0x1p-24f;  // exact
  return float_of(sign | bits_of(denormal));
}

inline void narrow(float v, float* to) { *to = v; }

inline void narrow(float v, Bf16* to) {
  const uint32_t bits = bits_of(v);
  to->bits = v == v ? static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) : uint16_t{0x7fc0};
}

inline void narrow(float v, Fp16* to) {
  const uint32_t bits = bits_of(v);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) {
    to->bits = 0x7e00;
  } else if (magnitude >= 0x477ff000) {  // 65520 and above round to infinity
    to->bits = sign | 0x7c00;
  } else if (magnitude >= 0x38800000) {  // normal: round half to even on the 13 bits that go
    const uint32_t rebased = magnitude - ((127 - 15) << 23);
    to->bits = static_cast<uint16_t>(sign | ((rebased + 0xfff + ((rebased >> 13) & 1)) >> 13));
  } else {  // adding 0.5 leaves the denormal's 2^-24 steps in the last bits, rounded half to even by the addition
    to->bits = static_cast<uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f)));
  }
}

}  // namespace
}  // namespace pyquant
