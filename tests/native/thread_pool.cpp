// parallel_for: every index once, parts with numbers of their own, and errors that come out where they should.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>

#include "check.h"
#include "cpu/threads.h"

using pyquant::current_part;
using pyquant::parallel_for;
using pyquant::Team;

namespace {

void covers_every_index_once() {
  for (int threads : {1, 2, 3, 7, 300}) {
    for (int64_t count : {0, 1, 2, 5, 64, 1000}) {
      std::vector<std::atomic<int>> seen(static_cast<size_t>(count));
      parallel_for(threads, count, [&](int64_t begin, int64_t end) {
        CHECK(begin < end && current_part() >= 0 && current_part() < threads);
        for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
      });
      for (const auto& times : seen) CHECK(times == 1);
      CHECK(current_part() == 0);
    }
  }
}

// Waits until `goal` parts are at work at the same time, and so on as many threads.
void meet(std::atomic<int>& present, int goal) {
  ++present;
  const auto late = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (present < goal && std::chrono::steady_clock::now() < late) std::this_thread::yield();
  CHECK(present >= goal);
}

void parts_at_work_have_numbers_of_their_own() {
  for (int round = 0; round < 50; ++round) {
    std::atomic<int> present{0}, numbers{0};
    parallel_for(3, 3, [&](int64_t, int64_t) {
      meet(present, 3);
      CHECK((numbers.fetch_or(1 << current_part()) & 1 << current_part()) == 0);
      const int mine = current_part();
      // A call inside a part runs alone, on this part's memory.
      parallel_for(3, 10, [&](int64_t begin, int64_t end) { CHECK(begin == 0 && end == 10 && current_part() == mine); });
    });
    CHECK(numbers == 7);
  }
}

// The text of what parallel_for throws when part `thrower` does, or all parts if it is -1.
std::string error_of(int64_t thrower, int parts) {
  std::atomic<int> present{0}, ended{0};
  try {
    parallel_for(parts, parts, [&](int64_t begin, int64_t) {
      meet(present, parts);
      if (thrower < 0 || begin == thrower) throw std::runtime_error("part " + std::to_string(begin));
      ++ended;
    });
  } catch (const std::runtime_error& error) {
    // The other parts were not cut short.
    CHECK(ended == (thrower < 0 ? 0 : parts - 1));
    return error.what();
  }
  return "none";
}

void errors_come_out() {
  for (int round = 0; round < 30; ++round) {
    // All parts are at work at the same time, so one of these is a worker's and one the caller's.
    CHECK(error_of(0, 2) == "part 0");
    CHECK(error_of(1, 2) == "part 1");
    CHECK(error_of(-1, 3).substr(0, 5) == "part ");
    CHECK(error_of(5, 3) == "none");
    const Team team(3);
    CHECK(error_of(2, 3) == "part 2");
    covers_every_index_once();
  }
  // One part, or a call inside a part: no job, the same error.
  try {
    parallel_for(1, 4, [](int64_t, int64_t) { throw std::runtime_error("alone"); });
    CHECK(false);
  } catch (const std::runtime_error& error) {
    CHECK(error.what() == std::string("alone"));
  }
  try {
    parallel_for(2, 2, [](int64_t, int64_t) {
      parallel_for(2, 2, [](int64_t, int64_t) { throw std::runtime_error("inside"); });
    });
    CHECK(false);
  } catch (const std::runtime_error& error) {
    CHECK(error.what() == std::string("inside"));
  }
}

void callers_do_not_disturb_each_other() {
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 8; ++caller) {
    callers.emplace_back([caller] {
      for (int round = 0; round < 300; ++round) {
        const Team team(1 + caller % 3);
        std::atomic<int64_t> sum{0};
        parallel_for(1 + caller % 3, 100, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) sum += i;
        });
        CHECK(sum == 4950);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
}

// Short and long pauses: workers that still look for work, fall asleep, or sleep.
void workers_wake_up() {
  for (int pause : {0, 20, 50, 100, 200, 1000}) {
    for (int round = 0; round < 40; ++round) {
      std::atomic<int> present{0};
      parallel_for(2, 2, [&](int64_t, int64_t) { meet(present, 2); });
      std::this_thread::sleep_for(std::chrono::microseconds(pause));
    }
  }
}

void a_child_has_workers_of_its_own() {
  const pid_t child = fork();
  if (child == 0) {
    std::atomic<int> present{0};
    parallel_for(2, 2, [&](int64_t, int64_t) { meet(present, 2); });
    _exit(0);
  }
  int status = 1;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
}

}  // namespace

int main(int count, char** arguments) {
  covers_every_index_once();
  parts_at_work_have_numbers_of_their_own();
  errors_come_out();
  callers_do_not_disturb_each_other();
  workers_wake_up();
  // ThreadSanitizer does not follow threads that a child starts.
  if (count < 2 || std::string(arguments[1]) != "no-fork") a_child_has_workers_of_its_own();
  std::printf("fine\n");
}
