#include "cpu/threads.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace pyquant {
namespace {

// What this thread is doing. A part that calls parallel_for again runs it alone: the cores are already taken.
thread_local bool inside_part = false;
thread_local int part_number = 0;
thread_local Team* present_team = nullptr;

// One call of parallel_for: its parts are claimed one by one, by the caller and by the workers it was lent.
struct Job {
  const PartBody* body;
  int64_t count;
  int64_t parts;
  std::atomic<int64_t> next{0};
  std::atomic<int> holders{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;

  void work() {
    for (int64_t part; (part = next.fetch_add(1, std::memory_order_relaxed)) < parts;) {
      part_number = static_cast<int>(part);
      try {
        (*body)(count* part / parts, count * (part + 1) / parts);
      } catch (...) {
        // The first error wins, and the caller throws it again.
        if (!failed.exchange(true)) error = std::current_exception();
      }
    }
    part_number = 0;
  }
};

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Some 50 us: longer than the gap between two layers, much shorter than a pause that anybody would miss.
constexpr int kSpins = 2000;

}  // namespace

class Worker {
 public:
  // Throws std::system_error if there are to be no more threads.
  Worker() {
    std::thread(&Worker::loop, this).detach();
    // What a new thread allocates at first, it has allocated when this returns. One that is late is not waited for: nobody
    // depends on a worker that has not opened its mailbox.
    const auto late = std::chrono::steady_clock::now() + std::chrono::milliseconds(100);
    while (!ready_.load(std::memory_order_acquire) && std::chrono::steady_clock::now() < late) {
      std::this_thread::yield();
    }
  }

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
    ready_.store(true, std::memory_order_release);
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
  std::atomic<bool> asleep_{false}, ready_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
};

namespace {

class Pool {
 public:
  Pool() { idle_.reserve(kMostWorkers); }

  // Takes up to `wanted` idle workers; makes new ones as needed, so callers in several threads do not wait for each
  // other. Where there are to be no more threads, those that there are do the work.
  int borrow(Worker** lent, int wanted) {
    std::lock_guard<std::mutex> lock(mutex_);
    int count = 0;
    for (; count < wanted; ++count) {
      if (idle_.empty() && !add_one()) break;
      lent[count] = idle_.back();
      idle_.pop_back();
    }
    return count;
  }

  void give_back(Worker* const* lent, int count) {
    std::lock_guard<std::mutex> lock(mutex_);
    // Last in, first out: the workers that were warm are so again.
    while (count > 0) idle_.push_back(lent[--count]);
  }

 private:
  static constexpr int kMostWorkers = kMostThreads;

  bool add_one() {
    if (made_ >= kMostWorkers) return false;
    try {
      idle_.push_back(new Worker);
    } catch (const std::system_error&) {
      return false;
    } catch (const std::bad_alloc&) {
      return false;
    }
    ++made_;
    return true;
  }

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
    present_team = nullptr;
  });
  (void)registered;
  auto fresh = std::make_unique<Pool>();
  if (pool.compare_exchange_strong(present, fresh.get())) return *fresh.release();
  return *present;
}

}  // namespace

int current_part() { return part_number; }

Team::Team(int threads) : size_(0) {
  if (threads <= 1 || inside_part || present_team != nullptr) return;
  size_ = the_pool().borrow(workers_, std::min(threads, kMostThreads) - 1);
  present_team = this;
}

Team::~Team() {
  if (present_team != this) return;
  present_team = nullptr;
  the_pool().give_back(workers_, size_);
}

void parallel_for(int threads, int64_t count, PartBody body) {
  if (count <= 0) return;
  const int64_t parts = std::min<int64_t>(threads, count);
  if (parts <= 1 || inside_part) {
    body(0, count);
    return;
  }
  if (present_team == nullptr) {
    const Team team(static_cast<int>(std::min<int64_t>(parts, kMostThreads)));
    return parallel_for(threads, count, body);
  }
  Worker* const* workers = present_team->workers_;
  const int lent = static_cast<int>(std::min<int64_t>(parts - 1, present_team->size_));
  Job job;
  job.body = &body;
  job.count = count;
  job.parts = parts;
  job.holders.store(lent);
  for (int i = 0; i < lent; ++i) workers[i]->post(&job);
  inside_part = true;
  job.work();
  inside_part = false;
  for (int i = 0; i < lent; ++i) {
    if (workers[i]->retract()) job.holders.fetch_sub(1);
  }
  for (int spin = 0; job.holders.load(std::memory_order_acquire) != 0; ++spin) {
    // A worker that lost its core in mid-part may need this one.
    spin < kSpins ? relax() : std::this_thread::yield();
  }
  if (job.failed) std::rethrow_exception(job.error);
}

}  // namespace pyquant
