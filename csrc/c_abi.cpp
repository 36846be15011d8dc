// The C functions of pyquant.h around the engine: checks of arguments, and no exception gets out.
#include <cstdio>
#include <new>
#include <system_error>

#include "engine/program_file.h"
#include "include/pyquant.h"

struct pq_program {
  std::unique_ptr<pyquant::Program> loaded;
};

namespace {

// Times the 4 GiB that an image may take, it stays within 63 bits.
constexpr int64_t kLargestBatch = int64_t{1} << 30;

// Not a string: to say that memory ran out must not take any.
thread_local char last_error[1024] = "no call has failed yet";

pq_status fail(pq_status status, const char* what) {
  std::snprintf(last_error, sizeof last_error, "%s", what);
  return status;
}

// Runs `body`; turns what it throws into a status and the thread's last error.
template <typename Body>
pq_status guarded(const Body& body) {
  try {
    return body();
  } catch (const pyquant::ProgramError& error) {
    return fail(PQ_BAD_PROGRAM, error.what());
  } catch (const pyquant::FileError& error) {
    return fail(PQ_BAD_FILE, error.what());
  } catch (const std::invalid_argument& error) {
    return fail(PQ_BAD_ARGUMENT, error.what());
  } catch (const std::bad_alloc&) {
    return fail(PQ_NO_MEMORY, "there is not enough memory");
  } catch (const std::exception& error) {
    return fail(PQ_FAILED, error.what());
  } catch (...) {
    return fail(PQ_FAILED, "an error of an unknown kind");
  }
}

template <typename Load>
pq_status load(pq_program** program, const char* isa, const Load& body) {
  if (program == nullptr) return fail(PQ_BAD_ARGUMENT, "the address of the program is null");
  *program = nullptr;
  return guarded([&] {
    *program = new pq_program{body(isa != nullptr ? isa : "auto")};
    return PQ_OK;
  });
}

pq_status describe(const std::vector<pyquant::Port>& ports, int index, pq_tensor* tensor) {
  if (tensor == nullptr) return fail(PQ_BAD_ARGUMENT, "the address of the tensor is null");
  if (index < 0 || index >= static_cast<int>(ports.size())) {
    return fail(PQ_BAD_ARGUMENT, "the program has no input or output of that index");
  }
  const pyquant::Port& port = ports[static_cast<size_t>(index)];
  *tensor = {};
  tensor->name = port.name.c_str();
  tensor->dtype = port.is_float ? PQ_FLOAT32 : PQ_UINT8;
  tensor->rank = static_cast<int>(port.shape.size());
  tensor->layout = tensor->rank < 3 ? PQ_FLAT : port.is_float ? PQ_CHW : PQ_HWC;
  tensor->elements = 1;
  for (int i = 0; i < tensor->rank; ++i) {
    tensor->shape[i] = port.shape[static_cast<size_t>(i)];
    tensor->elements *= tensor->shape[i];
  }
  return PQ_OK;
}

bool any_null(const void* const* pointers, size_t count) {
  if (pointers == nullptr) return true;
  for (size_t i = 0; i < count; ++i) {
    if (pointers[i] == nullptr) return true;
  }
  return false;
}

}  // namespace

extern "C" {

int pq_abi_version(void) { return PQ_ABI_VERSION; }

const char* pq_version(void) { return PQ_RELEASE; }

const char* pq_last_error(void) { return last_error; }

pq_status pq_load(const char* path, const char* isa, pq_program** program) {
  if (path == nullptr) return fail(PQ_BAD_ARGUMENT, "the path is null");
  return load(program, isa, [&](const char* name) { return pyquant::load_file(path, name); });
}

pq_status pq_load_memory(const void* bytes, size_t size, const char* isa, pq_program** program) {
  if (bytes == nullptr) return fail(PQ_BAD_ARGUMENT, "the bytes of the file are null");
  return load(program, isa, [&](const char* name) {
    return pyquant::load_file_bytes({static_cast<const uint8_t*>(bytes), size}, name);
  });
}

void pq_free(pq_program* program) { delete program; }

const char* pq_isa(const pq_program* program) { return program != nullptr ? program->loaded->engine.isa() : ""; }

const char* pq_isas(void) {
  static char names[128];
  static const pq_status listed = guarded([] {
    std::string all;
    for (const std::string& name : pyquant::available_isas()) all += (all.empty() ? "" : ",") + name;
    std::snprintf(names, sizeof names, "%s", all.c_str());
    return PQ_OK;
  });
  (void)listed;
  return names;
}

int pq_input_count(const pq_program* program) {
  return program != nullptr ? static_cast<int>(program->loaded->inputs.size()) : 0;
}

int pq_output_count(const pq_program* program) {
  return program != nullptr ? static_cast<int>(program->loaded->outputs.size()) : 0;
}

pq_status pq_input(const pq_program* program, int index, pq_tensor* tensor) {
  if (program == nullptr) return fail(PQ_BAD_ARGUMENT, "the program is null");
  return describe(program->loaded->inputs, index, tensor);
}

pq_status pq_output(const pq_program* program, int index, pq_tensor* tensor) {
  if (program == nullptr) return fail(PQ_BAD_ARGUMENT, "the program is null");
  return describe(program->loaded->outputs, index, tensor);
}

int64_t pq_run_memory(const pq_program* program, int64_t batch, int threads) {
  const bool fits = batch > 0 && batch <= kLargestBatch && threads > 0;
  return program != nullptr && fits ? program->loaded->engine.memory(batch, threads) : 0;
}

pq_status pq_run(const pq_program* program, int64_t batch, const void* const* inputs, void* const* outputs,
                 int threads) {
  if (program == nullptr) return fail(PQ_BAD_ARGUMENT, "the program is null");
  const pyquant::Program& loaded = *program->loaded;
  if (batch < 1 || batch > kLargestBatch) return fail(PQ_BAD_ARGUMENT, "the batch is not a number from 1 to 2^30");
  if (threads < 1) return fail(PQ_BAD_ARGUMENT, "the threads are not a number from 1");
  if (any_null(inputs, loaded.inputs.size())) return fail(PQ_BAD_ARGUMENT, "an input is null");
  if (any_null(outputs, loaded.outputs.size())) return fail(PQ_BAD_ARGUMENT, "an output is null");
  return guarded([&] {
    loaded.engine.run(inputs, outputs, batch, threads);
    return PQ_OK;
  });
}

}  // extern "C"
