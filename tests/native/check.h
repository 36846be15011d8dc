// What the native tests share: a check that ends the process, files, and a loaded program with its inputs and outputs.
#pragma once
#include <pyquant.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#define CHECK(condition)                                                           \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                \
    }                                                                              \
  } while (false)

using Buffer = std::vector<uint8_t>;

inline Buffer read_file(const char* path) {
  std::FILE* file = std::fopen(path, "rb");
  CHECK(file != nullptr);
  Buffer bytes;
  for (int byte; (byte = std::fgetc(file)) != EOF;) bytes.push_back(static_cast<uint8_t>(byte));
  std::fclose(file);
  return bytes;
}

struct Free {
  void operator()(pq_program* program) const { pq_free(program); }
};
using Loaded = std::unique_ptr<pq_program, Free>;

// Memory of exactly the size that inputs or outputs take, so that a sanitizer sees a byte too many.
struct Tensors {
  std::vector<Buffer> bytes;
  std::vector<void*> pointers;

  template <typename Describe>
  Tensors(const pq_program* program, int count, const Describe& describe, int64_t batch) {
    for (int i = 0; i < count; ++i) {
      pq_tensor tensor;
      CHECK(describe(program, i, &tensor) == PQ_OK);
      bytes.emplace_back(static_cast<size_t>(batch * tensor.elements * (tensor.dtype == PQ_FLOAT32 ? 4 : 1)), 77);
    }
    for (Buffer& one : bytes) pointers.push_back(one.data());
  }
};

inline Tensors inputs_of(const pq_program* program, int64_t batch, uint32_t seed = 1) {
  Tensors inputs(program, pq_input_count(program), pq_input, batch);
  std::mt19937 random(seed);
  for (int i = 0; i < pq_input_count(program); ++i) {
    pq_tensor tensor;
    CHECK(pq_input(program, i, &tensor) == PQ_OK);
    Buffer& bytes = inputs.bytes[static_cast<size_t>(i)];
    if (tensor.dtype == PQ_UINT8) {
      for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
    } else {
      for (size_t at = 0; at < bytes.size(); at += 4) {
        const float number = static_cast<float>(random() % 4001) / 1000.0f - 2.0f;
        std::memcpy(bytes.data() + at, &number, 4);
      }
    }
  }
  return inputs;
}

inline Tensors outputs_of(const pq_program* program, int64_t batch) {
  return Tensors(program, pq_output_count(program), pq_output, batch);
}

inline pq_status run(const pq_program* program, int64_t batch, const Tensors& in, Tensors& out, int threads) {
  return pq_run(program, batch, in.pointers.data(), out.pointers.data(), threads);
}

inline Loaded load(const char* path) {
  pq_program* program;
  if (pq_load(path, nullptr, &program) != PQ_OK) std::fprintf(stderr, "%s: %s\n", path, pq_last_error());
  CHECK(program != nullptr);
  return Loaded(program);
}
