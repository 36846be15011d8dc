// One row of floats to signed 8-bit codes, in terms of LowBit; the contract is in gemm_w4.h.
#pragma once
#include <algorithm>
#include <limits>

#include "cpu/gemm_w4.h"

namespace pyquant {
namespace {

void quantize_row(FloatType type, const void* x, int64_t length, int8_t* codes, int64_t stride, int32_t* block_sum,
                  float* scale) {
  LowBit::Ints most = LowBit::set_int(0);
  for (int64_t k = 0; k < length; k += 16) {
    const int64_t n = std::min<int64_t>(16, length - k);
    most = LowBit::max_ints(most, LowBit::magnitude(LowBit::load_float_type(type, x, k, n)));
  }
  const int32_t bits = LowBit::largest(most);
  float magnitude;
  __builtin_memcpy(&magnitude, &bits, sizeof magnitude);
  const bool finite = bits < 0x7f800000;
  *scale = finite ? std::max(magnitude / 127.0f, std::numeric_limits<float>::min())
                  : std::numeric_limits<float>::quiet_NaN();
  const LowBit::Floats divisor = LowBit::set_float(*scale);
  for (int64_t k = 0; k < length; k += kBlock) {
    int8_t* to = codes + k / kChunk * stride + k % kChunk;
    LowBit::Ints sum = LowBit::set_int(0);
    for (int64_t half = 0; half < kBlock; half += 16) {
      const int64_t n = std::max<int64_t>(0, std::min<int64_t>(16, length - k - half));
      LowBit::Ints code = LowBit::set_int(0);
      if (n > 0 && finite) {
        code = LowBit::round(LowBit::div(LowBit::load_float_type(type, x, k + half, n), divisor));
      }
      sum = LowBit::add_ints(sum, code);
      LowBit::store_bytes(to + half, code);
    }
    block_sum[k / kBlock] = LowBit::total(sum);
  }
}

}  // namespace
}  // namespace pyquant
