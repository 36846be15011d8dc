// Python names for the kernels. No logic: arguments in, one call, out.
#include <pybind11/pybind11.h>

namespace pyquant {
void bind_integer(pybind11::module_& m);
void bind_linear_w4(pybind11::module_& m);
void bind_fake_quantize(pybind11::module_& m);
}  // namespace pyquant

PYBIND11_MODULE(_C, m) {
  m.doc() = "pyquant's C++ kernels and engine";
  pyquant::bind_integer(m);
  pyquant::bind_linear_w4(m);
  pyquant::bind_fake_quantize(m);
}
