// Convolutions on AMX tiles; everything else is AVX-512's.
#if defined(__x86_64__)
#include "cpu/kernels.h"

#if defined(__AMX_INT8__)
#include "cpu/lanes_avx512.h"
// Lanes comes first: the kernels below are written in terms of it.
#include "cpu/conv_amx.h"

namespace pyquant {

const Kernels* kernels_amx() {
  static const Kernels table = [] {
    Kernels kernels = kernels_avx512();
    kernels.chunk_steps = kTileRows;
    kernels.group_pixels = 2 * kTileRows;
    kernels.conv = conv_amx;
    return kernels;
  }();
  return &table;
}

}  // namespace pyquant
#else
namespace pyquant {

const Kernels* kernels_amx() { return nullptr; }

}  // namespace pyquant
#endif
#endif
