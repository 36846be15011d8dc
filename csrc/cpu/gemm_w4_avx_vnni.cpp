// The low-bit matrix product compiled for the instruction set in this file's name; setup.py gives the flags.
#if defined(__x86_64__)
#include "cpu/gemm_w4.h"

#if defined(__AVXVNNI__)
#include "cpu/low_bit_avx2.h"
// LowBit comes first: the kernels below are written in terms of it.
#include "cpu/gemm_w4_panels.h"
#include "cpu/quantize_row.h"

namespace pyquant {

const GemmW4Kernels& gemm_w4_avx_vnni() {
  static const GemmW4Kernels table = {kTilePanels, gemm_w4<PlainRows>, quantize_row};
  return table;
}

}  // namespace pyquant
#else
namespace pyquant {

const GemmW4Kernels& gemm_w4_avx_vnni() { return gemm_w4_avx2(); }

}  // namespace pyquant
#endif
#endif
