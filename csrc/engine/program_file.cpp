#include "engine/program_file.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>

namespace pyquant {
namespace {

struct Close {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

[[noreturn]] void unreadable(const std::string& path) {
  throw FileError("'" + path + "' cannot be read: " + std::strerror(errno));
}

std::vector<uint8_t> read_file(const std::string& path) {
  const std::unique_ptr<std::FILE, Close> file(std::fopen(path.c_str(), "rb"));
  if (file == nullptr) unreadable(path);
  std::vector<uint8_t> bytes;
  if (std::fseek(file.get(), 0, SEEK_END) == 0) {
    const long size = std::ftell(file.get());
    // A folder says it has the largest size there is.
    if (size > 0 && size < INT64_MAX) bytes.reserve(static_cast<size_t>(size));
    std::rewind(file.get());
  }
  uint8_t part[1 << 16];
  while (const size_t got = std::fread(part, 1, sizeof part, file.get())) bytes.insert(bytes.end(), part, part + got);
  if (std::ferror(file.get()) != 0) unreadable(path);
  return bytes;
}

}  // namespace

std::unique_ptr<Program> load_file_bytes(Bytes file, const std::string& isa) {
  constexpr size_t kHead = 8, kFoot = 16;
  if (file.size < kHead + kFoot || !ends_a_section(file)) {
    throw ProgramError(
        "this is no whole file of pyquant's, or one from before files held programs for C; in Python, load and save it "
        "again");
  }
  // safetensors: the length of a JSON header, that header, which nobody reads here, and the tensors' bytes.
  const uint64_t header = little_endian_64(file.data);
  const size_t section = little_endian_32(file.data + file.size - kFoot);
  const size_t rest = file.size - kHead;
  if (section > rest || header > rest - section) throw ProgramError("the file is truncated or altered; copy it again");
  const uint8_t* data = file.data + kHead + header;
  const size_t size = rest - section - static_cast<size_t>(header);
  return load_section({data + size, section}, {data, size}, isa);
}

std::unique_ptr<Program> load_file(const std::string& path, const std::string& isa) {
  const std::vector<uint8_t> bytes = read_file(path);
  return load_file_bytes({bytes.data(), bytes.size()}, isa);
}

}  // namespace pyquant
