// The integer program in a file that Python saved: a safetensors file whose last tensor is the program's section.
#pragma once
#include <memory>
#include <stdexcept>
#include <string>

#include "engine/section.h"

namespace pyquant {

// A file that cannot be read, in one sentence.
class FileError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Throw as load_section does; load_file also FileError.
std::unique_ptr<Program> load_file(const std::string& path, const std::string& isa);
std::unique_ptr<Program> load_file_bytes(Bytes file, const std::string& isa);

}  // namespace pyquant
