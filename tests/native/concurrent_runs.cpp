// Eight callers at a time on one loaded program, with one and two threads each, get what a single caller gets.
#include <thread>

#include "check.h"

int main(int count, char** paths) {
  CHECK(count > 1);
  for (int file = 1; file < count; ++file) {
    const Loaded program = load(paths[file]);
    constexpr int64_t kBatch = 2;
    const Tensors inputs = inputs_of(program.get(), kBatch);
    Tensors want = outputs_of(program.get(), kBatch);
    CHECK(run(program.get(), kBatch, inputs, want, 1) == PQ_OK);
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 8; ++caller) {
      callers.emplace_back([&, threads = 1 + caller % 2] {
        for (int round = 0; round < 20; ++round) {
          Tensors got = outputs_of(program.get(), kBatch);
          CHECK(run(program.get(), kBatch, inputs, got, threads) == PQ_OK);
          CHECK(got.bytes == want.bytes);
        }
      });
    }
    for (std::thread& caller : callers) caller.join();
  }
  std::printf("fine\n");
}
