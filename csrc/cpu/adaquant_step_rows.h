// The contract between adaquant_step.cpp and the row kernels of each instruction set.
#pragma once
#include "cpu/adaquant_step.h"
#include "cpu/fake_quantize_rows.h"

namespace pyquant {

struct AdaquantRow {
  const float* gradient;
  float* position;
  float* first;
  float* second;
  float* weight;
  int64_t n;
  float start, scale, zero_point;
  CodeRange range;
};

struct AdaquantRowKernels {
  // Adam on the positions; returns the sum of gradient * slope for the scale.
  double (*learn)(const AdaquantRow& row, const AdamRates& rates);
  // weight = fake_quantize(position * start).
  void (*place)(const AdaquantRow& row);
};

// Null where the compiler did not have the instruction set.
const AdaquantRowKernels* adaquant_rows_portable();
const AdaquantRowKernels* adaquant_rows_avx2();
const AdaquantRowKernels* adaquant_rows_avx512();

}  // namespace pyquant
