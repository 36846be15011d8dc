// The fake-quantize row kernels in plain C++, element by element through grid.h: for machines without AVX2, and to test the others.
#include <cstring>

#include "cpu/fake_quantize_rows.h"
#include "grid.h"

namespace pyquant {
namespace {

uint32_t bits_of(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits;
}

float float_of(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

float widen(float v) { return v; }

float widen(Bf16 v) { return float_of(static_cast<uint32_t>(v.bits) << 16); }

float widen(Fp16 v) {
  const uint32_t sign = static_cast<uint32_t>(v.bits & 0x8000) << 16;
  const uint32_t magnitude = v.bits & 0x7fff;
  if (magnitude >= 0x7c00) return float_of(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  if (magnitude >= 0x0400) return float_of(sign | ((magnitude << 13) + ((127 - 15) << 23)));
  const float denormal = static_cast<float>(magnitude) * 0x1p-24f;  // exact
  return float_of(sign | bits_of(denormal));
}

void narrow(float v, float* to) { *to = v; }

void narrow(float v, Bf16* to) {
  const uint32_t bits = bits_of(v);
  to->bits = v == v ? static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) : uint16_t{0x7fc0};
}

void narrow(float v, Fp16* to) {
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

struct PortableRows {
  static void fence() {}

  template <class T, bool kSpread>
  static void forward(const void* xv, void* yv, int64_t n, const float* scale, const float* zero, CodeRange range, bool) {
    const T* x = static_cast<const T*>(xv);
    T* y = static_cast<T*>(yv);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t p = kSpread ? i : 0;
      narrow(fake_quantize(widen(x[i]), scale[p], zero[p], range.qmin, range.qmax), y + i);
    }
  }

  template <class T, bool kSpread, bool kSums>
  static void backward(const void* dyv, const void* xv, void* dxv, int64_t n, const float* scale, const float* zero,
                       CodeRange range, double* slope_sum, double* outside_sum, bool) {
    const T* dy = static_cast<const T*>(dyv);
    const T* x = static_cast<const T*>(xv);
    T* dx = static_cast<T*>(dxv);
    double slopes[kLanes] = {}, outsides[kLanes] = {};
    for (int64_t i = 0; i < n; ++i) {
      const int64_t p = kSpread ? i : 0;
      const T d = dy[i];
      const float value = widen(x[i]);
      const float u = grid_position(value, scale[p], zero[p]);
      const bool inside = in_range(u, range.qmin, range.qmax);
      dx[i] = inside ? d : T{};
      if (kSums) {
        const float ratio = inside ? value / scale[p] : 0.0f;
        const float slope = (clamp_code(u, range.qmin, range.qmax) - zero[p]) - ratio;
        double& slope_to = kSpread ? slope_sum[i] : slopes[i % kLanes];
        double& outside_to = kSpread ? outside_sum[i] : outsides[i % kLanes];
        slope_to += static_cast<double>(widen(d)) * static_cast<double>(slope);
        outside_to += inside ? 0.0 : static_cast<double>(widen(d));
      }
    }
    if (kSums && !kSpread) {
      *slope_sum = fold_lanes(slopes);
      *outside_sum = fold_lanes(outsides);
    }
  }

  template <class T, bool kSpread>
  static void quantize(const void* xv, uint8_t* codes, int64_t n, const float* scale, const float* zero, CodeRange range) {
    const T* x = static_cast<const T*>(xv);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t p = kSpread ? i : 0;
      codes[i] = static_cast<uint8_t>(pyquant::quantize(widen(x[i]), scale[p], zero[p], range.qmin, range.qmax));
    }
  }
};

}  // namespace

const RowKernels* fake_quantize_rows_portable() { return &Table<PortableRows>::rows; }

}  // namespace pyquant
