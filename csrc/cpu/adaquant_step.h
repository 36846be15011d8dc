// One iteration of AdaQuant over the rows of a weight, in one pass: the fake-quantize's backward, Adam on the weights, the sum for
// the scale, Adam on the scale, and the fake-quantize of the new weights with the new scale. A row stays in the cache in between.
#pragma once
#include <cstdint>

#include "cpu/fake_quantize.h"

namespace pyquant {

// Adam without its state: shares are 1 - beta, rates are divided by the first moment's bias, `debias` is one over the second's.
struct AdamRates {
  float first_share, second_share, debias, weight_rate, scale_rate;
};

// Rows are [rows][n] float32, entries of a row [rows]. A weight is position * start, its scale start * exp(log_scale).
struct LearnedRows {
  float* position;
  float* first;
  float* second;
  float* log_scale;
  float* scale_first;
  float* scale_second;
  const float* start;
  const float* zero_point;
  int64_t rows, n;
  float qmin, qmax;
};

// Takes `gradient` [rows][n] of the last fake-quantized weight, moves the rows, and writes the next fake-quantized `weight`. The
// sum for a scale is in float64 over 16 lanes of a row, element i in lane i % 16, folded as fold_lanes does: the same bytes
// whatever the instruction set and the number of threads.
void adaquant_step(const LearnedRows& learned, const float* gradient, float* weight, const AdamRates& rates, FakeQuantizeIsa isa,
                   int threads);

}  // namespace pyquant
