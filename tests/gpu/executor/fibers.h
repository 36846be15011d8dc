// A GPU's blocks on one CPU thread: every CUDA thread is a fiber. executor.h has what they can do.
//
// It is as nasty as the ISA allows. Warps run in random order and a warp may run far ahead of the others, up to a barrier;
// shared memory starts as garbage; an asynchronous copy turns its target into garbage at once and lands at the last legal
// moment, its own thread's wait. What ends a launch with a message: shared memory touched while a copy to it is under way,
// misaligned addresses, copies and shared addresses out of bounds, threads that miss a barrier or a warp's instruction.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};
static Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace executor {

constexpr unsigned kWarp = 32;
constexpr size_t kStack = 64 << 10;
constexpr uint8_t kGarbage = 0xA5;

struct Copy {
  uint8_t* to;
  uint8_t bytes[16];
};

enum class State { kReady, kAtBarrier, kAtWarp, kDone };

struct Thread {
  ucontext_t context;
  jmp_buf resume;
  std::vector<char> stack;
  bool begun;
  State state;
  unsigned index;
  const void* in[3];  // the operands that a warp's instruction takes from this lane
  void* out;
  std::vector<Copy> open;                 // copies of the group that is not closed yet
  std::vector<std::vector<Copy>> groups;  // closed ones, oldest first
};

static std::vector<Thread> threads;
static Thread* current;
static jmp_buf scheduler;
static std::function<void()> kernel;
static std::vector<uint8_t> shared;
static std::vector<uint8_t> under_way;  // copies to each 16 bytes of shared memory
static uint8_t* shared_base;
static size_t shared_bytes;
static std::string failure;
static uint32_t random_state;
static std::vector<std::pair<const uint8_t*, size_t>> tensors;  // the memory that the launch was given
static int worst_conflict;  // shared-memory accesses of one phase that fell on the same banks, at most

inline uint32_t random_below(uint32_t bound) {
  random_state = random_state * 1664525u + 1013904223u;
  return (random_state >> 8) % bound;
}

[[noreturn]] inline void fail(const std::string& what) {
  if (failure.empty()) {
    failure = what + " (block " + std::to_string(blockIdx.x) + "," + std::to_string(blockIdx.y) + " thread " +
              std::to_string(current->index) + ")";
  }
  current->state = State::kDone;
  _longjmp(scheduler, 2);
}

inline void yield() {
  if (_setjmp(current->resume) == 0) _longjmp(scheduler, 1);
}

inline void first_step() {
  kernel();
  current->state = State::kDone;
  _longjmp(scheduler, 1);
}

inline void step(Thread& thread) {
  current = &thread;
  threadIdx.x = thread.index;
  if (_setjmp(scheduler) != 0) return;
  if (thread.begun) _longjmp(thread.resume, 1);
  thread.begun = true;
  getcontext(&thread.context);
  thread.context.uc_stack.ss_sp = thread.stack.data();
  thread.context.uc_stack.ss_size = thread.stack.size();
  thread.context.uc_link = nullptr;
  makecontext(&thread.context, first_step, 0);
  setcontext(&thread.context);
}

// The last lane to come does the instruction for all 32.
template <class Instruction>
inline void with_warp(Instruction instruction) {
  Thread* me = current;
  Thread* warp = &threads[me->index / kWarp * kWarp];
  me->state = State::kAtWarp;
  bool all = true;
  for (unsigned l = 0; l < kWarp; ++l) {
    if (warp[l].state == State::kDone) fail("a lane has left before an instruction of its whole warp");
    if (warp[l].state == State::kAtBarrier) fail("a lane waits at a barrier while its warp does an instruction");
    all = all && warp[l].state == State::kAtWarp;
  }
  if (all) {
    instruction(warp);
    for (unsigned l = 0; l < kWarp; ++l) warp[l].state = State::kReady;
  }
  while (me->state == State::kAtWarp) yield();
}

inline void run_block() {
  for (unsigned i = 0; i < threads.size(); ++i) {
    Thread& thread = threads[i];
    thread.begun = false;
    thread.state = State::kReady;
    thread.index = i;
    thread.open.clear();
    thread.groups.clear();
  }
  std::fill(shared.begin(), shared.end(), kGarbage);
  std::fill(under_way.begin(), under_way.end(), 0);
  const unsigned warps = threads.size() / kWarp;
  for (;;) {
    std::vector<unsigned> able;
    unsigned waiting = 0, done = 0;
    for (unsigned w = 0; w < warps; ++w) {
      bool moves = false;
      for (unsigned l = 0; l < kWarp; ++l) {
        const State state = threads[w * kWarp + l].state;
        moves = moves || state == State::kReady || state == State::kAtWarp;
        waiting += state == State::kAtBarrier;
        done += state == State::kDone;
      }
      if (moves) able.push_back(w);
    }
    if (done == threads.size()) return;
    if (waiting == threads.size()) {
      for (Thread& thread : threads) thread.state = State::kReady;
      continue;
    }
    if (able.empty()) {
      failure = "some threads wait at a barrier that others will never reach";
      return;
    }
    // One warp, for a while: sometimes a few steps, sometimes until it can go no further.
    Thread* warp = &threads[able[random_below(able.size())] * kWarp];
    const unsigned first = random_below(kWarp);
    for (unsigned steps = 1 << random_below(8); steps > 0; --steps) {
      bool moved = false;
      for (unsigned l = 0; l < kWarp; ++l) {
        Thread& lane = warp[(first + l) % kWarp];
        if (lane.state != State::kReady) continue;
        step(lane);
        if (!failure.empty()) return;
        moved = true;
      }
      if (!moved) break;
    }
  }
}

// Runs a grid. Returns what went wrong, or an empty string.
inline std::string launch(Dim3 grid, unsigned block, size_t dynamic_shared, uint32_t seed, std::function<void()> body) {
  failure.clear();
  random_state = seed;
  kernel = std::move(body);
  gridDim = grid;
  blockDim = {block, 1, 1};
  if (block == 0 || block % kWarp != 0) return "a block is whole warps";
  threads.resize(block);
  for (Thread& thread : threads) thread.stack.resize(kStack);
  shared_bytes = dynamic_shared;
  shared.assign(shared_bytes + 128, kGarbage);
  under_way.assign(shared_bytes / 16 + 1, 0);
  shared_base = shared.data() + (128 - reinterpret_cast<uintptr_t>(shared.data()) % 128) % 128;
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z) {
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y) {
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
        run_block();
        if (!failure.empty()) return failure;
      }
    }
  }
  return failure;
}

inline void check_shared(const uint8_t* address, size_t bytes, const char* what) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) fail(std::string(what) + ": misaligned shared address");
  if (address < shared_base || address + bytes > shared_base + shared_bytes) {
    fail(std::string(what) + ": shared address out of bounds");
  }
  if (under_way[(address - shared_base) / 16] > 0) fail(std::string(what) + ": a copy to this address is under way");
}

inline void check_global(const uint8_t* address, size_t bytes, const char* what) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) fail(std::string(what) + ": misaligned global address");
  for (const auto& [first, size] : tensors) {
    if (address >= first && address + bytes <= first + size) return;
  }
  fail(std::string(what) + ": global address out of bounds");
}

// Eight lanes read or write 16 bytes each at a time: how many of them fall on the same four banks.
inline void note_conflicts(const uint8_t* const (&rows)[8]) {
  for (int a = 0; a < 8; ++a) {
    int same = 0;
    for (int b = 0; b < 8; ++b) {
      bool again = false;
      for (int c = 0; c < b; ++c) again = again || rows[c] == rows[b];
      same += !again && (rows[a] - shared_base) / 16 % 8 == (rows[b] - shared_base) / 16 % 8;
    }
    worst_conflict = std::max(worst_conflict, same);
  }
}

}  // namespace executor
