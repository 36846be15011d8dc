#include "engine/linear_w4.h"

#include <algorithm>
#include <cstring>

#include "cpu/threads.h"

namespace pyquant {

LinearW4::LinearW4(const int8_t* codes, const int32_t* zero, const float* scale, int64_t outputs, int64_t length,
                   int64_t group_size, const std::string& isa)
    : isa_(isa_by_name(isa)),
      outputs_(outputs),
      length_(length),
      group_size_(group_size),
      groups_(length / group_size),
      eights_((group_size + 7) / 8),
      panels_((outputs + kLanes - 1) / kLanes) {
  const int64_t bytes = panels_ * groups_ * eights_ * kLanes * 4;
  weight_.grow(bytes);
  std::memset(weight_.data(), 0, static_cast<size_t>(bytes));
  const size_t constants = static_cast<size_t>(panels_ * groups_ * kLanes);
  scale_.assign(constants, 0.0f);
  zero_.assign(constants, 0);
  sum_.assign(constants, 0);
  for (int64_t n = 0; n < outputs; ++n) {
    for (int64_t g = 0; g < groups_; ++g) {
      const int64_t at = (n / kLanes * groups_ + g) * kLanes + n % kLanes;
      scale_[at] = scale[n * groups_ + g];
      zero_[at] = zero[n * groups_ + g];
      for (int64_t k = 0; k < group_size; ++k) {
        const int8_t code = codes[n * length + g * group_size + k];
        sum_[at] += code;
        const int64_t eight = (n / kLanes * groups_ + g) * eights_ + k / 8;
        uint8_t& byte = weight_.data()[(eight * kLanes + n % kLanes) * 4 + k % 4];
        byte |= static_cast<uint8_t>((code & 15) << (k % 8 < 4 ? 0 : 4));
      }
    }
  }
}

void LinearW4::run(const uint8_t* x, const int32_t* x_zero, const float* x_scale, float* y, int64_t rows,
                   int threads) const {
  const int64_t stride = groups_ * eights_ * 8;
  AlignedBytes padded;
  if (stride != length_) padded.grow(rows * stride);
  std::vector<int32_t> x_sum(static_cast<size_t>(rows * groups_));
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t g = 0; g < groups_; ++g) {
      const uint8_t* from = x + row * length_ + g * group_size_;
      int32_t sum = 0;
      for (int64_t k = 0; k < group_size_; ++k) sum += from[k];
      x_sum[static_cast<size_t>(row * groups_ + g)] = sum - static_cast<int32_t>(group_size_) * x_zero[row];
      if (stride == length_) continue;
      uint8_t* to = padded.data() + row * stride + g * eights_ * 8;
      std::memcpy(to, from, static_cast<size_t>(group_size_));
      std::memset(to + group_size_, 0, static_cast<size_t>(eights_ * 8 - group_size_));
    }
  }
  const GemmW4 layer = {weight_.data(), scale_.data(), zero_.data(), sum_.data(), groups_, eights_, outputs_};
  const uint8_t* codes = stride == length_ ? x : padded.data();
  const Kernels& kernels = kernels_for(isa_);
  // Threads share out panels, so that each reads its own weights. Rows come in blocks that stay in the cache.
  constexpr int64_t kBlock = 64;
  parallel_for(threads, panels_, [&](int64_t begin, int64_t end) {
    for (int64_t first = 0; first < rows; first += kBlock) {
      const GemmW4Rows block = {codes + first * stride,
                                stride,
                                x_zero + first,
                                x_scale + first,
                                x_sum.data() + first * groups_,
                                y + first * outputs_,
                                outputs_,
                                std::min(kBlock, rows - first)};
      kernels.gemm_w4(layer, block, begin, end);
    }
  });
}

}  // namespace pyquant
