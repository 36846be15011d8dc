// Memory on huge pages where the system has them: one core that reads or writes at the speed of memory meets a new small page
// every few hundred cycles.
#pragma once
#include <cstddef>
#include <cstdint>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pyquant {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr std::align_val_t kCacheLine{64};

// Undefined bytes on a cache line at least, for free_huge_pages with the same count; throws std::bad_alloc. A mapping of its own, not
// malloc's: what malloc hands out again lies on the small pages it had.
inline void* allocate_huge_pages(size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes >= kHugePage) {
    const size_t whole = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    void* const mapped = mmap(nullptr, whole + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    char* const start = static_cast<char*>(mapped);
    const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(start) % kHugePage) % kHugePage;
    if (before > 0) munmap(start, before);
    munmap(start + before + whole, kHugePage - before);
    // A request: where it is refused, small pages serve.
    (void)madvise(start + before, whole, MADV_HUGEPAGE);
    return start + before;
  }
#endif
  return ::operator new(bytes, kCacheLine);
}

inline void free_huge_pages(void* memory, size_t bytes) noexcept {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes >= kHugePage) {
    munmap(memory, (bytes + kHugePage - 1) / kHugePage * kHugePage);
    return;
  }
#endif
  ::operator delete(memory, kCacheLine);
}

}  // namespace pyquant
