// The fake-quantize row kernels in plain C++, element by element through grid.h: for machines without AVX2, and to test the others.
#include "cpu/fake_quantize_rows.h"
#include "cpu/float_types.h"
#include "grid.h"

namespace pyquant {
namespace {

struct PortableRows {
  static void fence() {}
  static void copy(void* to, const void* from, int64_t bytes) { std::memcpy(to, from, static_cast<size_t>(bytes)); }
  // Plain C++ has no multiply-add to be quick with.
  static bool prepare(const float*, const float*, int64_t, CodeRange, float*, float*, float*, float*) { return false; }

  template <class T, bool kSpread, bool kStream>
  static void forward(const void* xv, void* yv, int64_t rows, int64_t n, int64_t stride, const RowGrid& grid) {
    const T* x = static_cast<const T*>(xv);
    T* y = static_cast<T*>(yv);
    for (int64_t r = 0; r < rows; ++r, x += stride, y += stride)
      for (int64_t i = 0; i < n; ++i) {
        const int64_t p = kSpread ? place(kType<T>, i) : r;
        narrow(fake_quantize(widen(x[i]), grid.scale[p], grid.zero[p], grid.range.qmin, grid.range.qmax), y + i);
      }
  }

  template <class T, bool kSpread, bool kSums, bool kStream>
  static void backward(const void* dyv, const void* xv, void* dxv, int64_t rows, int64_t n, int64_t stride, const RowGrid& grid,
                       double* slope_sum, double* outside_sum) {
    const T* dy = static_cast<const T*>(dyv);
    const T* x = static_cast<const T*>(xv);
    T* dx = static_cast<T*>(dxv);
    const CodeRange range = grid.range;
    for (int64_t r = 0; r < rows; ++r, dy += stride, x += stride, dx += stride) {
      double slopes[kLanes] = {}, outsides[kLanes] = {};
      for (int64_t i = 0; i < n; ++i) {
        const int64_t lane = place(kType<T>, i), p = kSpread ? lane : r;
        const T d = dy[i];
        const float value = widen(x[i]);
        const float u = grid_position(value, grid.scale[p], grid.zero[p]);
        const bool inside = in_range(u, range.qmin, range.qmax);
        dx[i] = inside ? d : T{};
        if (kSums) {
          const float ratio = inside ? value / grid.scale[p] : 0.0f;
          const float slope = (clamp_code(u, range.qmin, range.qmax) - grid.zero[p]) - ratio;
          double& slope_to = kSpread ? slope_sum[lane] : slopes[lane % kLanes];
          double& outside_to = kSpread ? outside_sum[lane] : outsides[lane % kLanes];
          slope_to += static_cast<double>(widen(d)) * static_cast<double>(slope);
          outside_to += inside ? 0.0 : static_cast<double>(widen(d));
        }
      }
      if (kSums && !kSpread) {
        slope_sum[r] = fold_lanes(slopes);
        outside_sum[r] = fold_lanes(outsides);
      }
    }
  }

  template <class T, bool kStream>
  static void forward_masked(const void* xv, void* yv, uint32_t* inside, int64_t rows, int64_t n, int64_t stride, const RowGrid& grid) {
    const T* x = static_cast<const T*>(xv);
    T* y = static_cast<T*>(yv);
    for (int64_t r = 0; r < rows; ++r, x += stride, y += stride, inside += stride / kStep)
      for (int64_t i = 0; i < n; ++i) {
        const float u = grid_position(widen(x[i]), grid.scale[r], grid.zero[r]);
        const uint32_t bit = uint32_t{1} << place(kType<T>, i) % kStep;
        if (i % kStep == 0) inside[i / kStep] = 0;
        if (in_range(u, grid.range.qmin, grid.range.qmax)) inside[i / kStep] |= bit;
        narrow(dequantize(clamp_code(u, grid.range.qmin, grid.range.qmax), grid.scale[r], grid.zero[r]), y + i);
      }
  }

  template <class T, bool kStream>
  static void keep_inside(const void* dyv, const uint32_t* inside, void* dxv, int64_t n) {
    const T* dy = static_cast<const T*>(dyv);
    T* dx = static_cast<T*>(dxv);
    for (int64_t i = 0; i < n; ++i) dx[i] = inside[i / kStep] >> place(kType<T>, i) % kStep & 1 ? dy[i] : T{};
  }

  template <class T, bool kSpread>
  static void quantize(const void* xv, uint8_t* codes, int64_t rows, int64_t n, int64_t stride, const RowGrid& grid) {
    const T* x = static_cast<const T*>(xv);
    for (int64_t r = 0; r < rows; ++r, x += stride, codes += stride)
      for (int64_t i = 0; i < n; ++i) {
        const int64_t p = kSpread ? i : r;
        codes[i] = static_cast<uint8_t>(
            pyquant::quantize(widen(x[i]), grid.scale[p], grid.zero[p], grid.range.qmin, grid.range.qmax));
      }
  }
};

}  // namespace

const RowKernels* fake_quantize_rows_portable() { return &Table<PortableRows>::rows; }

}  // namespace pyquant
