// The requantising epilogue on sixteen lanes, in the order of reference.requantize: one rounding an operation.
#pragma once
#include "cpu/kernels.h"

namespace pyquant {
namespace {

// float(acc) * multiplier + bias for one panel of channels.
struct Affine {
  Lanes::Floats multiplier, bias;

  Affine(const Epilogue& e, int64_t channel)
      : multiplier(Lanes::load_floats(e.multiplier + channel)), bias(Lanes::load_floats(e.bias + channel)) {}

  Lanes::Floats operator()(const Lanes::Ints& acc) const {
    return Lanes::add(Lanes::mul(Lanes::to_float(acc), multiplier), bias);
  }
};

// Clamp, round, add the zero point, store; before that, perhaps, add the residual.
struct Requantise {
  Lanes::Floats low, high, residual_zero, residual_scale;
  Lanes::Ints zero;

  explicit Requantise(const Epilogue& e)
      : low(Lanes::set_float(e.low_less_zero)),
        high(Lanes::set_float(e.high_less_zero)),
        residual_zero(Lanes::set_float(Lanes::kCodeOffset + e.residual_zero)),
        residual_scale(Lanes::set_float(e.residual_scale)),
        zero(Lanes::set_int(e.zero)) {}

  Lanes::Floats add_residual(const Lanes::Floats& y, const uint8_t* residual) const {
    const Lanes::Floats codes = Lanes::load_code_floats(residual);
    return Lanes::add(y, Lanes::mul(Lanes::sub(codes, residual_zero), residual_scale));
  }

  void store(const Lanes::Floats& y, uint8_t* to, int64_t n) const {
    Lanes::store_codes(to, Lanes::add_ints(Lanes::round(Lanes::clamp(y, low, high)), zero), n);
  }
};

// Whether all weights of a call stay in L1. Then each group of pixels is finished before the next, so that its codes are read,
// and its results and residuals touched, as whole cache lines.
bool weights_stay(const ConvLayer& layer, int64_t panels) {
  constexpr int64_t kMostBytes = 32 << 10;
  return panels * layer.segments * layer.steps * (kLanes * 4) <= kMostBytes;
}

// The results of one panel: accumulators [count][16] become codes or floats of `count` pixels. `first` counts pixels.
__attribute__((noinline)) void finish_panel(const ConvLayer& layer, const ConvPixels& pixels, int64_t first, int64_t count, int64_t panel,
                  const int32_t* acc) {
  const int64_t channel = panel * kLanes;
  const int64_t n = layer.channels - channel < kLanes ? layer.channels - channel : kLanes;
  const Affine affine(layer.epilogue, channel);
  const Requantise requantise(layer.epilogue);
  const auto sum = [&](int64_t r) { return affine(Lanes::load_ints(acc + r * kLanes)); };
  void* const* y = pixels.y + first;
  if (pixels.to_float) {
    for (int64_t r = 0; r < count; ++r) Lanes::store_floats(static_cast<float*>(y[r]) + channel, sum(r), n);
    return;
  }
  const uint8_t* const* residual = pixels.residual != nullptr ? pixels.residual + first : nullptr;
  for (int64_t r = 0; r < count; ++r) {
    const Lanes::Floats code = residual != nullptr ? requantise.add_residual(sum(r), residual[r] + channel) : sum(r);
    requantise.store(code, static_cast<uint8_t*>(y[r]) + channel, n);
  }
}

}  // namespace
}  // namespace pyquant
