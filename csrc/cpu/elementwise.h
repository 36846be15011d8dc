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

// Sixty-four codes at once, in whatever registers the compiler has for them: they stay there while the window passes.
typedef uint8_t Codes64 __attribute__((vector_size(64), aligned(1), may_alias));

void max_pool(const PoolWindow& window, uint8_t* y) {
  for (int64_t channel = 0; channel < window.channels; channel += 64) {
    Codes64 most = {};
    for (int64_t h = 0; h < window.height; ++h) {
      const uint8_t* x = window.x + h * window.row_stride + channel;
      for (int64_t w = 0; w < window.width; ++w, x += window.pixel_stride) {
        const Codes64 codes = *reinterpret_cast<const Codes64*>(x);
        most = codes > most ? codes : most;
      }
    }
    const int64_t left = window.channels - channel;
    if (left >= 64) {
      *reinterpret_cast<Codes64*>(y + channel) = most;
    } else {
      __builtin_memcpy(y + channel, &most, static_cast<size_t>(left));
    }
  }
}

void lookup(const uint8_t* table, const uint8_t* x, uint8_t* y, int64_t count) {
  for (int64_t i = 0; i < count; ++i) y[i] = table[x[i]];
}

// Codes of floats: a division takes as long as sixteen multiplications. A quotient is within 2^-13 of the product with the
// reciprocal where both are within 256 of 0, as clamping makes them; so only a product that close to the middle of two
// whole numbers has to be divided again. Scales are normal numbers, so a reciprocal is finite; that of one beyond 2^126
// has fewer bits, but no quotient is then beyond 4. A NaN becomes the zero point, whatever the clamp bounds are.
struct Quantise {
  Lanes::Floats scale, reciprocal, low, high, sure;
  Lanes::Ints zero;

  explicit Quantise(const QuantizeLayer& layer)
      : scale(Lanes::set_float(layer.scale)),
        reciprocal(Lanes::set_float(1.0f / layer.scale)),
        low(Lanes::set_float(layer.low_less_zero)),
        high(Lanes::set_float(layer.high_less_zero)),
        sure(Lanes::set_float(0.5f - 0x1p-12f)),
        zero(Lanes::set_int(layer.zero)) {}

  Lanes::Ints operator()(const Lanes::Floats& x) const {
    const Lanes::Floats product = clamped(Lanes::mul(x, reciprocal));
    const Lanes::Ints near = Lanes::round(product);
    if (__builtin_expect(Lanes::all_within(Lanes::sub(product, Lanes::to_float(near)), sure), 1)) {
      return Lanes::add_ints(near, zero);
    }
    return Lanes::add_ints(Lanes::round(clamped(Lanes::div(x, scale))), zero);
  }

 private:
  Lanes::Floats clamped(const Lanes::Floats& position) const {
    return Lanes::where_number(position, Lanes::clamp(position, low, high));
  }
};

// Float inputs have no readable slack behind them.
inline Lanes::Floats load_some(const float* x, int64_t n) {
  return n == kLanes ? Lanes::load_floats(x) : Lanes::load_floats(x, n);
}

void quantize(const QuantizeLayer& layer, const float* x, uint8_t* y, int64_t count) {
  const Quantise quantise(layer);
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t n = lanes_left(count, i);
    Lanes::store_codes(y + i, quantise(load_some(x + i, n)), n);
  }
}

void quantize_three(const QuantizeLayer& layer, const float* const* x, uint8_t* y, int64_t count) {
  const Quantise quantise(layer);
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t n = lanes_left(count, i);
    const auto codes = [&](int plane) { return quantise(load_some(x[plane] + i, n)); };
    const Lanes::Ints three[3] = {codes(0), codes(1), codes(2)};
    if (n == kLanes) {
      Lanes::store_triples(y + 3 * i, three);
    } else {
      uint8_t all[3 * kLanes];
      Lanes::store_triples(all, three);
      __builtin_memcpy(y + 3 * i, all, static_cast<size_t>(3 * n));
    }
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
