// The weights of a convolution as files hold them: dense words of 2 to 8 bits a code.
#pragma once
#include <cstdint>
#include <vector>

namespace pyquant {

// 32-bit words that a row of `length` codes takes.
inline int64_t words_of(int64_t length, int64_t bits) { return (length * bits + 31) / 32; }

// words: [rows][words_of(length, bits)], low code first. zero: [rows] little-endian int32, or null for 0.
// Returns [rows][length] codes less their row's zero point. Throws std::invalid_argument if a zero point is no code, or
// a difference leaves int8.
std::vector<int8_t> centred_codes(const uint8_t* words, const uint8_t* zero, int64_t rows, int64_t length, int bits,
                                  bool is_signed);

// Throws std::invalid_argument if a sum of `length` products of a uint8 code less `x_zero` and a weight could leave int32.
void check_accumulator(const std::vector<int8_t>& weight, int64_t length, int x_zero);

}  // namespace pyquant
