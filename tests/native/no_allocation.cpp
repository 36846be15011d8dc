// Runs behind the first allocate nothing, on any thread: malloc and its kin are counted.
#include <atomic>

#include "check.h"

namespace {
std::atomic<long> allocations{0};
}

// glibc's own, which ours stand before in every library of the process; operator new comes here too.
extern "C" {
void* __libc_malloc(size_t size);
void* __libc_calloc(size_t count, size_t size);
void* __libc_realloc(void* at, size_t size);
void* __libc_memalign(size_t alignment, size_t size);

void* malloc(size_t size) {
  ++allocations;
  return __libc_malloc(size);
}
void* calloc(size_t count, size_t size) {
  ++allocations;
  return __libc_calloc(count, size);
}
void* realloc(void* at, size_t size) {
  ++allocations;
  return __libc_realloc(at, size);
}
void* aligned_alloc(size_t alignment, size_t size) {
  ++allocations;
  return __libc_memalign(alignment, size);
}
int posix_memalign(void** at, size_t alignment, size_t size) {
  ++allocations;
  *at = __libc_memalign(alignment, size);
  return *at != nullptr ? 0 : 12;
}
}

int main(int count, char** paths) {
  CHECK(count > 1);
  for (int file = 1; file < count; ++file) {
    const Loaded program = load(paths[file]);
    for (int threads : {1, 2, 3}) {
      constexpr int64_t kBatch = 4;
      const Tensors inputs = inputs_of(program.get(), kBatch);
      Tensors first = outputs_of(program.get(), kBatch), outputs = outputs_of(program.get(), kBatch);
      long before = allocations;
      CHECK(run(program.get(), kBatch, inputs, first, threads) == PQ_OK);
      // The counter counts.
      CHECK(threads > 1 || allocations > before);
      before = allocations;
      for (int round = 0; round < 40; ++round) CHECK(run(program.get(), kBatch, inputs, outputs, threads) == PQ_OK);
      CHECK(run(program.get(), 2, inputs, outputs, 1) == PQ_OK);
      CHECK(allocations == before);
    }
  }
  std::printf("fine\n");
}
