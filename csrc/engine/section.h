// The integer program as bytes, checked and built. pyquant/ops/section.py writes them and says how they lie.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/section_reader.h"

namespace pyquant {

// An input or output. `shape` leaves out the batch: codes are (H, W, C), floats are as torch has them.
struct Port {
  std::string name;
  bool is_float;
  std::vector<int64_t> shape;
};

struct Program {
  explicit Program(const std::string& isa) : engine(isa) {}
  Engine engine;
  std::vector<Port> inputs, outputs;
};

// Takes the section and the data that its tensors are in; both may go when this returns. Throws ProgramError if they are
// altered or make no safe program, std::invalid_argument if this machine lacks `isa`, and std::bad_alloc.
std::unique_ptr<Program> load_section(Bytes section, Bytes data, const std::string& isa);

// Whether these bytes, 16 at least, have a section's last ones at their end.
bool ends_a_section(Bytes bytes);

}  // namespace pyquant
