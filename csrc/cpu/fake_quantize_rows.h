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

// Sums run in this many lanes on every instruction set, each lane in ascending order: that makes them bit-equal.
constexpr int kLanes = 16;
// Vectors work on this many elements a step: a whole cache line of halves, so that every streamed store fills one.
constexpr int kStep = 2 * kLanes;

// The place of element i of a row among the vectors' lanes. A register of 32 bf16 splits into its even and its odd halves with
// one instruction each, so bf16 lanes come in that order; the other types keep theirs.
static inline int64_t place(FloatType type, int64_t i) {
  return type == FloatType::bf16 ? i / kStep * kStep + i % 2 * kLanes + i % kStep / 2 : i;
}

template <class T>
constexpr FloatType kType = FloatType::f32;
template <>
constexpr FloatType kType<Bf16> = FloatType::bf16;
template <>
constexpr FloatType kType<Fp16> = FloatType::f16;

// The bits of a step's first elements in a mask.
template <class T>
static inline uint32_t first_bits(int lanes) {
  if (lanes == kStep) return ~uint32_t{0};
  uint32_t bits = 0;
  for (int i = 0; i < lanes; ++i) bits |= uint32_t{1} << place(kType<T>, i);
  return bits;
}

// Folds the lanes of one row's sum, always in this order.
static inline double fold_lanes(double* lanes) {
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int j = 0; j < width; ++j) lanes[j] += lanes[j + width];
  return lanes[0];
}

struct CodeRange {
  float qmin, qmax;
};

// Scales and zero points, and what the quick kernels make of them (`prepare`); quick or not, the bytes are the same.
struct RowGrid {
  const float* scale;
  const float* zero;
  CodeRange range;
  bool quick = false;
  const float* inverse = nullptr;  // 1 / scale
  const float* rest = nullptr;     // 1 / scale - inverse
  const float* first = nullptr;    // qmin - zero
  const float* last = nullptr;     // qmax - zero
};

// Indices: [FloatType], then [spread], then options.
// `rows` rows of n elements, `stride` elements from the start of one to the next. Row r has entry r of the grid; or, if spread,
// every row has the same entries, one an element, in the order of `place`, filled up to a whole step.
// [stream]: stores go past the cache; y and every row start on a cache line. Call `fence` after the last.
struct RowKernels {
  using Forward = void (*)(const void* x, void* y, int64_t rows, int64_t n, int64_t stride, const RowGrid& grid);
  // Sums of dy * slope, and of dy out of range: one a row, set; or, if spread, one an element in the order of `place`, added to.
  using Backward = void (*)(const void* dy, const void* x, void* dx, int64_t rows, int64_t n, int64_t stride, const RowGrid& grid,
                            double* slope_sum, double* outside_sum);
  // As Forward, and sets one bit an element: whether its code is in range before the clamp. Bit place(i) % 32 of word i / 32; rows
  // start at whole words, so where there are several, `stride` is whole steps. Bits behind the last element are 0.
  using ForwardMasked = void (*)(const void* x, void* y, uint32_t* inside, int64_t rows, int64_t n, int64_t stride, const RowGrid& grid);
  // dx = dy where the bit is set, else 0.
  using KeepInside = void (*)(const void* dy, const uint32_t* inside, void* dx, int64_t n);
  // Spread entries lie in the plain order here.
  using Quantize = void (*)(const void* x, uint8_t* codes, int64_t rows, int64_t n, int64_t stride, const RowGrid& grid);
  Forward forward[3][2][2];      // last index: stream
  Backward backward[3][2][2][2];  // last indices: whether the sums are wanted, stream
  Quantize quantize[3][2];
  ForwardMasked forward_masked[3][2];  // last index: stream, as below
  KeepInside keep_inside[3][2];
  // Fills inverse, rest, first and last for n entries, up to a whole kLanes; true if they may be used.
  bool (*prepare)(const float* scale, const float* zero, int64_t n, CodeRange range, float* inverse, float* rest, float* first, float* last);
  // Copies past the cache, to and from any address.
  void (*copy)(void* to, const void* from, int64_t bytes);
  void (*fence)();  // makes streamed stores visible; once a thread, for it waits some 100 ns
};

// The table of K's static templates forward<T, spread, stream>, backward<T, spread, sums, stream> and quantize<T, spread>,
// forward_masked<T, stream> and keep_inside<T, stream>.
template <class K>
struct Table {
#define PQ_FORWARD(T)                                                 \
  {{K::template forward<T, false, false>, K::template forward<T, false, true>}, \
   {K::template forward<T, true, false>, K::template forward<T, true, true>}}
#define PQ_BACKWARD_OF(T, SPREAD)                                                                              \
  {{K::template backward<T, SPREAD, false, false>, K::template backward<T, SPREAD, false, true>}, \
   {K::template backward<T, SPREAD, true, false>, K::template backward<T, SPREAD, true, true>}}
#define PQ_BACKWARD(T) {PQ_BACKWARD_OF(T, false), PQ_BACKWARD_OF(T, true)}
#define PQ_QUANTIZE(T) {K::template quantize<T, false>, K::template quantize<T, true>}
#define PQ_MASKED(T) {K::template forward_masked<T, false>, K::template forward_masked<T, true>}
#define PQ_KEEP(T) {K::template keep_inside<T, false>, K::template keep_inside<T, true>}
  static constexpr RowKernels rows = {
      {PQ_FORWARD(float), PQ_FORWARD(Bf16), PQ_FORWARD(Fp16)},
      {PQ_BACKWARD(float), PQ_BACKWARD(Bf16), PQ_BACKWARD(Fp16)},
      {PQ_QUANTIZE(float), PQ_QUANTIZE(Bf16), PQ_QUANTIZE(Fp16)},
      {PQ_MASKED(float), PQ_MASKED(Bf16), PQ_MASKED(Fp16)},
      {PQ_KEEP(float), PQ_KEEP(Bf16), PQ_KEEP(Fp16)},
      K::prepare,
      K::copy,
      K::fence,
  };
#undef PQ_FORWARD
#undef PQ_BACKWARD_OF
#undef PQ_BACKWARD
#undef PQ_QUANTIZE
#undef PQ_MASKED
#undef PQ_KEEP
};

// Null where the compiler did not have the instruction set.
const RowKernels* fake_quantize_rows_portable();
const RowKernels* fake_quantize_rows_avx2();
const RowKernels* fake_quantize_rows_avx512();

}  // namespace pyquant
