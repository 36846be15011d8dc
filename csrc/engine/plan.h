// Where the values of a program live while it runs, and how many images pass through which of its steps at once.
#pragma once
#include <memory>
#include <vector>

#include "engine/frame.h"

namespace pyquant {

// Kernels may read this far behind a value.
constexpr int64_t kSlack = 64;

inline int64_t round_up(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Steps [begin, end) that `images` images of a batch pass through together, before the next ones do: as many as keep what
// the steps read and write in the cache. Later steps see smaller maps and more weights, so more images at once.
struct Stage {
  int64_t begin, end;
  int64_t images;
};

struct Plan {
  std::vector<Stage> stages;
  int64_t batch_bytes = 0;  // per image: values that live longer than their stage; `arena_offset` counts these
  int64_t stage_bytes = 0;  // values of one stage, for all its images; they lie behind the others

  // Bytes for a part of `images` images.
  int64_t bytes(int64_t images) const { return round_up(batch_bytes * images + stage_bytes + kSlack); }
};

// Lays out all values that live inside: sets their `arena_offset` and `in_stage`. Inputs and outputs live throughout.
Plan plan(std::vector<Value>& values, const std::vector<std::unique_ptr<Step>>& steps, const std::vector<int>& inputs,
          const std::vector<int>& outputs);

}  // namespace pyquant
