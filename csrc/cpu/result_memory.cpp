#include "cpu/result_memory.h"

#include <pthread.h>

#include <deque>
#include <iterator>
#include <mutex>

#include "cpu/huge_pages.h"

namespace pyquant {
namespace {

struct Block {
  void* memory;
  size_t bytes;
};

// Never destroyed: tensors may outlive main().
struct Kept {
  std::mutex mutex;
  std::deque<Block> blocks;  // oldest first
  size_t bytes = 0;
};

Kept& kept() {
  static Kept* const all = new Kept;
  // A fork must not find the lock taken by a thread that the child does not have.
  static const int registered =
      pthread_atfork([] { kept().mutex.lock(); }, [] { kept().mutex.unlock(); }, [] { kept().mutex.unlock(); });
  (void)registered;
  return *all;
}

}  // namespace

void* take_block(size_t bytes) {
  {
    Kept& all = kept();
    std::lock_guard<std::mutex> lock(all.mutex);
    // The latest: it is the likeliest to be in the cache still.
    for (auto block = all.blocks.rbegin(); block != all.blocks.rend(); ++block)
      if (block->bytes == bytes) {
        void* memory = block->memory;
        all.bytes -= bytes;
        all.blocks.erase(std::next(block).base());
        return memory;
      }
  }
  return allocate_huge_pages(bytes);
}

void give_block(void* memory, size_t bytes) noexcept {
  Kept& all = kept();
  std::lock_guard<std::mutex> lock(all.mutex);
  all.blocks.push_back({memory, bytes});
  all.bytes += bytes;
  while (all.bytes > kKeptBytes) {
    free_huge_pages(all.blocks.front().memory, all.blocks.front().bytes);
    all.bytes -= all.blocks.front().bytes;
    all.blocks.pop_front();
  }
}

size_t kept_bytes() {
  Kept& all = kept();
  std::lock_guard<std::mutex> lock(all.mutex);
  return all.bytes;
}

}  // namespace pyquant
