// Per-channel tensors of a convolution, padded to whole panels of 16 channels.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "engine/aligned.h"
#include "engine/convolution.h"

namespace pyquant {

inline int64_t panels_of(int64_t channels) { return (channels + kLanes - 1) / kLanes; }

// `groups` runs of channels, each padded to whole panels by itself.
struct LayerTensors {
  AlignedArray<int8_t> weight;
  AlignedArray<int32_t> seed;
  AlignedArray<float> multiplier, bias;
  double most = 0;  // no result is farther from 0, for no sum is farther than kBeyondInt32
  static constexpr double kBeyondInt32 = 2147483648.0;

  LayerTensors() = default;
  LayerTensors(const ConvolutionSpec& spec, int64_t groups) {
    const int64_t outputs = spec.outputs / groups;
    const int64_t padded = panels_of(outputs) * kLanes;
    const int64_t taps = spec.kernel_height * spec.kernel_width * spec.group_channels;
    seed.assign(groups * padded);
    multiplier.assign(groups * padded);
    bias.assign(groups * padded);
    for (int64_t n = 0; n < spec.outputs; ++n) {
      const int64_t to = n / outputs * padded + n % outputs;
      int64_t sum = 0;
      for (int64_t k = 0; k < taps; ++k) sum += spec.weight[n * taps + k];
      // Accumulators wrap around, so the seed may too.
      seed[to] = static_cast<int32_t>(static_cast<uint32_t>(-sum * spec.x_zero));
      multiplier[to] = spec.multiplier[n];
      bias[to] = spec.bias[n];
      most = std::max(most, kBeyondInt32 * std::abs(double{spec.multiplier[n]}) + std::abs(double{spec.bias[n]}));
    }
    most += 256 * std::abs(double{spec.residual_scale});
  }

  Epilogue epilogue(const ConvolutionSpec& spec, int64_t first) const {
    return {multiplier.data() + first,
            bias.data() + first,
            static_cast<float>(spec.low - spec.y_zero),
            static_cast<float>(spec.high - spec.y_zero),
            spec.y_zero,
            static_cast<float>(spec.residual_zero),
            spec.residual_scale,
            spec.low == 0 && spec.high == 255 && most < kBeyondInt32};
  }
};

}  // namespace pyquant
