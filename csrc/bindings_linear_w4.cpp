// Python names for linear layers with low-bit weights. Tensors come as addresses and sizes, checked by the Python side.
#include <pybind11/pybind11.h>

#include <memory>
#include <string>

#include "engine/linear_w4.h"

namespace py = pybind11;
using namespace py::literals;

namespace pyquant {
namespace {

template <typename T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// In the order of pyquant/ops/quantize_rows.py's FLOATS.
FloatType float_type(int index) { return static_cast<FloatType>(index); }

}  // namespace

void bind_linear_w4(py::module_& m) {
  py::class_<LinearW4>(m, "LinearW4", "A linear layer with weights of 2, 3 or 4 bits, packed once.")
      .def(py::init([](uintptr_t words, uintptr_t zero, uintptr_t scale, int64_t outputs, int64_t length,
                       int64_t group_size, int bits, bool is_signed, const std::string& isa) {
             const LowBitWeights weights = {at<const uint32_t>(words), at<const int32_t>(zero), at<const float>(scale),
                                            outputs,                   length,                  group_size,
                                            bits,                      is_signed};
             return std::make_unique<LinearW4>(weights, isa);
           }),
           "words"_a, "zero"_a, "scale"_a, "outputs"_a, "length"_a, "group_size"_a, "bits"_a, "is_signed"_a,
           "isa"_a = "auto",
           "words: int32 [N, ceil(K * bits / 32)], low code first; zero: int32, scale: float32 [N, K / group_size].")
      .def(
          "run_codes",
          [](const LinearW4& layer, uintptr_t x, uintptr_t x_zero, uintptr_t x_scale, int bits, bool is_signed,
             uintptr_t y, int64_t rows, int threads) {
            const ActivationCodes codes = {at<const void>(x), at<const int32_t>(x_zero), at<const float>(x_scale), bits,
                                           is_signed};
            layer.run(codes, at<float>(y), rows, threads);
          },
          "x"_a, "x_zero"_a, "x_scale"_a, "bits"_a, "is_signed"_a, "y"_a, "rows"_a, "threads"_a,
          py::call_guard<py::gil_scoped_release>(),
          "x: bytes [M, K], or for 4 bits int32 words [M, ceil(K / 8)]; x_zero: int32 [M]; x_scale: float32 [M]; y: "
          "float32 [M, N]. Releases the GIL.")
      .def(
          "run",
          [](const LinearW4& layer, int type, uintptr_t x, uintptr_t y, int64_t rows, int threads) {
            layer.run(float_type(type), at<const void>(x), at<void>(y), rows, threads);
          },
          "type"_a, "x"_a, "y"_a, "rows"_a, "threads"_a, py::call_guard<py::gil_scoped_release>(),
          "type: 0 float32, 1 bfloat16, 2 float16; x: [M, K]; y: [M, N], both of that type. Releases the GIL.");
  m.def(
      "quantize_rows",
      [](int type, uintptr_t x, uintptr_t codes, uintptr_t scale, int64_t rows, int64_t length, const std::string& isa,
         int threads) {
        quantize_rows(float_type(type), at<const void>(x), at<int8_t>(codes), at<float>(scale), rows, length, isa,
                      threads);
      },
      "type"_a, "x"_a, "codes"_a, "scale"_a, "rows"_a, "length"_a, "isa"_a, "threads"_a,
      py::call_guard<py::gil_scoped_release>(), "codes: int8 [M, K]; scale: float32 [M].");
}

}  // namespace pyquant
