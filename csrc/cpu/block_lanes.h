// A depthwise block of one panel, in terms of Lanes.
#pragma once
#include "cpu/epilogue.h"
#include "cpu/kernels.h"

namespace pyquant {
namespace {

struct Block {
  static constexpr int kPieces = 1;
  static constexpr int kPasses = 1;
  static constexpr int kVectors = 1;
  static constexpr int kColumns = Lanes::kColumns;
  static constexpr int64_t kColumnBytes = kLanes * 4;
  static constexpr int64_t kWeightBytes = kLanes * 4;

  using Ints = Lanes::Ints;
  using Floats = Lanes::Floats;
  using Weights = Lanes::Weights;
  using Part = Lanes::Floats;

  template <int P>
  static void interleave(const uint8_t* const* rows, int64_t offset, const int64_t*, uint8_t* out) {
    Lanes::interleave(rows, offset, out);
  }
  static Ints load_seed(const int32_t* p, int) { return Lanes::load_ints(p); }
  static Weights load_weights(const int8_t* p, int) { return Lanes::load_weights(p); }
  static Ints dot(const Ints& acc, const uint8_t* column, int, const Weights& w) {
    return Lanes::dot_columns(acc, Lanes::load_columns(column), w);
  }

  struct Finish {
    Affine to_float;
    Requantise requantise;

    Finish(const Epilogue& e, int64_t channel) : to_float(e, channel), requantise(e) {}

    Floats affine(const Ints& acc, int) const { return to_float(acc); }
    template <int P>
    Floats add_residual(const Floats& y, const uint8_t* residual, const int64_t*, int) const {
      return requantise.add_residual(y, residual);
    }
    Part part(const Floats (&y)[1]) const { return y[0]; }
    template <int P>
    void store(const Part (&parts)[1], uint8_t* to, const int64_t*, int64_t n) const {
      requantise.store(parts[0], to, n);
    }
  };
};

}  // namespace
}  // namespace pyquant
