// What every instruction set offers: plain argument structs and a table of functions. No inline code lives here,
// because this header is read by files compiled with different flags.
//
// Codes are uint8 [H][W][C] with a row stride and a pixel stride in bytes; kernels may read, never write, up to 63
// bytes behind the last code that they need. Lanes are 16 output channels ("a panel").
#pragma once
#include <cstdint>

#include "cpu/isa.h"

namespace pyquant {

constexpr int kLanes = 16;

// y = clamp(round(float(acc) * multiplier + bias [+ (r - residual_zero) * residual_scale]) + zero, low, high).
// The clamp is done before rounding, with bounds less the zero point: for whole bounds that is the same.
struct Epilogue {
  const float* multiplier;  // [panels * 16]
  const float* bias;        // [panels * 16]
  float low_less_zero;
  float high_less_zero;
  int32_t zero;
  float residual_zero;
  float residual_scale;
  bool saturates;  // low and high are 0 and 255, and no result is beyond an int32, whatever the sums
};

// A convolution as an implicit matrix product: an output pixel's inputs are `segments` runs of 4 * steps bytes, at
// fixed offsets from the pixel's first byte. Weights that meet bytes behind a run's true end are zero.
struct ConvLayer {
  const int8_t* weight;           // [panels][segments * steps][16][4]
  const int32_t* seed;            // [panels * 16]: -x_zero * sum(w), what the accumulators start from
  const int64_t* segment_offset;  // [segments] bytes
  int64_t segments;
  int64_t steps;
  int64_t chunk;     // steps taken at once where Kernels::chunk_steps is not 0; divides `steps`
  int64_t channels;  // outputs; the last panel may be part full
  Epilogue epilogue;
};

// Output pixels of one call, at most.
constexpr int64_t kMostPixels = 224;

// The output pixels of one call. `y` points to uint8 codes, or with `to_float` to floats; `residual` may be null.
struct ConvPixels {
  const uint8_t* const* x;
  void* const* y;
  const uint8_t* const* residual;
  int64_t count;
  bool to_float;
  uint8_t* scratch;  // with chunks: 1 KB for each of them and each 16 pixels begun, 64-byte aligned
};

// Depthwise: input rows are taken in quads of four, interleaved to [column][channels][4 rows], so that one dot product
// sums four vertical taps. A band of output rows shares its quads; each has its own copy of the weights, shifted to fit.
//
// Channels go in groups of `depthwise_pieces` panels (P). A group's vectors, v of four, hold channels 4 v to 4 v + 3 of
// every panel; with P = 1 that is the usual order. Where the last group has at most half the panels, its vectors hold
// several streams of them: runs of output columns, done side by side.
struct DepthwiseLayer {
  const int8_t* weight;       // [groups][band][quads][kernel_width][4 vectors][P][4][4 taps]
  const int32_t* seed;        // [groups][4 vectors][P][4], as are the epilogue's arrays
  const int32_t* quad_begin;  // [band]: the quads that an output row of the band needs
  const int32_t* quad_end;    // [band]
  int64_t band;
  int64_t quads;
  int64_t kernel_width;
  int64_t column_stride;    // input columns between two outputs
  int64_t column_dilation;  // input columns between two taps
  int64_t channels;
  int64_t chunk;  // the most output columns that are interleaved at once
  Epilogue epilogue;
};

// One band, one group. `x` is the first byte of input row 0 of the band at input column 0 of output column 0.
struct DepthwiseBand {
  const uint8_t* x;
  int64_t x_row_stride;
  int64_t x_rows;  // rows that exist; those behind are not read
  int64_t x_pixel_stride;
  uint8_t* y;
  int64_t y_row_stride;
  int64_t y_pixel_stride;
  const uint8_t* residual;  // laid out with its own strides; may be null
  int64_t residual_row_stride;
  int64_t residual_pixel_stride;
  int64_t rows;  // output rows of this band, at most layer.band
  int64_t columns;
  int64_t group;
  int64_t streams;   // 1, 2 or 4: P of them are panels of the group
  uint8_t* scratch;  // quads * input columns of a chunk * depthwise_column_bytes, 64-byte aligned
};

struct AddLayer {
  float a_zero, a_scale, b_zero, b_scale;
  float low_less_zero, high_less_zero;
  int32_t zero;
};

// One output pixel of a pool: a window of `height` x `width` pixels that begins at `x`.
struct PoolWindow {
  const uint8_t* x;
  int64_t row_stride;
  int64_t pixel_stride;
  int64_t height;
  int64_t width;
  int64_t channels;
};

struct AveragePool {
  int32_t zero_sum;  // x_zero * pixels of the window
  float multiplier;
  float low_less_zero, high_less_zero;
  int32_t zero;
};

struct QuantizeLayer {
  float scale;
  float low_less_zero, high_less_zero;
  int32_t zero;
};

struct Kernels {
  // The most steps of a run that a convolution takes at once; the runs of its weights are padded to whole chunks of
  // equal size. 0: runs of any length.
  int64_t chunk_steps;
  int64_t group_pixels;  // a convolution likes its pixels in multiples of this
  void (*conv)(const ConvLayer&, const ConvPixels&, int64_t panel_begin, int64_t panel_end);
  int64_t depthwise_pieces;        // panels of a group
  int64_t depthwise_column_bytes;  // of a group's quad, interleaved
  void (*depthwise)(const DepthwiseLayer&, const DepthwiseBand&);
  void (*add)(const AddLayer&, const uint8_t* a, const uint8_t* b, uint8_t* y, int64_t count);
  void (*average_pool)(const AveragePool&, const PoolWindow&, uint8_t* y);
  void (*max_pool)(const PoolWindow&, uint8_t* y);
  void (*lookup)(const uint8_t* table, const uint8_t* x, uint8_t* y, int64_t count);
  void (*quantize)(const QuantizeLayer&, const float* x, uint8_t* y, int64_t count);
  // `count` pixels of three planes: y is [count][3].
  void (*quantize_three)(const QuantizeLayer&, const float* const* x, uint8_t* y, int64_t count);
  void (*dequantize)(float scale, float zero, const uint8_t* x, float* y, int64_t count);
};

const Kernels* kernels_amx();  // null if the compiler knew no AMX
const Kernels& kernels_avx512();
const Kernels* kernels_avx_vnni();  // null if the compiler knew no AVX-VNNI
const Kernels& kernels_avx2();
const Kernels& kernels_portable();
const Kernels& kernels_for(Isa isa);

}  // namespace pyquant
