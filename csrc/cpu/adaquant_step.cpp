#include "cpu/adaquant_step.h"

#include <algorithm>
#include <cmath>

#include "cpu/adaquant_step_rows.h"
#include "cpu/threads.h"
#include "grid.h"

namespace pyquant {
namespace {

constexpr int64_t kElementsAThread = 16384;  // below this a thread costs more than it brings

const AdaquantRowKernels* rows_of(FakeQuantizeIsa isa) {
  switch (isa) {
    case FakeQuantizeIsa::avx512: return adaquant_rows_avx512();
    case FakeQuantizeIsa::avx2: return adaquant_rows_avx2();
    default: return adaquant_rows_portable();
  }
}

// exp by its series at x / 1024, squared ten times, in float64: libraries differ in the last bit of theirs, this has one result.
float exponential(float x) {
  const double y = static_cast<double>(x) / 1024.0;
  double e = 1.0;
  for (int k = 10; k > 0; --k) e = 1.0 + e * y / k;
  for (int k = 0; k < 10; ++k) e = e * e;
  return static_cast<float>(e);
}

struct Portable {
  static double learn(const AdaquantRow& row, const AdamRates& rates) {
    double lanes[kLanes] = {};
    for (int64_t i = 0; i < row.n; ++i) {
      const float ratio = row.position[i] * row.start / row.scale;
      const float u = std::nearbyint(ratio) + row.zero_point;
      const bool inside = in_range(u, row.range.qmin, row.range.qmax);
      const float code = clamp_code(u, row.range.qmin, row.range.qmax);
      const float slope = (code - row.zero_point) - (inside ? ratio : 0.0f);
      lanes[i % kLanes] += static_cast<double>(row.gradient[i]) * static_cast<double>(slope);
      const float d = (inside ? row.gradient[i] : 0.0f) * row.start;
      float &first = row.first[i], &second = row.second[i];
      first = first + (d - first) * rates.first_share;
      second = second + (d * d - second) * rates.second_share;
      row.position[i] -= first * rates.weight_rate / (std::sqrt(second * rates.debias) + 1e-12f);
    }
    return fold_lanes(lanes);
  }
  static void place(const AdaquantRow& row) {
    for (int64_t i = 0; i < row.n; ++i)
      row.weight[i] =
          fake_quantize(row.position[i] * row.start, row.scale, row.zero_point, row.range.qmin, row.range.qmax);
  }
  static constexpr AdaquantRowKernels kernels = {learn, place};
};

}  // namespace

const AdaquantRowKernels* adaquant_rows_portable() { return &Portable::kernels; }

void adaquant_step(const LearnedRows& learned, const float* gradient, float* weight, const AdamRates& rates, FakeQuantizeIsa isa,
                   int threads) {
  const AdaquantRowKernels& kernels = *rows_of(isa);
  const int workers = static_cast<int>(std::min<int64_t>(threads, 1 + learned.rows * learned.n / kElementsAThread));
  parallel_for(workers, learned.rows, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t at = r * learned.n;
      const float start = learned.start[r];
      float &log_scale = learned.log_scale[r], &first = learned.scale_first[r], &second = learned.scale_second[r];
      const float grown = exponential(log_scale);
      AdaquantRow row{gradient + at, learned.position + at, learned.first + at, learned.second + at, weight + at, learned.n,
                      start, start * grown, learned.zero_point[r], {learned.qmin, learned.qmax}};
      const float slope = static_cast<float>(kernels.learn(row, rates));
      const float d = slope * start * grown;
      first = first + (d - first) * rates.first_share;
      second = second + (d * d - second) * rates.second_share;
      log_scale -= first * rates.scale_rate / (std::sqrt(second * rates.debias) + 1e-12f);
      row.scale = start * exponential(log_scale);
      kernels.place(row);
    }
  });
}

}  // namespace pyquant
