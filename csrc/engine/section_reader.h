// Reads the words of a section, none behind its end.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

namespace pyquant {

struct Bytes {
  const uint8_t* data;
  size_t size;
};

// What is wrong with a program's bytes, in one sentence. Such bytes end in this error or in a program that is safe to
// run; no third way.
class ProgramError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

inline uint32_t little_endian_32(const uint8_t* at) {
  return at[0] | uint32_t{at[1]} << 8 | uint32_t{at[2]} << 16 | uint32_t{at[3]} << 24;
}

inline uint64_t little_endian_64(const uint8_t* at) {
  return little_endian_32(at) | uint64_t{little_endian_32(at + 4)} << 32;
}

inline float little_endian_float(const uint8_t* at) {
  const uint32_t bits = little_endian_32(at);
  float number;
  std::memcpy(&number, &bits, 4);
  return number;
}

class SectionReader {
 public:
  explicit SectionReader(Bytes section) : section_(section) {}

  uint32_t word() { return little_endian_32(take(4)); }
  uint64_t long_word() { return little_endian_64(take(8)); }

  std::string name() {
    const size_t length = word();
    if (length > section_.size) fail("holds a name that is longer than the section");
    std::string text(reinterpret_cast<const char*>(take((length + 3) / 4 * 4)), length);
    // They end up in C strings and in messages of one line.
    for (char letter : text) {
      if (static_cast<unsigned char>(letter) < ' ') fail("holds a name with control characters");
    }
    return text;
  }

  // A whole number of low..high, high at most 2^32 - 1.
  int64_t whole(const char* what, int64_t low, int64_t high) {
    const int64_t number = word();
    if (number < low || number > high) {
      fail(std::string("has ") + what + "=" + std::to_string(number) + "; it should be " + std::to_string(low) + ".." +
           std::to_string(high));
    }
    return number;
  }

  // A finite float above 0; with `normal` no subnormal either, for what is divided by.
  float scale(const char* what, bool normal) {
    const float number = little_endian_float(take(4));
    const float least = normal ? std::numeric_limits<float>::min() : std::numeric_limits<float>::denorm_min();
    if (!std::isfinite(number) || number < least) {
      fail(std::string("has a ") + what + " that is no positive finite float32");
    }
    return number;
  }

  bool at_end() const { return begin_ == section_.size; }

  // Whom the reader is at, for messages.
  void enter(std::string where) { where_ = std::move(where); }

  [[noreturn]] void fail(const std::string& what) const { throw ProgramError(where_ + " " + what); }

 private:
  const uint8_t* take(size_t bytes) {
    if (bytes > section_.size - begin_) fail("ends too early");
    begin_ += bytes;
    return section_.data + begin_ - bytes;
  }

  Bytes section_;
  size_t begin_ = 0;
  std::string where_ = "the program";
};

}  // namespace pyquant
