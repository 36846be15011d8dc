// Memory for weights that are streamed.
#pragma once
#include <cstdint>
#include <cstring>
#include <memory>

#include "cpu/huge_pages.h"

namespace pyquant {

class HugeBytes {
 public:
  // `bytes` of zeros. Kernels prefetch a little behind the end, which needs no memory.
  void allocate(int64_t bytes) {
    const size_t size = static_cast<size_t>(bytes);
    bytes_ = Bytes(static_cast<uint8_t*>(allocate_huge_pages(size)), Free{size});
    std::memset(bytes_.get(), 0, size);
  }
  uint8_t* data() const { return bytes_.get(); }

 private:
  struct Free {
    size_t size;
    void operator()(uint8_t* p) const { free_huge_pages(p, size); }
  };
  using Bytes = std::unique_ptr<uint8_t, Free>;
  Bytes bytes_;
};

}  // namespace pyquant
