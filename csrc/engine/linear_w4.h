// A linear layer with 4-bit weights, packed once.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "engine/aligned.h"

namespace pyquant {

class LinearW4 {
 public:
  // codes: [N][K] of -8..7; zero and scale: [N][K / group_size].
  LinearW4(const int8_t* codes, const int32_t* zero, const float* scale, int64_t outputs, int64_t length,
           int64_t group_size, const std::string& isa);

  // x: [M][K] codes with one zero point and one scale a row; y: [M][N].
  void run(const uint8_t* x, const int32_t* x_zero, const float* x_scale, float* y, int64_t rows, int threads) const;

 private:
  Isa isa_;
  int64_t outputs_, length_, group_size_, groups_, eights_, panels_;
  AlignedBytes weight_;
  std::vector<float> scale_;
  std::vector<int32_t> zero_, sum_;
};

}  // namespace pyquant
