// CRC-32, as of zlib: what tells an altered file from the one that was saved.
#pragma once
#include <cstddef>
#include <cstdint>

namespace pyquant {

uint32_t crc32(const uint8_t* bytes, size_t size);

}  // namespace pyquant
