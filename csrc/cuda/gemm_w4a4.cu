// gemm_w4a4: 4-bit activations times 4-bit weights on int4 tensor cores (mma.m16n8k64.s4), to float32. sm_80 to sm_89 only:
// what came later has no int4 tensor cores, and its assembler writes some 200 instructions for each of these.
//
// Codes go from memory to the tensor cores as they are stored. With one scale a row, the main loop is that of gemm_s8 at twice
// the K. With groups, each group's sums become floats on the ordinary cores, in three instructions a result: sums begin in the
// last bits of a float, so a subtraction makes them floats without a conversion; then a product and an addition, rounded
// each by itself. For groups of 128 that is 192 to 32 of the tensor cores: by the tables of rates half as long again on an
// A100, and less than half as long where float32 is twice as fast and int4 half (RTX 3090, A40).
#include "scaled_codes.cuh"

// The entries. The grid of blocks: see pyquant::Tile.
//   x: [m, row_bytes] bytes, two codes each, low nibble first; row_bytes a multiple of 16, so that zeros fill up the rows
//   w: [n, row_bytes] bytes of signed codes; past the last code, zero points, which add nothing
//   the grids: see pyquant::Grids; a group has 32, 64 or 128 codes, as the name says, or is the row
//   y: [m, n] float32; all pointers aligned to 16 bytes
#define PYQUANT_GEMM_W4A4(name, is_signed, halves, group, ...)                                                        \
  extern "C" __global__ void __launch_bounds__(pyquant::Tile<__VA_ARGS__>::kThreads, 1) gemm_w4a4_##name(             \
      const uint8_t* __restrict__ x, const uint8_t* __restrict__ w, const float* __restrict__ scale,                  \
      const int* __restrict__ zero, const int* __restrict__ sums, const float* __restrict__ x_scale,                  \
      const int* __restrict__ x_zero, float* __restrict__ y, int m, int n, int row_bytes, int groups) {               \
    pyquant::ScaledCodes<pyquant::Tile<__VA_ARGS__>, pyquant::Nibbles<is_signed, halves>, group>().run(               \
        x, w, {scale, zero, sums, x_scale, x_zero, groups}, y, m, n, row_bytes, row_bytes, 0);                        \
  }

PYQUANT_GEMM_W4A4(signed_row_128x128, true, false, pyquant::kWholeRow, 2, 2, 4, 8, 3)
PYQUANT_GEMM_W4A4(unsigned_row_128x128, false, false, pyquant::kWholeRow, 2, 2, 4, 8, 3)
PYQUANT_GEMM_W4A4(signed_row_64x64, true, false, pyquant::kWholeRow, 2, 2, 2, 4, 4)
PYQUANT_GEMM_W4A4(unsigned_row_64x64, false, false, pyquant::kWholeRow, 2, 2, 2, 4, 4)
PYQUANT_GEMM_W4A4(signed_row_16x128, true, false, pyquant::kWholeRow, 1, 4, 1, 4, 4)
PYQUANT_GEMM_W4A4(unsigned_row_16x128, false, false, pyquant::kWholeRow, 1, 4, 1, 4, 4)
PYQUANT_GEMM_W4A4(signed_group128_64x128, true, false, 2, 1, 4, 4, 4, 4)
PYQUANT_GEMM_W4A4(unsigned_group128_64x128, false, false, 2, 1, 4, 4, 4, 4)
PYQUANT_GEMM_W4A4(signed_group128_16x128, true, false, 2, 1, 4, 1, 4, 4)
PYQUANT_GEMM_W4A4(unsigned_group128_16x128, false, false, 2, 1, 4, 1, 4, 4)
PYQUANT_GEMM_W4A4(signed_group64_64x128, true, false, 1, 1, 4, 4, 4, 4)
PYQUANT_GEMM_W4A4(unsigned_group64_64x128, false, false, 1, 1, 4, 4, 4, 4)
PYQUANT_GEMM_W4A4(signed_group64_16x128, true, false, 1, 1, 4, 1, 4, 4)
PYQUANT_GEMM_W4A4(unsigned_group64_16x128, false, false, 1, 1, 4, 1, 4, 4)
PYQUANT_GEMM_W4A4(signed_group32_64x128, true, true, 1, 1, 4, 4, 4, 4)
PYQUANT_GEMM_W4A4(unsigned_group32_64x128, false, true, 1, 1, 4, 4, 4, 4)
PYQUANT_GEMM_W4A4(signed_group32_16x128, true, true, 1, 1, 4, 1, 4, 4)
PYQUANT_GEMM_W4A4(unsigned_group32_16x128, false, true, 1, 1, 4, 1, 4, 4)
#undef PYQUANT_GEMM_W4A4
