// The fake-quantize row kernels in plain C++, element by element through grid.h: for machines without AVX2, and to test the others.
#include "cpu/fake_quantize_rows.h"
#include "cpu/float_types.h"
#include "grid.h"

namespace pyquant {
namespace {

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
