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
        residual_zero(Lanes::set_float(e.residual_zero)),
        residual_scale(Lanes::set_float(e.residual_scale)),
        zero(Lanes::set_int(e.zero)) {}

  Lanes::Floats add_residual(const Lanes::Floats& y, const uint8_t* residual) const {
    const Lanes::Floats codes = Lanes::to_float(Lanes::load_codes(residual));
    return Lanes::add(y, Lanes::mul(Lanes::sub(codes, residual_zero), residual_scale));
  }

  void store(const Lanes::Floats& y, uint8_t* to, int64_t n) const {
    Lanes::store_codes(to, Lanes::add_ints(Lanes::round(Lanes::clamp(y, low, high)), zero), n);
  }
};

}  // namespace
}  // namespace pyquant
