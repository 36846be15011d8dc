// The kernels compiled for the instruction set in this file's name; setup.py gives the flags.
#if defined(__x86_64__)
#include "cpu/lanes_avx2.h"
// Lanes comes first: the kernels below are written in terms of it.
#include "cpu/block_avx2.h"
#include "cpu/conv_tile.h"
#include "cpu/depthwise_band.h"
#include "cpu/elementwise.h"

namespace pyquant {

const Kernels& kernels_avx2() {
  static const Kernels table = {0,   1,            conv,     Block::kPieces, Block::kColumnBytes, depthwise,
                                add, average_pool, max_pool, lookup,         quantize,            quantize_three,
                                dequantize};
  return table;
}

}  // namespace pyquant
#endif
