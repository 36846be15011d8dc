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

// C outputs of one row, from `column` on.
template <int C>
void depthwise_columns(const DepthwiseLayer& layer, const DepthwiseBand& band, int64_t columns, int64_t row,
                       int64_t column) {
  constexpr int64_t kColumnBytes = kLanes * 4;
  Lanes::Ints acc[C];
  const Lanes::Ints seed = Lanes::load_ints(layer.seed + band.panel * kLanes);
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c) acc[c] = seed;
  const int64_t step = layer.column_stride * kColumnBytes;
  for (int64_t q = layer.quad_begin[row]; q < layer.quad_end[row]; ++q) {
    const int8_t* w =
        layer.weight + ((band.panel * layer.band + row) * layer.quads + q) * layer.kernel_width * kColumnBytes;
    const uint8_t* x = band.scratch + (q * columns + column * layer.column_stride) * kColumnBytes;
    for (int64_t k = 0; k < layer.kernel_width; ++k) {
      const Lanes::Weights now = Lanes::load_weights(w);
      for (int c = 0; c < C; ++c) acc[c] = Lanes::dot_columns(acc[c], Lanes::load_columns(x + c * step), now);
      w += kColumnBytes;
      x += layer.column_dilation * kColumnBytes;
    }
  }
  const int64_t channel = band.panel * kLanes;
  const int64_t n = layer.channels - channel < kLanes ? layer.channels - channel : kLanes;
  const Affine affine(layer.epilogue, channel);
  const Requantise requantise(layer.epilogue);
  uint8_t* y = band.y + row * band.y_row_stride + column * band.y_pixel_stride + channel;
  if (band.residual != nullptr) {
    const uint8_t* residual =
        band.residual + row * band.residual_row_stride + column * band.residual_pixel_stride + channel;
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      requantise.store(requantise.add_residual(affine(acc[c]), residual + c * band.residual_pixel_stride),
                       y + c * band.y_pixel_stride, n);
    }
  } else {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) requantise.store(affine(acc[c]), y + c * band.y_pixel_stride, n);
  }
}

using ColumnsFunction = void (*)(const DepthwiseLayer&, const DepthwiseBand&, int64_t, int64_t, int64_t);

ColumnsFunction columns_of(int64_t count) {
  static constexpr ColumnsFunction kCounts[7] = {
      depthwise_columns<1>,
      depthwise_columns<2>,
      depthwise_columns<3>,
      depthwise_columns<4>,
      depthwise_columns<(Lanes::kColumns < 5 ? 1 : 5)>,
      depthwise_columns<(Lanes::kColumns < 6 ? 1 : 6)>,
      depthwise_columns<(Lanes::kColumns < 7 ? 1 : 7)>,
  };
  return kCounts[count - 1];
}

void depthwise(const DepthwiseLayer& layer, const DepthwiseBand& band) {
  const int64_t columns =
      (band.columns - 1) * layer.column_stride + (layer.kernel_width - 1) * layer.column_dilation + 1;
  interleave_quads(layer, band, columns);
  const int64_t tiles = (band.columns + Lanes::kColumns - 1) / Lanes::kColumns;
  const int64_t narrow = band.columns / tiles;
  const int64_t wide_tiles = band.columns % tiles;
  const ColumnsFunction narrow_tile = columns_of(narrow);
  const ColumnsFunction wide_tile = wide_tiles > 0 ? columns_of(narrow + 1) : narrow_tile;
  for (int64_t row = 0; row < band.rows; ++row) {
    int64_t column = 0;
    for (int64_t t = 0; t < wide_tiles; ++t, column += narrow + 1) wide_tile(layer, band, columns, row, column);
    for (; column < band.columns; column += narrow) narrow_tile(layer, band, columns, row, column);
  }
}

}  // namespace
}  // namespace pyquant
