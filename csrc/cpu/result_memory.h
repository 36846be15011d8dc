// Memory for big results that outlives them: a fresh 64 MB costs more in page faults than the kernel that fills it, and training
// frees a tensor of the same size at every step. It lies on huge pages where the system gives them: a result is written past the
// cache, and on small pages that takes half as long again.
#pragma once
#include <cstddef>

namespace pyquant {

// Freed blocks kept for the next result of the same size, all together; beyond it the oldest go back to the system.
constexpr size_t kKeptBytes = size_t{256} << 20;

// `bytes` of memory on huge pages, or on a cache line at least, its content undefined; throws std::bad_alloc.
void* take_block(size_t bytes);
void give_block(void* block, size_t bytes) noexcept;

// Bytes of freed blocks that are kept.
size_t kept_bytes();

}  // namespace pyquant
