#include "engine/stored_weights.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "engine/section_reader.h"

namespace pyquant {

std::vector<int8_t> centred_codes(const uint8_t* words, const uint8_t* zero, int64_t rows, int64_t length, int bits,
                                  bool is_signed) {
  const int32_t lowest = is_signed ? -(1 << (bits - 1)) : 0;
  const int32_t highest = lowest + (1 << bits) - 1;
  const int64_t row_bytes = words_of(length, bits) * 4;
  std::vector<int8_t> centred(static_cast<size_t>(rows * length));
  int8_t* to = centred.data();
  for (int64_t row = 0; row < rows; ++row) {
    const int32_t row_zero = zero != nullptr ? static_cast<int32_t>(little_endian_32(zero + row * 4)) : 0;
    if (row_zero < lowest || row_zero > highest) {
      throw std::invalid_argument("has a weight zero point of " + std::to_string(row_zero) + " outside its grid " +
                                  std::to_string(lowest) + ".." + std::to_string(highest));
    }
    const uint8_t* from = words + row * row_bytes;
    uint64_t pending = 0;  // bits that were read and are not taken yet
    int count = 0;
    int32_t least = 0, most = 0;
    for (int64_t k = 0; k < length; ++k) {
      if (count < bits) {
        pending |= uint64_t{little_endian_32(from)} << count;
        from += 4;
        count += 32;
      }
      int32_t code = static_cast<int32_t>(pending & ((1u << bits) - 1));
      pending >>= bits;
      count -= bits;
      if (code > highest) code -= 1 << bits;
      code -= row_zero;
      least = std::min(least, code);
      most = std::max(most, code);
      *to++ = static_cast<int8_t>(code);
    }
    if (least < -128 || most > 127) {
      throw std::invalid_argument("has weights that less their zero point reach " + std::to_string(least) + ".." +
                                  std::to_string(most) + " in row " + std::to_string(row) +
                                  "; the int8 kernels take -128..127, so use a symmetric grid or fewer bits");
    }
  }
  return centred;
}

void check_accumulator(const std::vector<int8_t>& weight, int64_t length, int x_zero) {
  const int64_t most = std::numeric_limits<int32_t>::max();
  const int64_t reach = std::max(x_zero, 255 - x_zero);
  if (length * reach * 128 <= most) return;
  int64_t largest = 0;
  for (int8_t code : weight) largest = std::max<int64_t>(largest, std::abs(int{code}));
  largest *= reach;
  if (length * largest > most) {
    throw std::invalid_argument("sums K=" + std::to_string(length) + " products of up to " + std::to_string(largest) +
                                "; int32 holds at most K=" + std::to_string(most / largest));
  }
}

}  // namespace pyquant
