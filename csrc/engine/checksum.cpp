#include "engine/checksum.h"

#include <array>

namespace pyquant {
namespace {

using Tables = std::array<std::array<uint32_t, 256>, 8>;

// table[k][b]: what byte b does to the remainder from k bytes away, so that eight bytes are taken at once.
Tables make_tables() {
  Tables table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t rest = byte;
    for (int bit = 0; bit < 8; ++bit) rest = (rest >> 1) ^ ((rest & 1) != 0 ? 0xEDB88320u : 0u);
    table[0][byte] = rest;
  }
  for (size_t k = 1; k < 8; ++k) {
    for (size_t byte = 0; byte < 256; ++byte) {
      const uint32_t before = table[k - 1][byte];
      table[k][byte] = (before >> 8) ^ table[0][before & 255];
    }
  }
  return table;
}

}  // namespace

uint32_t crc32(const uint8_t* bytes, size_t size) {
  static const Tables table = make_tables();
  uint32_t rest = 0xFFFFFFFFu;
  for (; size >= 8; size -= 8, bytes += 8) {
    rest = table[7][(rest ^ bytes[0]) & 255] ^ table[6][(rest >> 8 ^ bytes[1]) & 255] ^
           table[5][(rest >> 16 ^ bytes[2]) & 255] ^ table[4][rest >> 24 ^ bytes[3]] ^ table[3][bytes[4]] ^
           table[2][bytes[5]] ^ table[1][bytes[6]] ^ table[0][bytes[7]];
  }
  for (; size > 0; --size, ++bytes) rest = (rest >> 8) ^ table[0][(rest ^ *bytes) & 255];
  return ~rest;
}

}  // namespace pyquant
