// Eight callers at a time on one loaded program, with one and two threads each, get what a single caller gets; and so does
// a child of the process that is made in the midst of their runs.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <string>
#include <thread>

#include "check.h"

namespace {

constexpr int64_t kBatch = 2;

void same_bytes(const pq_program* program, const Tensors& inputs, const Tensors& want, int threads) {
  Tensors got = outputs_of(program, kBatch);
  CHECK(run(program, kBatch, inputs, got, threads) == PQ_OK);
  CHECK(got.bytes == want.bytes);
}

void fork_and_run(const pq_program* program, const Tensors& inputs, const Tensors& want) {
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    alarm(60);
    for (int round = 0; round < 3; ++round) same_bytes(program, inputs, want, 2);
    _exit(0);
  }
  int status = 1;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
}

}  // namespace

int main(int count, char** paths) {
  // Sanitizers have locks of their own, which a child may find held for ever.
  const bool fork_too = count > 1 && std::string(paths[1]) != "no-fork";
  CHECK(count > 2);
  for (int file = fork_too ? 1 : 2; file < count; ++file) {
    const Loaded program = load(paths[file]);
    const Tensors inputs = inputs_of(program.get(), kBatch);
    Tensors want = outputs_of(program.get(), kBatch);
    CHECK(run(program.get(), kBatch, inputs, want, 1) == PQ_OK);
    std::atomic<bool> enough{!fork_too};
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 8; ++caller) {
      callers.emplace_back([&, threads = 1 + caller % 2] {
        for (int round = 0; round < 20 || !enough; ++round) same_bytes(program.get(), inputs, want, threads);
      });
    }
    for (int children = 0; fork_too && children < 5; ++children) fork_and_run(program.get(), inputs, want);
    enough = true;
    for (std::thread& caller : callers) caller.join();
  }
  std::printf("fine\n");
}
