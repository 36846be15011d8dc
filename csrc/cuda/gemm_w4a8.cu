// gemm_w4a8: uint8 or int8 activations times 4-bit weights on int8 tensor cores (mma.m16n8k32), to float32.
//
// Weights travel as nibbles, half the bytes of int8, and become bytes in registers: NibblesOfW has the layout and the three
// instructions for eight codes. Few rows are bound by the bytes of w, and the flat tile reads them once; many rows are
// bound by the products, and with groups by the three instructions a result that each group's scale costs.
#include "scaled_codes.cuh"

// The entries. The grid of blocks: see pyquant::Tile.
//   x: [m, row_bytes] bytes, uint8 or int8; row_bytes a multiple of 16, so that zeros fill up the rows
//   w: [n, w_row_bytes] bytes, 32 codes to each 16 as NibblesOfW wants them; past the last code, zero points
//   the grids: see pyquant::Grids, with weights of 16 times the code; group_size: 32, 64 or 128; ignored if one a row
//   y: [m, n] float32; all pointers aligned to 16 bytes
#define PYQUANT_GEMM_W4A8(name, is_signed, group, ...)                                                                \
  extern "C" __global__ void __launch_bounds__(pyquant::Tile<__VA_ARGS__>::kThreads, 1) gemm_w4a8_##name(             \
      const uint8_t* __restrict__ x, const uint8_t* __restrict__ w, const float* __restrict__ scale,                  \
      const int* __restrict__ zero, const int* __restrict__ sums, const float* __restrict__ x_scale,                  \
      const int* __restrict__ x_zero, float* __restrict__ y, int m, int n, int row_bytes, int w_row_bytes,            \
      int groups, int group_size) {                                                                                   \
    pyquant::ScaledCodes<pyquant::Tile<__VA_ARGS__>, pyquant::NibblesOfW<is_signed>, group>().run(                    \
        x, w, {scale, zero, sums, x_scale, x_zero, groups}, y, m, n, row_bytes, w_row_bytes, group_size / 32);        \
  }

PYQUANT_GEMM_W4A8(signed_row_128x128, true, pyquant::kWholeRow, 2, 2, 4, 8, 3)
PYQUANT_GEMM_W4A8(unsigned_row_128x128, false, pyquant::kWholeRow, 2, 2, 4, 8, 3)
PYQUANT_GEMM_W4A8(signed_row_16x128, true, pyquant::kWholeRow, 1, 4, 1, 4, 4)
PYQUANT_GEMM_W4A8(unsigned_row_16x128, false, pyquant::kWholeRow, 1, 4, 1, 4, 4)
PYQUANT_GEMM_W4A8(signed_group_64x128, true, pyquant::kSaidAtLaunch, 1, 4, 4, 4, 4)
PYQUANT_GEMM_W4A8(unsigned_group_64x128, false, pyquant::kSaidAtLaunch, 1, 4, 4, 4, 4)
PYQUANT_GEMM_W4A8(signed_group_16x128, true, pyquant::kSaidAtLaunch, 1, 4, 1, 4, 4)
PYQUANT_GEMM_W4A8(unsigned_group_16x128, false, pyquant::kSaidAtLaunch, 1, 4, 1, 4, 4)
#undef PYQUANT_GEMM_W4A8
