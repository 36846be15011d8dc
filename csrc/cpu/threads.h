// A small thread pool: splits a range over at most `threads` workers. Nothing here allocates once its workers exist.
#pragma once
#include <cstdint>

namespace pyquant {

// Beyond this many a machine has no use for more.
constexpr int kMostThreads = 256;

// A body that is called and not kept: what std::function is, without the memory.
class PartBody {
 public:
  template <typename F>
  PartBody(const F& body)
      : body_(&body), call_([](const void* f, int64_t begin, int64_t end) { (*static_cast<const F*>(f))(begin, end); }) {}
  void operator()(int64_t begin, int64_t end) const { call_(body_, begin, end); }

 private:
  const void* body_;
  void (*call_)(const void*, int64_t, int64_t);
};

// Calls body(begin, end) on disjoint parts that cover [0, count); the parts depend on `threads` and `count` alone. What a
// part throws, the first of them if several do, is thrown again when all have ended.
void parallel_for(int threads, int64_t count, PartBody body);

// The number of the part that this thread is at, below the `threads` of its parallel_for; 0 outside of any. Parts at work
// at the same time have numbers of their own, so each may have memory of its own.
int current_part();

class Worker;

// Holds workers for all calls of parallel_for that this thread makes while it lives, so that they need not be asked for
// at each. Inside another team it does nothing.
class Team {
 public:
  explicit Team(int threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

 private:
  friend void parallel_for(int threads, int64_t count, PartBody body);
  Worker* workers_[kMostThreads - 1];
  int size_;
};

}  // namespace pyquant
