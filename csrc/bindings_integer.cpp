// Python names for the engine of integer programs. Tensors come as addresses and sizes, checked by the Python side.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/isa.h"
#include "engine/engine.h"
#include "engine/linear_w4.h"

namespace py = pybind11;
using namespace py::literals;

namespace pyquant {
namespace {

using Pair = std::pair<int64_t, int64_t>;
using Four = std::tuple<int64_t, int64_t, int64_t, int64_t>;

template <typename T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void add_convolution(Engine& engine, int x, int y, int residual, uintptr_t weight, const Four& weight_shape,
                     uintptr_t multiplier, uintptr_t bias, Pair stride, const Four& padding, Pair dilation,
                     int64_t groups, int x_zero, int y_zero, int low, int high, int residual_zero,
                     float residual_scale) {
  ConvolutionSpec spec{};
  spec.x = x;
  spec.y = y;
  spec.residual = residual;
  std::tie(spec.outputs, spec.kernel_height, spec.kernel_width, spec.group_channels) = weight_shape;
  spec.groups = groups;
  std::tie(spec.stride_height, spec.stride_width) = stride;
  std::tie(spec.dilation_height, spec.dilation_width) = dilation;
  std::tie(spec.top, spec.left, spec.bottom, spec.right) = padding;
  spec.weight = at<const int8_t>(weight);
  spec.multiplier = at<const float>(multiplier);
  spec.bias = at<const float>(bias);
  spec.x_zero = x_zero;
  spec.y_zero = y_zero;
  spec.low = low;
  spec.high = high;
  spec.residual_zero = residual_zero;
  spec.residual_scale = residual_scale;
  engine.convolution(spec);
}

void run(const Engine& engine, const std::vector<uintptr_t>& inputs, const std::vector<uintptr_t>& outputs,
         int64_t batch, int threads) {
  std::vector<const void*> in;
  std::vector<void*> out;
  for (uintptr_t address : inputs) in.push_back(at<const void>(address));
  for (uintptr_t address : outputs) out.push_back(at<void>(address));
  py::gil_scoped_release release;
  engine.run(in, out, batch, threads);
}

}  // namespace

void bind_integer(py::module_& m) {
  m.def("available_isas", &available_isas, "Instruction sets of this machine that kernels exist for, best first.");
  py::class_<Engine>(m, "Engine", "An integer program: built once, sealed, then run in one call a batch.")
      .def(py::init<const std::string&>(), "isa"_a = "auto")
      .def_property_readonly("isa", &Engine::isa)
      .def(
          "value",
          [](Engine& e, bool is_float, bool channels_first, int64_t height, int64_t width, int64_t channels) {
            return e.value(is_float, channels_first, {height, width, channels});
          },
          "is_float"_a, "channels_first"_a, "height"_a, "width"_a, "channels"_a, "Declare a value; returns its index.")
      .def("convolution", &add_convolution, "x"_a, "y"_a, "residual"_a, "weight"_a, "weight_shape"_a, "multiplier"_a,
           "bias"_a, "stride"_a, "padding"_a, "dilation"_a, "groups"_a, "x_zero"_a, "y_zero"_a, "low"_a, "high"_a,
           "residual_zero"_a, "residual_scale"_a,
           "weight: address of int8 [N, KH, KW, C / groups], less its zero points; multiplier, bias: float32 [N].")
      .def(
          "quantize",
          [](Engine& e, int x, int y, float scale, int zero, int low, int high) {
            e.step(make_quantize(x, y, scale, zero, low, high));
          },
          "x"_a, "y"_a, "scale"_a, "zero_point"_a, "low"_a, "high"_a)
      .def(
          "dequantize",
          [](Engine& e, int x, int y, float scale, int zero) { e.step(make_dequantize(x, y, scale, zero)); }, "x"_a,
          "y"_a, "scale"_a, "zero_point"_a)
      .def(
          "add",
          [](Engine& e, int a, int b, int y, int a_zero, float a_scale, int b_zero, float b_scale, int y_zero, int low,
             int high) { e.step(make_add(a, b, y, a_zero, a_scale, b_zero, b_scale, y_zero, low, high)); },
          "a"_a, "b"_a, "y"_a, "a_zero"_a, "a_scale"_a, "b_zero"_a, "b_scale"_a, "y_zero"_a, "low"_a, "high"_a)
      .def(
          "avg_pool",
          [](Engine& e, int x, int y, Pair window, Pair stride, int x_zero, float multiplier, int y_zero, int low,
             int high) {
            e.step(make_average_pool(x, y, {window.first, window.second, stride.first, stride.second, 0, 0}, x_zero,
                                     multiplier, y_zero, low, high));
          },
          "x"_a, "y"_a, "window"_a, "stride"_a, "x_zero"_a, "multiplier"_a, "y_zero"_a, "low"_a, "high"_a)
      .def(
          "max_pool",
          [](Engine& e, int x, int y, Pair window, Pair stride, int64_t top, int64_t left) {
            e.step(make_max_pool(x, y, {window.first, window.second, stride.first, stride.second, top, left}));
          },
          "x"_a, "y"_a, "window"_a, "stride"_a, "top"_a, "left"_a)
      .def(
          "lookup",
          [](Engine& e, int x, int y, uintptr_t table) { e.step(make_lookup(x, y, at<const uint8_t>(table))); }, "x"_a,
          "y"_a, "table"_a, "table: address of 256 codes.")
      .def("flatten", &Engine::flatten, "x"_a, "y"_a)
      .def("seal", &Engine::seal, "inputs"_a, "outputs"_a)
      .def("run", &run, "inputs"_a, "outputs"_a, "batch"_a, "threads"_a,
           "Addresses of contiguous tensors; codes and output floats are [B, H, W, C]. Releases the GIL.");
  py::class_<LinearW4>(m, "LinearW4", "A linear layer with 4-bit weights, packed once.")
      .def(py::init([](uintptr_t codes, uintptr_t zero, uintptr_t scale, int64_t outputs, int64_t length,
                       int64_t group_size, const std::string& isa) {
             return std::make_unique<LinearW4>(at<const int8_t>(codes), at<const int32_t>(zero), at<const float>(scale),
                                               outputs, length, group_size, isa);
           }),
           "codes"_a, "zero"_a, "scale"_a, "outputs"_a, "length"_a, "group_size"_a, "isa"_a = "auto",
           "codes: int8 [N, K] of -8..7; zero: int32, scale: float32 [N, K / group_size].")
      .def(
          "run",
          [](const LinearW4& layer, uintptr_t x, uintptr_t x_zero, uintptr_t x_scale, uintptr_t y, int64_t rows,
             int threads) {
            layer.run(at<const uint8_t>(x), at<const int32_t>(x_zero), at<const float>(x_scale), at<float>(y), rows,
                      threads);
          },
          "x"_a, "x_zero"_a, "x_scale"_a, "y"_a, "rows"_a, "threads"_a, py::call_guard<py::gil_scoped_release>(),
          "x: uint8 [M, K]; x_zero: int32 [M]; x_scale: float32 [M]; y: float32 [M, N]. Releases the GIL.");
}

}  // namespace pyquant
