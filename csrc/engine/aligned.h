// Bytes on a 64-byte boundary that grow and are never cleared.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace pyquant {

class AlignedBytes {
 public:
  void grow(int64_t bytes) {
    if (bytes <= size_) return;
    const int64_t whole = (bytes + 63) / 64 * 64;
    bytes_.reset(static_cast<uint8_t*>(std::aligned_alloc(64, static_cast<size_t>(whole))));
    if (!bytes_) throw std::bad_alloc();
    size_ = whole;
  }
  uint8_t* data() const { return bytes_.get(); }

 private:
  struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
  };
  std::unique_ptr<uint8_t, Free> bytes_;
  int64_t size_ = 0;
};

}  // namespace pyquant
