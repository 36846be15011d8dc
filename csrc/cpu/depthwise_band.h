// Depthwise convolution of one band of output rows, for one panel of 16 channels.
//
// Input rows come in quads. Each quad is interleaved once, to columns [16 channels][4 rows]; a dot product of a column
// with [16 channels][4 taps] sums four vertical taps of sixteen channels. All output rows of the band use the same
// columns.
#pragma once
#include "cpu/epilogue.h"
#include "cpu/kernels.h"

namespace pyquant {
namespace {

void interleave_quads(const DepthwiseLayer& layer, const DepthwiseBand& band, int64_t columns) {
  const uint8_t* x = band.x + band.panel * kLanes;
  for (int64_t q = 0; q < layer.quads; ++q) {
    const uint8_t* rows[4];
    for (int64_t i = 0; i < 4; ++i) {
      // Rows that do not exist meet zero weights; any readable row does.
      const int64_t row = 4 * q + i < band.x_rows ? 4 * q + i : band.x_rows - 1;
      rows[i] = x + row * band.x_row_stride;
    }
    uint8_t* out = band.scratch + q * columns * (kLanes * 4);
    for (int64_t c = 0; c < columns; ++c) Lanes::interleave(rows, c * band.x_pixel_stride, out + c * (kLanes * 4));
  }
}

// `tiles` runs of C outputs of one row, from `column` on.
template <int C>
void depthwise_tiles(const DepthwiseLayer& layer, const DepthwiseBand& band, int64_t columns, int64_t row, int64_t column,
                     int64_t tiles) {
  constexpr int64_t kColumnBytes = kLanes * 4;
  const int64_t channel = band.panel * kLanes;
  const int64_t n = layer.channels - channel < kLanes ? layer.channels - channel : kLanes;
  const Lanes::Ints seed = Lanes::load_ints(layer.seed + channel);
  const Affine affine(layer.epilogue, channel);
  const Requantise requantise(layer.epilogue);
  const int64_t step = layer.column_stride * kColumnBytes;
  const int64_t kernel_bytes = layer.kernel_width * kColumnBytes;
  const int64_t dilation_bytes = layer.column_dilation * kColumnBytes;
  const int8_t* weight = layer.weight + (band.panel * layer.band + row) * layer.quads * kernel_bytes;
  const uint8_t* x = band.scratch + column * step;
  const int64_t y_step = band.y_pixel_stride;
  uint8_t* y = band.y + row * band.y_row_stride + column * y_step + channel;
  const int64_t residual_step = band.residual_pixel_stride;
  const uint8_t* residual =
      band.residual == nullptr
          ? nullptr
          : band.residual + row * band.residual_row_stride + column * residual_step + channel;
  const int64_t quad_begin = layer.quad_begin[row], quad_end = layer.quad_end[row];
  for (int64_t t = 0; t < tiles; ++t) {
    Lanes::Ints acc[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) acc[c] = seed;
    for (int64_t q = quad_begin; q < quad_end; ++q) {
      const int8_t* w = weight + q * kernel_bytes;
      const uint8_t* tap = x + q * columns * kColumnBytes;
      for (int64_t k = 0; k < layer.kernel_width; ++k) {
        const Lanes::Weights now = Lanes::load_weights(w);
        for (int c = 0; c < C; ++c) acc[c] = Lanes::dot_columns(acc[c], Lanes::load_columns(tap + c * step), now);
        w += kColumnBytes;
        tap += dilation_bytes;
      }
    }
    if (residual != nullptr) {
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) {
        requantise.store(requantise.add_residual(affine(acc[c]), residual + c * residual_step), y + c * y_step, n);
      }
      residual += C * residual_step;
    } else if (n == kLanes) {
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) requantise.store(affine(acc[c]), y + c * y_step, kLanes);
    } else {
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) requantise.store(affine(acc[c]), y + c * y_step, n);
    }
    x += C * step;
    y += C * y_step;
  }
}

using TilesFunction = void (*)(const DepthwiseLayer&, const DepthwiseBand&, int64_t, int64_t, int64_t, int64_t);

TilesFunction tiles_of(int64_t columns) {
  static constexpr TilesFunction kWidths[7] = {
      depthwise_tiles<1>,
      depthwise_tiles<2>,
      depthwise_tiles<3>,
      depthwise_tiles<4>,
      depthwise_tiles<(Lanes::kColumns < 5 ? 1 : 5)>,
      depthwise_tiles<(Lanes::kColumns < 6 ? 1 : 6)>,
      depthwise_tiles<(Lanes::kColumns < 7 ? 1 : 7)>,
  };
  return kWidths[columns - 1];
}

void depthwise(const DepthwiseLayer& layer, const DepthwiseBand& band) {
  const int64_t columns =
      (band.columns - 1) * layer.column_stride + (layer.kernel_width - 1) * layer.column_dilation + 1;
  interleave_quads(layer, band, columns);
  const int64_t tiles = (band.columns + Lanes::kColumns - 1) / Lanes::kColumns;
  const int64_t narrow = band.columns / tiles;
  const int64_t wide_tiles = band.columns % tiles;
  for (int64_t row = 0; row < band.rows; ++row) {
    if (wide_tiles > 0) tiles_of(narrow + 1)(layer, band, columns, row, 0, wide_tiles);
    tiles_of(narrow)(layer, band, columns, row, wide_tiles * (narrow + 1), tiles - wide_tiles);
  }
}

}  // namespace
}  // namespace pyquant
