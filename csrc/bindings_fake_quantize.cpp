// Python names for the fake-quantize kernels. Tensors come as addresses; pyquant/ops/fake_quantize.py has checked them.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "cpu/adaquant_step.h"
#include "cpu/fake_quantize.h"
#include "cpu/isa.h"
#include "cpu/result_memory.h"

namespace py = pybind11;

namespace pyquant {
namespace {

FloatType float_type(const std::string& name) {
  if (name == "float32") return FloatType::f32;
  if (name == "bfloat16") return FloatType::bf16;
  if (name == "float16") return FloatType::f16;
  throw std::invalid_argument("dtype " + name + " has no kernel; use float32, bfloat16 or float16");
}

FakeQuantizeIsa isa_of(const std::string& name) {
  if (name == "avx_vnni") {
    // There is no dot product here: AVX2's kernels, where this machine has AVX-VNNI.
    for (const std::string& one : available_isas())
      if (one == name) return FakeQuantizeIsa::avx2;
  }
  const FakeQuantizeIsa all[] = {FakeQuantizeIsa::avx512, FakeQuantizeIsa::avx2, FakeQuantizeIsa::portable};
  const char* names[] = {"avx512", "avx2", "portable"};
  for (int i = 0; i < 3; ++i)
    if ((name == "best" || name == names[i]) && fake_quantize_has(all[i])) return all[i];
  throw std::invalid_argument("instruction set " + name + " is not here; use best, avx512, avx_vnni, avx2 or portable");
}

template <class T>
T* address(uintptr_t p) {
  return reinterpret_cast<T*>(p);
}

GridLayout layout(uintptr_t scale, uintptr_t zero_point, int64_t outer, int64_t channels, int64_t inner, float qmin, float qmax) {
  return {address<const float>(scale), address<const float>(zero_point), outer, channels, inner, qmin, qmax};
}

// A block of result memory, given back when the last tensor over it is gone.
class ResultMemory {
 public:
  explicit ResultMemory(size_t bytes) : memory_(take_block(bytes)), bytes_(bytes) {}
  ~ResultMemory() { give_block(memory_, bytes_); }
  ResultMemory(const ResultMemory&) = delete;
  ResultMemory& operator=(const ResultMemory&) = delete;
  py::buffer_info buffer() const { return py::buffer_info(static_cast<uint8_t*>(memory_), static_cast<py::ssize_t>(bytes_)); }

 private:
  void* memory_;
  size_t bytes_;
};

}  // namespace

void bind_fake_quantize(py::module_& m) {
  py::class_<ResultMemory>(m, "ResultMemory", py::buffer_protocol(), "A buffer for a big result, out of those freed before.")
      .def(py::init<size_t>(), py::arg("bytes"))
      .def_buffer(&ResultMemory::buffer);
  m.def("kept_bytes", &kept_bytes, "Bytes of freed result memory that wait for the next result of their size.");
  m.def(
      "fake_quantize",
      [](const std::string& dtype, uintptr_t x, uintptr_t y, uintptr_t scale, uintptr_t zero_point, int64_t outer, int64_t channels,
         int64_t inner, float qmin, float qmax, int threads, const std::string& isa) {
        const FloatType type = float_type(dtype);
        const FakeQuantizeIsa chosen = isa_of(isa);
        py::gil_scoped_release release;
        fake_quantize_forward(type, address<const void>(x), address<void>(y),
                              layout(scale, zero_point, outer, channels, inner, qmin, qmax), chosen, threads);
      },
      "y = dequantize(quantize(x)) over (outer, channels, inner).", py::arg("dtype"), py::arg("x"), py::arg("y"), py::arg("scale"),
      py::arg("zero_point"), py::arg("outer"), py::arg("channels"), py::arg("inner"), py::arg("qmin"), py::arg("qmax"),
      py::arg("threads"), py::arg("isa") = "best");
  m.def(
      "fake_quantize_backward",
      [](const std::string& dtype, uintptr_t dy, uintptr_t x, uintptr_t dx, uintptr_t dscale, uintptr_t dzero, uintptr_t scale,
         uintptr_t zero_point, int64_t outer, int64_t channels, int64_t inner, float qmin, float qmax, int threads,
         const std::string& isa) {
        const FloatType type = float_type(dtype);
        const FakeQuantizeIsa chosen = isa_of(isa);
        py::gil_scoped_release release;
        fake_quantize_backward(type, address<const void>(dy), address<const void>(x), address<void>(dx), address<float>(dscale),
                               address<float>(dzero), layout(scale, zero_point, outer, channels, inner, qmin, qmax), chosen, threads);
      },
      "dx, and unless their addresses are 0 the float32 sums dscale and dzero, one a channel.", py::arg("dtype"), py::arg("dy"),
      py::arg("x"), py::arg("dx"), py::arg("dscale"), py::arg("dzero"), py::arg("scale"), py::arg("zero_point"), py::arg("outer"),
      py::arg("channels"), py::arg("inner"), py::arg("qmin"), py::arg("qmax"), py::arg("threads"), py::arg("isa") = "best");
  m.def(
      "fake_quantize_masks",
      [](int64_t outer, int64_t channels, int64_t inner) {
        return fake_quantize_masks(layout(0, 0, outer, channels, inner, 0.0f, 0.0f));
      },
      "Whether fake_quantize_masked serves the layout.", py::arg("outer"), py::arg("channels"), py::arg("inner"));
  m.def(
      "fake_quantize_masked",
      [](const std::string& dtype, uintptr_t x, uintptr_t y, uintptr_t inside, uintptr_t scale, uintptr_t zero_point, int64_t outer,
         int64_t channels, int64_t inner, float qmin, float qmax, int threads, const std::string& isa) {
        const FloatType type = float_type(dtype);
        const FakeQuantizeIsa chosen = isa_of(isa);
        py::gil_scoped_release release;
        fake_quantize_forward_masked(type, address<const void>(x), address<void>(y), address<uint32_t>(inside),
                                     layout(scale, zero_point, outer, channels, inner, qmin, qmax), chosen, threads);
      },
      "As fake_quantize, and one bit an element whether it was in range, 32 in a word.", py::arg("dtype"), py::arg("x"), py::arg("y"),
      py::arg("inside"), py::arg("scale"), py::arg("zero_point"), py::arg("outer"), py::arg("channels"), py::arg("inner"),
      py::arg("qmin"), py::arg("qmax"), py::arg("threads"), py::arg("isa") = "best");
  m.def(
      "keep_inside",
      [](const std::string& dtype, uintptr_t dy, uintptr_t inside, uintptr_t dx, int64_t count, int threads, const std::string& isa) {
        const FloatType type = float_type(dtype);
        const FakeQuantizeIsa chosen = isa_of(isa);
        py::gil_scoped_release release;
        keep_inside(type, address<const void>(dy), address<const uint32_t>(inside), address<void>(dx), count, chosen, threads);
      },
      "dx = dy where the bit of fake_quantize_masked is set, else 0; any instruction set reads another's bits.", py::arg("dtype"),
      py::arg("dy"), py::arg("inside"), py::arg("dx"), py::arg("count"), py::arg("threads"), py::arg("isa") = "best");
  m.def(
      "quantize",
      [](const std::string& dtype, uintptr_t x, uintptr_t codes, uintptr_t scale, uintptr_t zero_point, int64_t outer, int64_t channels,
         int64_t inner, float qmin, float qmax, int threads, const std::string& isa) {
        const FloatType type = float_type(dtype);
        const FakeQuantizeIsa chosen = isa_of(isa);
        py::gil_scoped_release release;
        quantize_codes(type, address<const void>(x), address<uint8_t>(codes),
                       layout(scale, zero_point, outer, channels, inner, qmin, qmax), chosen, threads);
      },
      "Codes of x, one byte each.", py::arg("dtype"), py::arg("x"), py::arg("codes"), py::arg("scale"), py::arg("zero_point"),
      py::arg("outer"), py::arg("channels"), py::arg("inner"), py::arg("qmin"), py::arg("qmax"), py::arg("threads"),
      py::arg("isa") = "best");
  m.def(
      "adaquant_step",
      [](uintptr_t gradient, uintptr_t position, uintptr_t first, uintptr_t second, uintptr_t log_scale, uintptr_t scale_first,
         uintptr_t scale_second, uintptr_t start, uintptr_t zero_point, uintptr_t weight, int64_t rows, int64_t n, float qmin,
         float qmax, float first_share, float second_share, float debias, float weight_rate, float scale_rate, int threads,
         const std::string& isa) {
        const FakeQuantizeIsa chosen = isa_of(isa);
        const LearnedRows learned{address<float>(position), address<float>(first), address<float>(second), address<float>(log_scale),
                                  address<float>(scale_first), address<float>(scale_second), address<const float>(start),
                                  address<const float>(zero_point), rows, n, qmin, qmax};
        py::gil_scoped_release release;
        adaquant_step(learned, address<const float>(gradient), address<float>(weight),
                      {first_share, second_share, debias, weight_rate, scale_rate}, chosen, threads);
      },
      "One AdaQuant iteration over rows of float32 [rows][n]; moves the learned state, writes weight.", py::arg("gradient"),
      py::arg("position"), py::arg("first"), py::arg("second"), py::arg("log_scale"), py::arg("scale_first"), py::arg("scale_second"),
      py::arg("start"), py::arg("zero_point"), py::arg("weight"), py::arg("rows"), py::arg("n"), py::arg("qmin"), py::arg("qmax"),
      py::arg("first_share"), py::arg("second_share"), py::arg("debias"), py::arg("weight_rate"), py::arg("scale_rate"),
      py::arg("threads"), py::arg("isa") = "best");
}

}  // namespace pyquant
