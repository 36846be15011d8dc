// The integer program, loaded once and then run in one call per batch.
#pragma once
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine/aligned.h"
#include "engine/convolution.h"
#include "engine/elementwise_steps.h"
#include "engine/frame.h"

namespace pyquant {

class Engine {
 public:
  explicit Engine(const std::string& isa);

  // --- building, in the program's order; every call returns or takes indices of values
  int value(bool is_float, bool channels_first, const Shape& shape);
  // Throws std::invalid_argument if two convolutions pad the same value with different codes.
  void convolution(const ConvolutionSpec& spec);
  void step(std::unique_ptr<Step> step);
  void flatten(int x, int y);
  // Lays out values and plans the arena. No building afterwards.
  void seal(const std::vector<int>& inputs, const std::vector<int>& outputs);

  // Contiguous tensors of `batch` images: codes [H][W][C], floats in the value's own layout. Any number of threads may
  // run one engine at a time.
  void run(const void* const* inputs, void* const* outputs, int64_t batch, int threads) const;

  const char* isa() const { return isa_name(isa_); }
  // What values inside take, an image.
  int64_t arena_bytes() const { return arena_bytes_; }

 private:
  void find_outside();
  void plan(const std::vector<int>& kept);
  void fill_halo(const Value& value, const Buffer& buffer, int64_t batch, int threads) const;

  Isa isa_;
  std::vector<Value> values_;
  std::vector<std::unique_ptr<Step>> steps_;
  std::vector<int> inputs_, outputs_;
  std::vector<std::pair<int, int>> flattens_;
  int64_t arena_bytes_ = 0;  // per image

  // One arena for every run in flight, kept for the next.
  mutable std::mutex arenas_mutex_;
  mutable std::vector<std::unique_ptr<AlignedBytes>> arenas_;
};

}  // namespace pyquant
