// A small thread pool: splits a range over at most `threads` workers.
#pragma once
#include <cstdint>
#include <functional>

namespace pyquant {

// Calls body(begin, end) on disjoint parts that cover [0, count); the parts depend on `threads` and `count` alone.
void parallel_for(int threads, int64_t count, const std::function<void(int64_t, int64_t)>& body);

}  // namespace pyquant
