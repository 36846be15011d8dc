// The CUDA kernels of PQ_SOURCE as a shared library for a CPU: run() launches one by its name, as the CUDA driver would.
#include PQ_SOURCE

#include <cstdio>
#include <utility>

namespace {

// Calls a kernel with arguments given as the driver takes them: an array of pointers to their values.
template <class... Arguments, size_t... kIndex>
void call(void (*kernel)(Arguments...), void** values, std::index_sequence<kIndex...>) {
  kernel(*static_cast<Arguments*>(values[kIndex])...);
}

template <class... Arguments>
std::function<void()> bind(void (*kernel)(Arguments...), void** values) {
  return [=] { call(kernel, values, std::index_sequence_for<Arguments...>()); };
}

std::function<void()> find(const std::string& name, void** values) {
#define PQ_ENTRY(entry) \
  if (name == #entry) return bind(entry, values);
#include "entries.inc"
#undef PQ_ENTRY
  return nullptr;
}

}  // namespace

// grid: x, y, z. values: pointers to the arguments' values; sizes: of what a pointer among them points to, in bytes, else 0;
// count: of both. failure: 256 bytes. conflict: how many 16-byte accesses of one
// phase met in the same banks of shared memory, at most. Returns 0, or 1 with a reason in `failure`.
extern "C" int run(const char* entry, const unsigned* grid, unsigned block, unsigned shared_bytes, void** values,
                   const size_t* sizes, unsigned count, unsigned seed, char* failure, int* conflict) {
  const std::function<void()> body = find(entry, values);
  executor::worst_conflict = 0;
  executor::tensors.clear();
  for (unsigned i = 0; i < count; ++i) {
    if (sizes[i] > 0) executor::tensors.push_back({*static_cast<const uint8_t**>(values[i]), sizes[i]});
  }
  const std::string why =
      body ? executor::launch({grid[0], grid[1], grid[2]}, block, shared_bytes, seed, body) : "there is no such kernel";
  std::snprintf(failure, 256, "%s", why.c_str());
  *conflict = executor::worst_conflict;
  return !why.empty();
}
