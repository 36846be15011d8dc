// The kernels compiled for the instruction set in this file's name; setup.py gives the flags.
#if defined(__x86_64__)
#include "cpu/lanes_avx512.h"
// Lanes comes first: the kernels below are written in terms of it.
#include "cpu/block_avx512.h"
#include "cpu/conv_avx512.h"
#include "cpu/depthwise_band.h"
#include "cpu/elementwise.h"

namespace pyquant {

const Kernels& kernels_avx512() {
  static const Kernels table = {
      0,   kTileHeight,  conv_avx512, Block::kPieces, Block::kColumnBytes, depthwise,
      add, average_pool, max_pool,    lookup,         quantize,            quantize_three, dequantize};
  return table;
}

}  // namespace pyquant
#endif
