// The integer program, loaded once and then run in one call per batch.
#pragma once
#include <array>
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "engine/aligned.h"
#include "engine/convolution.h"
#include "engine/elementwise_steps.h"
#include "engine/frame.h"
#include "engine/plan.h"

namespace pyquant {

class Engine {
 public:
  explicit Engine(const std::string& isa);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // --- building, in the program's order; every call returns or takes indices of values
  int value(bool is_float, bool channels_first, const Shape& shape);
  // Throws std::invalid_argument if two convolutions pad the same value with different codes.
  void convolution(const ConvolutionSpec& spec);
  void step(std::unique_ptr<Step> step);
  void flatten(int x, int y);
  // Lays out values and plans the arena. No building afterwards.
  void seal(const std::vector<int>& inputs, const std::vector<int>& outputs);

  // Contiguous tensors of `batch` images: codes [H][W][C], floats in the value's own layout. Any number of threads may
  // run one engine at a time. `nanoseconds`, one count a value, is increased by what the step that gives the value took;
  // null asks no clock. Only runs whose images all go together can be timed: of one image, or in one thread.
  void run(const void* const* inputs, void* const* outputs, int64_t batch, int threads,
           int64_t* nanoseconds = nullptr) const;
  int64_t values() const { return static_cast<int64_t>(values_.size()); }

  const char* isa() const { return isa_name(isa_); }
  // What a run takes, once: values inside, and what threads need for themselves.
  int64_t memory(int64_t batch, int threads) const;

 private:
  // A run of consecutive images in memory of its own.
  struct Part {
    const void* const* inputs;
    void* const* outputs;
    int64_t first, images;
    int threads;
    uint8_t* arena;
    uint8_t* scratch;
    Buffer* buffers;  // one for each value
    int64_t* nanoseconds;
  };

  void find_outside();
  void fill_halo(const Value& value, const Buffer& buffer, int64_t batch, int threads) const;
  void run_part(const Part& part) const;
  void place(const Part& part, int64_t done) const;
  void take_inputs(const Part& part) const;
  void give_outputs(const Part& part) const;

  Isa isa_;
  std::vector<Value> values_;
  std::vector<std::unique_ptr<Step>> steps_;
  std::vector<int> inputs_, outputs_;
  std::vector<std::pair<int, int>> flattens_;
  Plan plan_;
  int64_t scratch_bytes_ = 0;  // per thread

  // What a run needs for itself; kept for the next, so that it need not be allocated again.
  struct Workspace {
    AlignedBytes arena;
    std::vector<Buffer> buffers;
  };
  std::unique_ptr<Workspace> take_workspace() const;
  void keep_workspace(std::unique_ptr<Workspace> workspace) const;

  // As many as there may be runs at the same time without one allocating. Not behind a lock: one that was held when the
  // process forked would stay held for ever in the child.
  mutable std::array<std::atomic<Workspace*>, 64> workspaces_{};
};

}  // namespace pyquant
