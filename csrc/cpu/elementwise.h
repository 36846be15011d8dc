// Residual add, pools, look-up, quantize and dequantize on rows of codes.
#pragma once
#include "cpu/kernels.h"

namespace pyquant {
namespace {

inline int64_t lanes_left(int64_t count, int64_t done) { return count - done < kLanes ? count - done : kLanes; }

void add(const AddLayer& layer, const uint8_t* a, const uint8_t* b, uint8_t* y, int64_t count) {
  const Lanes::Floats a_zero = Lanes::set_float(layer.a_zero), a_scale = Lanes::set_float(layer.a_scale);
  const Lanes::Floats b_zero = Lanes::set_float(layer.b_zero), b_scale = Lanes::set_float(layer.b_scale);
  const Lanes::Floats low = Lanes::set_float(layer.low_less_zero), high = Lanes::set_float(layer.high_less_zero);
  const Lanes::Ints zero = Lanes::set_int(layer.zero);
  for (int64_t i = 0; i < count; i += kLanes) {
    const Lanes::Floats left = Lanes::mul(Lanes::sub(Lanes::to_float(Lanes::load_codes(a + i)), a_zero), a_scale);
    const Lanes::Floats right = Lanes::mul(Lanes::sub(Lanes::to_float(Lanes::load_codes(b + i)), b_zero), b_scale);
    const Lanes::Ints codes = Lanes::round(Lanes::clamp(Lanes::add(left, right), low, high));
    Lanes::store_codes(y + i, Lanes::add_ints(codes, zero), lanes_left(count, i));
  }
}

void average_pool(const AveragePool& layer, const PoolWindow& window, uint8_t* y) {
  const Lanes::Floats multiplier = Lanes::set_float(layer.multiplier);
  const Lanes::Floats low = Lanes::set_float(layer.low_less_zero), high = Lanes::set_float(layer.high_less_zero);
  for (int64_t channel = 0; channel < window.channels; channel += kLanes) {
    Lanes::Ints sum = Lanes::set_int(-layer.zero_sum);
    for (int64_t h = 0; h < window.height; ++h) {
      const uint8_t* x = window.x + h * window.row_stride + channel;
      for (int64_t w = 0; w < window.width; ++w) {
        sum = Lanes::add_ints(sum, Lanes::load_codes(x + w * window.pixel_stride));
      }
    }
    const Lanes::Floats mean = Lanes::mul(Lanes::to_float(sum), multiplier);
    const Lanes::Ints codes = Lanes::round(Lanes::clamp(mean, low, high));
    Lanes::store_codes(y + channel, Lanes::add_ints(codes, Lanes::set_int(layer.zero)),
                       lanes_left(window.channels, channel));
  }
}

void max_pool(const PoolWindow& window, uint8_t* __restrict y) {
  for (int64_t channel = 0; channel < window.channels; ++channel) y[channel] = window.x[channel];
  for (int64_t h = 0; h < window.height; ++h) {
    for (int64_t w = 0; w < window.width; ++w) {
      const uint8_t* x = window.x + h * window.row_stride + w * window.pixel_stride;
      for (int64_t channel = 0; channel < window.channels; ++channel) {
        y[channel] = y[channel] < x[channel] ? x[channel] : y[channel];
      }
    }
  }
}

void lookup(const uint8_t* table, const uint8_t* x, uint8_t* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] = table[x[i]];
}

// A NaN becomes the zero point, whatever the clamp bounds are; float inputs have no readable slack behind them.
void quantize(const QuantizeLayer& layer, const float* x, uint8_t* y, int64_t count) {
  const Lanes::Floats scale = Lanes::set_float(layer.scale);
  const Lanes::Floats low = Lanes::set_float(layer.low_less_zero), high = Lanes::set_float(layer.high_less_zero);
  const Lanes::Ints zero = Lanes::set_int(layer.zero);
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t n = lanes_left(count, i);
    const Lanes::Floats position =
        Lanes::div(n == kLanes ? Lanes::load_floats(x + i) : Lanes::load_floats(x + i, n), scale);
    const Lanes::Floats clamped = Lanes::where_number(position, Lanes::clamp(position, low, high));
    Lanes::store_codes(y + i, Lanes::add_ints(Lanes::round(clamped), zero), n);
  }
}

void dequantize(float scale, float zero, const uint8_t* x, float* y, int64_t count) {
  const Lanes::Floats scales = Lanes::set_float(scale), zeros = Lanes::set_float(zero);
  for (int64_t i = 0; i < count; i += kLanes) {
    const Lanes::Floats codes = Lanes::to_float(Lanes::load_codes(x + i));
    Lanes::store_floats(y + i, Lanes::mul(Lanes::sub(codes, zeros), scales), lanes_left(count, i));
  }
}

}  // namespace
}  // namespace pyquant
