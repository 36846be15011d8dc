// The low-bit matrix product on AMX tiles, and for few rows on AVX-512; setup.py gives the flags.
#if defined(__x86_64__)
#include "cpu/gemm_w4.h"

#if defined(__AMX_INT8__)
#include "cpu/low_bit_avx512.h"
// LowBit comes first: the kernels below are written in terms of it.
#include "cpu/gemm_w4_amx.h"
#include "cpu/quantize_row.h"

namespace pyquant {

const GemmW4Kernels& gemm_w4_amx() {
  static const GemmW4Kernels table = {kTilePanels, gemm_w4<AmxRows>, quantize_row};
  return table;
}

}  // namespace pyquant
#else
namespace pyquant {

const GemmW4Kernels& gemm_w4_amx() { return gemm_w4_avx512(); }

}  // namespace pyquant
#endif
#endif
