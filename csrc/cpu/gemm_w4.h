// Matrix product with weights of 2, 3 or 4 bits: the arguments and the table of functions of each instruction set. No
// inline code lives here, because this header is read by files compiled with different flags.
//
// y = x_scale * sum_g (float(acc_g) * scale_g), g ascending, with acc_g = sum (x - x_zero)(w - w_zero) exact in int32.
// Weight codes are kept unsigned (a signed grid moved up by half its range) and activations signed, which is what the
// dot products of every instruction set want, so the product of the bare codes is corrected by
//   acc = sum x w - w_zero sum (x - x_zero) - x_zero sum w.
#pragma once
#include <cstdint>

#include "cpu/fake_quantize.h"
#include "cpu/isa.h"

namespace pyquant {

constexpr int kPanel = 16;        // output channels side by side: one lane each
constexpr int kBlock = 32;        // k that are packed together: every group is made of whole blocks
constexpr int64_t kChunk = 64;    // k of a row that lie together in RowCodes
constexpr int64_t kRowBlock = 128;  // rows that share one unpacking of the weights; their codes stay in the cache

// A group's record is float scale[16], then its blocks, each `bits` vectors [16 channels][4 k] of bytes:
//   4 bits: k 0..3 in the low and k 4..7 in the high nibbles of the first vector, and so on;
//   2 bits: k 0..3 in bits 0..1, k 4..7 in bits 2..3, ... of the first vector, k 16..31 in the second;
//   3 bits: the low two bits as above, then a vector with the third bit of k 4 j .. 4 j + 3 in bit j.
struct GemmW4 {
  const uint8_t* records;  // [panels][groups][record]
  const int32_t* zero;     // [panels][groups][16]
  const int32_t* sum;      // [panels][groups][16]: sum of the group's codes
  const int32_t* pair;     // [panels][groups][16]: zero in the low half, sum in the high one; null if they exceed 16 bits
  int64_t groups;
  int64_t blocks;  // per group
  int64_t channels;
  int64_t record;  // bytes
  int bits;
};

// What the kernel needs of up to kRowBlock rows, besides their codes.
struct RowCodes {
  const int8_t* x;       // [K' / 64] chunks of [count][64], zeros behind K; 1 KB behind it may be read
  int64_t chunk;         // bytes from chunk to chunk, at least count * 64
  const int32_t* seed;   // [groups][count]: if not null, all of the correction (one w_zero for all, x_zero = 0)
  const int32_t* pair;   // [groups][count]: -sum (x - x_zero) in the low half, -x_zero in the high one
  const int32_t* sum;    // [groups][count]: sum (x - x_zero)
  const int32_t* zero;   // [count]
  const float* scale;    // [count]
  void* y;               // [count][y_stride] of y_type
  int64_t y_stride;
  int64_t count;
  FloatType y_type;
};

struct GemmW4Kernels {
  // Panels are taken `panels_together` at a time; weights are padded to that.
  int64_t panels_together;
  void (*gemm)(const GemmW4&, const RowCodes&, int64_t panel_begin, int64_t panel_end);
  // One row of floats to codes: scale = max(max |x| / 127, 2^-126), code = round(x / scale). Writes whole blocks of 32
  // codes, the j-th 64 codes at codes + j * stride, and one sum a block. A row that holds a NaN or an infinity gets the
  // scale NaN and codes 0.
  void (*quantize_row)(FloatType, const void* x, int64_t length, int8_t* codes, int64_t stride, int32_t* block_sum,
                       float* scale);
};

const GemmW4Kernels& gemm_w4_amx();  // those of avx512 where the compiler knows no tiles
const GemmW4Kernels& gemm_w4_avx512();
const GemmW4Kernels& gemm_w4_avx_vnni();  // those of avx2 where the compiler knows no AVX-VNNI
const GemmW4Kernels& gemm_w4_avx2();
const GemmW4Kernels& gemm_w4_portable();
const GemmW4Kernels& gemm_w4_for(Isa isa);

}  // namespace pyquant
