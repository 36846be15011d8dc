// Python names for the engine of integer programs. Tensors come as addresses and sizes, checked by the Python side.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string_view>

#include "cpu/isa.h"
#include "engine/section.h"

namespace py = pybind11;
using namespace py::literals;

namespace pyquant {
namespace {

template <typename T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

std::unique_ptr<Program> load(const std::string_view section, const py::buffer& data, const std::string& isa) {
  const py::buffer_info bytes = data.request();
  return load_section({reinterpret_cast<const uint8_t*>(section.data()), section.size()},
                      {static_cast<const uint8_t*>(bytes.ptr), static_cast<size_t>(bytes.size * bytes.itemsize)}, isa);
}

void run(const Program& program, const std::vector<uintptr_t>& inputs, const std::vector<uintptr_t>& outputs,
         int64_t batch, int threads, int64_t* nanoseconds) {
  std::vector<const void*> in;
  std::vector<void*> out;
  for (uintptr_t address : inputs) in.push_back(at<const void>(address));
  for (uintptr_t address : outputs) out.push_back(at<void>(address));
  py::gil_scoped_release release;
  program.engine.run(in.data(), out.data(), batch, threads, nanoseconds);
}

std::vector<int64_t> run_timed(const Program& program, const std::vector<uintptr_t>& inputs,
                               const std::vector<uintptr_t>& outputs, int64_t batch, int threads) {
  std::vector<int64_t> nanoseconds(program.engine.values(), 0);
  run(program, inputs, outputs, batch, threads, nanoseconds.data());
  return nanoseconds;
}

}  // namespace

void bind_integer(py::module_& m) {
  m.def("available_isas", &available_isas, "Instruction sets of this machine that kernels exist for, best first.");
  py::class_<Program>(m, "Engine", "An integer program, loaded once, then run in one call a batch.")
      .def(py::init(&load), "section"_a, "data"_a, "isa"_a = "auto",
           "Load what pyquant.ops.section wrote. Raises ValueError for bytes that make no program and for an unknown isa.")
      .def_property_readonly("isa", [](const Program& program) { return program.engine.isa(); })
      .def(
          "run",
          [](const Program& program, const std::vector<uintptr_t>& inputs, const std::vector<uintptr_t>& outputs,
             int64_t batch, int threads) { run(program, inputs, outputs, batch, threads, nullptr); },
          "inputs"_a, "outputs"_a, "batch"_a, "threads"_a,
          "Addresses of contiguous tensors, codes [B, H, W, C] and floats in torch's layout. Releases the GIL.")
      .def("run_timed", &run_timed, "inputs"_a, "outputs"_a, "batch"_a, "threads"_a,
           "The same, for one image or one thread; returns nanoseconds: of each input (0), then of each op, in their order. "
           "Raises ValueError for other runs.");
}

}  // namespace pyquant
