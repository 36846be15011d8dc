// The contract between fake_quantize.cpp, which cuts a tensor into rows, and the row kernels of each instruction set.
#pragma once
#include <cstdint>

#include "cpu/fake_quantize.h"

namespace pyquant {

struct Bf16 {
  uint16_t bits;
};
struct Fp16 {
  uint16_t bits;
};

// Sums run in this many lanes, element i in lane i % kLanes, on every instruction set: that makes them bit-equal.
constexpr int kLanes = 16;

// Folds the lanes of one row's sum, always in this order.
static inline double fold_lanes(double* lanes) {
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int j = 0; j < width; ++j) lanes[j] += lanes[j + width];
  return lanes[0];
}

struct CodeRange {
  float qmin, qmax;
};

// Indices: [FloatType], then [spread]: 0 if one scale serves the row, 1 if `scale` and `zero` hold one float an element.
// `stream` asks for stores that go past the cache; call `fence` after the last.
struct RowKernels {
  using Forward = void (*)(const void* x, void* y, int64_t n, const float* scale, const float* zero, CodeRange range, bool stream);
  // Sums of dy * slope, and of dy out of range. One scale: they are set. Spread: every element's own term is added.
  using Backward = void (*)(const void* dy, const void* x, void* dx, int64_t n, const float* scale, const float* zero,
                            CodeRange range, double* slope_sum, double* outside_sum, bool stream);
  using Quantize = void (*)(const void* x, uint8_t* codes, int64_t n, const float* scale, const float* zero, CodeRange range);
  Forward forward[3][2];
  Backward backward[3][2][2];  // last index: whether the sums are wanted
  Quantize quantize[3][2];
  void (*fence)();  // makes streamed stores visible; once a thread, for it waits some 100 ns
};

// The table of K's static templates forward<T, spread>, backward<T, spread, sums> and quantize<T, spread>.
template <class K>
struct Table {
  static constexpr RowKernels rows = {
      {{K::template forward<float, 0>, K::template forward<float, 1>},
       {K::template forward<Bf16, 0>, K::template forward<Bf16, 1>},
       {K::template forward<Fp16, 0>, K::template forward<Fp16, 1>}},
      {{{K::template backward<float, 0, 0>, K::template backward<float, 0, 1>},
        {K::template backward<float, 1, 0>, K::template backward<float, 1, 1>}},
       {{K::template backward<Bf16, 0, 0>, K::template backward<Bf16, 0, 1>},
        {K::template backward<Bf16, 1, 0>, K::template backward<Bf16, 1, 1>}},
       {{K::template backward<Fp16, 0, 0>, K::template backward<Fp16, 0, 1>},
        {K::template backward<Fp16, 1, 0>, K::template backward<Fp16, 1, 1>}}},
      {{K::template quantize<float, 0>, K::template quantize<float, 1>},
       {K::template quantize<Bf16, 0>, K::template quantize<Bf16, 1>},
       {K::template quantize<Fp16, 0>, K::template quantize<Fp16, 1>}},
      K::fence,
  };
};

// Null where the compiler did not have the instruction set.
const RowKernels* fake_quantize_rows_portable();
const RowKernels* fake_quantize_rows_avx2();
const RowKernels* fake_quantize_rows_avx512();

}  // namespace pyquant
