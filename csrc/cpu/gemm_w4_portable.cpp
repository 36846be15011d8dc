// The low-bit matrix product compiled for the instruction set in this file's name; setup.py gives the flags.
#include "cpu/low_bit_portable.h"
// LowBit comes first: the kernels below are written in terms of it.
#include "cpu/gemm_w4_panels.h"
#include "cpu/quantize_row.h"

namespace pyquant {

const GemmW4Kernels& gemm_w4_portable() {
  static const GemmW4Kernels table = {kTilePanels, gemm_w4<PlainRows>, quantize_row};
  return table;
}

}  // namespace pyquant
