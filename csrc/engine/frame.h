// Values and steps of the integer program, as the engine sees them.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/threads.h"

namespace pyquant {

// Codes are [H][W][C] bytes, floats [H][W][C] (or, for an image in the caller's memory, [C][H][W]).
struct Shape {
  int64_t height, width, channels;
  int64_t pixels() const { return height * width; }
  int64_t elements() const { return height * width * channels; }
};

// A value lives in the arena inside a halo of `halo_code`, as wide as its consumers' padding asks for, so that no
// kernel ever has to ask whether it is at an edge. The producer's step fills the halo anew in every run.
struct Value {
  bool is_float = false;
  bool channels_first = false;  // in the caller's memory, that is
  Shape shape{};
  int64_t top = 0, left = 0, bottom = 0, right = 0;
  int halo_code = -1;  // -1: no halo
  int alias = -1;      // the value whose bytes these are (flatten), or -1
  int64_t image_stride = 0, row_stride = 0, pixel_stride = 0, origin = 0;  // bytes
  int64_t arena_offset = 0;  // bytes: for each image of the batch, or among the values of its stage
  bool in_stage = false;     // lives while one stage runs
  bool outside = false;  // lives in the caller's memory, which has no halo and no slack
};

// Where a value's pixel (0, 0) of image 0 is in this run.
struct Buffer {
  uint8_t* origin;
  int64_t image_stride, row_stride, pixel_stride;
  uint8_t* at(int64_t image, int64_t row, int64_t column) const {
    return origin + image * image_stride + row * row_stride + column * pixel_stride;
  }
};

// One run: everything that a step may look at.
struct Frame {
  const std::vector<Value>& values;
  const Buffer* buffers;
  const Kernels& kernels;
  int64_t batch;
  int threads;
  uint8_t* scratch;
  int64_t scratch_stride;

  // Step::scratch_bytes() of memory that no other part at work uses, on a 64-byte boundary.
  uint8_t* scratch_of_part() const { return scratch + current_part() * scratch_stride; }
};

class Step {
 public:
  virtual ~Step() = default;
  virtual void run(const Frame& frame) const = 0;
  // Called once, when strides are known.
  virtual void prepare(const std::vector<Value>&) {}
  // What each thread needs for itself while the step runs; asked for once, when the step is prepared.
  virtual int64_t scratch_bytes() const { return 0; }
  // True if no byte behind the end of `value` is ever read: then it may stay in the caller's memory.
  virtual bool reads_exactly(int) const { return false; }
  std::vector<int> inputs;
  int output = -1;
};

}  // namespace pyquant
