#include "cpu/threads.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace pyquant {
namespace {

// One call of parallel_for: its parts are claimed one by one, by the caller and by the workers it was lent.
struct Job {
  const std::function<void(int64_t, int64_t)>* body;
  int64_t count;
  int64_t parts;
  std::atomic<int64_t> next{0};
  std::atomic<int> holders{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;

  void work() {
    for (int64_t part; (part = next.fetch_add(1, std::memory_order_relaxed)) < parts;) {
      try {
        (*body)(count* part / parts, count * (part + 1) / parts);
      } catch (...) {
        // The first error wins, and the caller throws it again.
        if (!failed.exchange(true)) error = std::current_exception();
      }
    }
  }
};

// A part that calls parallel_for again runs it alone: the cores are already taken.
thread_local bool inside_part = false;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Some 50 us: longer than the gap between two layers, much shorter than a pause that anybody would miss.
constexpr int kSpins = 2000;

class Worker {
 public:
  Worker() { std::thread(&Worker::loop, this).detach(); }

  void post(Job* job) {
    mailbox_.store(job, std::memory_order_seq_cst);
    if (asleep_.load(std::memory_order_seq_cst)) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_one();
    }
  }

  // True if the worker had not opened its mailbox yet: then it never will touch the job.
  bool retract() { return mailbox_.exchange(nullptr) != nullptr; }

 private:
  void loop() {
    inside_part = true;
    for (;;) {
      Job* job = take();
      job->work();
      job->holders.fetch_sub(1, std::memory_order_release);
    }
  }

  Job* take() {
    for (int spin = 0; spin < kSpins; ++spin) {
      if (mailbox_.load(std::memory_order_relaxed) != nullptr) {
        if (Job* job = mailbox_.exchange(nullptr)) return job;
      }
      relax();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    asleep_.store(true, std::memory_order_seq_cst);
    Job* job = nullptr;
    wake_.wait(lock, [&] { return (job = mailbox_.exchange(nullptr)) != nullptr; });
    asleep_.store(false, std::memory_order_relaxed);
    return job;
  }

  std::atomic<Job*> mailbox_{nullptr};
  std::atomic<bool> asleep_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
};

class Pool {
 public:
  // Takes up to `wanted` idle workers; makes new ones as needed, so callers in several threads do not wait for each
  // other.
  std::vector<Worker*> borrow(int wanted) {
    std::vector<Worker*> lent;
    std::lock_guard<std::mutex> lock(mutex_);
    while (static_cast<int>(lent.size()) < wanted) {
      if (idle_.empty()) {
        if (made_ >= kMostWorkers) break;
        ++made_;
        idle_.push_back(new Worker);
      }
      lent.push_back(idle_.back());
      idle_.pop_back();
    }
    return lent;
  }

  void give_back(const std::vector<Worker*>& lent) {
    std::lock_guard<std::mutex> lock(mutex_);
    idle_.insert(idle_.end(), lent.rbegin(), lent.rend());
  }

 private:
  static constexpr int kMostWorkers = 256;
  std::mutex mutex_;
  std::vector<Worker*> idle_;
  int made_ = 0;
};

// Never destroyed: workers may outlive main(). After a fork the child has no workers and perhaps a locked mutex, so it
// drops the old pool and makes its own.
std::atomic<Pool*> pool{nullptr};

Pool& the_pool() {
  Pool* present = pool.load(std::memory_order_acquire);
  if (present != nullptr) return *present;
  static const int registered = pthread_atfork(nullptr, nullptr, [] {
    pool.store(nullptr);
    inside_part = false;
  });
  (void)registered;
  auto fresh = std::make_unique<Pool>();
  if (pool.compare_exchange_strong(present, fresh.get())) return *fresh.release();
  return *present;
}

}  // namespace

void parallel_for(int threads, int64_t count, const std::function<void(int64_t, int64_t)>& body) {
  if (count <= 0) return;
  const int64_t parts = std::min<int64_t>(threads, count);
  if (parts <= 1 || inside_part) {
    body(0, count);
    return;
  }
  Pool& from = the_pool();
  Job job;
  job.body = &body;
  job.count = count;
  job.parts = parts;
  const std::vector<Worker*> lent = from.borrow(static_cast<int>(parts) - 1);
  job.holders.store(static_cast<int>(lent.size()));
  for (Worker* worker : lent) worker->post(&job);
  inside_part = true;
  job.work();
  inside_part = false;
  for (Worker* worker : lent) {
    if (worker->retract()) job.holders.fetch_sub(1);
  }
  for (int spin = 0; job.holders.load(std::memory_order_acquire) != 0; ++spin) {
    // A worker that lost its core in mid-part may need this one.
    spin < kSpins ? relax() : std::this_thread::yield();
  }
  from.give_back(lent);
  if (job.failed) std::rethrow_exception(job.error);
}

}  // namespace pyquant
