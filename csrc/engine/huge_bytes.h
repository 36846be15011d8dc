// Memory for weights that are streamed: on huge pages where the system has them, because one core that reads at the speed
// of memory meets a new small page every few hundred cycles.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pyquant {

class HugeBytes {
 public:
  // `bytes` of zeros.
  void allocate(int64_t bytes) {
    constexpr int64_t kHuge = 2 << 20;
    const int64_t page = bytes < kHuge ? 64 : kHuge;
    // Kernels prefetch a little behind the end, which needs no memory; whole multiples are what aligned_alloc wants.
    const size_t whole = static_cast<size_t>((bytes + page - 1) / page * page);
    bytes_.reset(static_cast<uint8_t*>(std::aligned_alloc(static_cast<size_t>(page), whole)));
    if (!bytes_) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    // A request: where it is refused, small pages serve.
    if (page == kHuge) (void)madvise(bytes_.get(), static_cast<size_t>(bytes), MADV_HUGEPAGE);
#endif
    std::memset(bytes_.get(), 0, static_cast<size_t>(bytes));
  }
  uint8_t* data() const { return bytes_.get(); }

 private:
  struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
  };
  std::unique_ptr<uint8_t, Free> bytes_;
};

}  // namespace pyquant
