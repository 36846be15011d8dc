// The epilogue of two panels at once: their codes together take fewer instructions. For vectors of 512 bits.
#pragma once
#include "cpu/epilogue.h"

namespace pyquant {
namespace {

// Codes of two whole panels, whose accumulators lie `apart` integers from each other.
template <bool kResidual, bool kSaturate>
__attribute__((noinline)) void finish_pair(const ConvLayer& layer, const ConvPixels& pixels, int64_t first, int64_t count, int64_t panel,
                 const int32_t* acc, int64_t apart) {
  const int64_t channel = panel * kLanes;
  const Affine affine[2] = {{layer.epilogue, channel}, {layer.epilogue, channel + kLanes}};
  const Requantise requantise(layer.epilogue);
  uint8_t* const* y = reinterpret_cast<uint8_t* const*>(pixels.y) + first;
  const uint8_t* const* residual = kResidual ? pixels.residual + first : nullptr;
  const auto result = [&](int64_t r, int64_t p) {
    const Lanes::Floats sum = affine[p](Lanes::load_ints(acc + p * apart + r * kLanes));
    return kResidual ? requantise.add_residual(sum, residual[r] + channel + p * kLanes) : sum;
  };
  int64_t r = 0;
  for (; r + 2 <= count; r += 2) {
    const Lanes::Floats four[4] = {result(r, 0), result(r, 1), result(r + 1, 0), result(r + 1, 1)};
    Lanes::store_pair<kSaturate>(y[r] + channel, y[r + 1] + channel, four, requantise.low, requantise.high, requantise.zero);
  }
  if (r < count) {
    for (int64_t p = 0; p < 2; ++p) requantise.store(result(r, p), y[r] + channel + p * kLanes, kLanes);
  }
}

// Codes of one whole panel that is all there is: pixels side by side are like two panels of one pixel.
template <bool kResidual, bool kSaturate>
__attribute__((noinline)) void finish_alone(const ConvLayer& layer, const ConvPixels& pixels, int64_t first,
                                            int64_t count, const int32_t* acc) {
  const Affine affine(layer.epilogue, 0);
  const Requantise requantise(layer.epilogue);
  uint8_t* const* y = reinterpret_cast<uint8_t* const*>(pixels.y) + first;
  const uint8_t* const* residual = kResidual ? pixels.residual + first : nullptr;
  const auto result = [&](int64_t r) {
    const Lanes::Floats sum = affine(Lanes::load_ints(acc + r * kLanes));
    return kResidual ? requantise.add_residual(sum, residual[r]) : sum;
  };
  int64_t r = 0;
  for (; r + 4 <= count && y[r + 1] - y[r] == kLanes && y[r + 3] - y[r + 2] == kLanes; r += 4) {
    const Lanes::Floats four[4] = {result(r), result(r + 1), result(r + 2), result(r + 3)};
    Lanes::store_pair<kSaturate>(y[r], y[r + 2], four, requantise.low, requantise.high, requantise.zero);
  }
  for (; r < count; ++r) requantise.store(result(r), y[r], kLanes);
}

// The results of some panels: accumulators [panels][16], `apart` integers from panel to panel.
void finish_panels(const ConvLayer& layer, const ConvPixels& pixels, int64_t first, int64_t count, int64_t panel,
                   int64_t panels, const int32_t* acc, int64_t apart) {
  constexpr decltype(&finish_pair<false, false>) kPairs[2][2] = {
      {finish_pair<false, false>, finish_pair<false, true>}, {finish_pair<true, false>, finish_pair<true, true>}};
  constexpr decltype(&finish_alone<false, false>) kAlone[2][2] = {
      {finish_alone<false, false>, finish_alone<false, true>}, {finish_alone<true, false>, finish_alone<true, true>}};
  if (layer.channels == kLanes && !pixels.to_float) {
    kAlone[pixels.residual != nullptr][layer.epilogue.saturates](layer, pixels, first, count, acc);
    return;
  }
  if (panels == 2 && !pixels.to_float && (panel + 2) * kLanes <= layer.channels) {
    kPairs[pixels.residual != nullptr][layer.epilogue.saturates](layer, pixels, first, count, panel, acc, apart);
    return;
  }
  for (int64_t p = 0; p < panels; ++p) finish_panel(layer, pixels, first, count, panel + p, acc + p * apart);
}

}  // namespace
}  // namespace pyquant
