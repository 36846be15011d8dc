// A linear layer with weights of 2, 3 or 4 bits, packed once.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "cpu/gemm_w4.h"
#include "engine/huge_bytes.h"

namespace pyquant {

// Weights as they come: dense words, and [N][K / group_size] zero points and scales.
struct LowBitWeights {
  const uint32_t* words;  // [N][ceil(K * bits / 32)], low code first
  const int32_t* zero;
  const float* scale;
  int64_t outputs, length, group_size;
  int bits;
  bool is_signed;
};

// Activation codes: bytes, or with 4 bits dense words; is_signed says whether they are two's complement.
struct ActivationCodes {
  const void* x;
  const int32_t* zero;  // [M]
  const float* scale;   // [M]
  int bits;
  bool is_signed;
};

class LinearW4 {
 public:
  LinearW4(const LowBitWeights& weights, const std::string& isa);

  // x: [M][K] codes with one zero point and one scale a row; y: [M][N] float32.
  void run(const ActivationCodes& x, float* y, int64_t rows, int threads) const;

  // x: [M][K], y: [M][N], both of `type`; x is quantised row by row on the way.
  void run(FloatType type, const void* x, void* y, int64_t rows, int threads) const;

 private:
  struct Scratch;
  void multiply(Scratch& scratch, const int32_t* zero, const float* scale, void* y, FloatType type, int64_t rows,
                int threads) const;

  const GemmW4Kernels* kernels_;
  int64_t outputs_, length_, group_size_;
  int32_t first_zero_;
  bool one_zero_;  // all groups have the first one's zero point
  HugeBytes records_;
  std::vector<int32_t> zero_, sum_, pair_;
  GemmW4 weights_;
};

// x: [M][K] of `type`; codes: int8 [M][K]; scale: [M].
void quantize_rows(FloatType type, const void* x, int8_t* codes, float* scale, int64_t rows, int64_t length,
                   const std::string& isa, int threads);

}  // namespace pyquant
