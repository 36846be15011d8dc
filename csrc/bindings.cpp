// Python names for the kernels. No logic: arguments in, one call, out.
#include <pybind11/pybind11.h>

PYBIND11_MODULE(_C, m) { m.doc() = "pyquant's C++ kernels and engine"; }
