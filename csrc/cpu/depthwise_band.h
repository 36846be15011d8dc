// Depthwise convolution of one band of output rows, for one group of panels.
//
// Input rows come in quads. Each quad is interleaved once, to columns [channels of the group][4 rows]; a dot product of a
// column with [channels][4 taps] sums four vertical taps. All output rows of the band use the same columns. A group that
// is narrower than a block fills it with several runs of output columns ("streams"), side by side.
#pragma once
#include "cpu/kernels.h"

namespace pyquant {
namespace {

// Where the streams begin, in bytes behind the first.
struct Streams {
  int64_t x[Block::kPieces] = {}, y[Block::kPieces] = {}, residual[Block::kPieces] = {};
};

// Output columns [first, first + count) of every stream.
struct DepthwiseChunk {
  int64_t first, count;
  int64_t columns;  // of the input
};

template <int P>
void interleave_quads(const DepthwiseLayer& layer, const DepthwiseBand& band, const Streams& streams,
                      const DepthwiseChunk& chunk) {
  const uint8_t* x = band.x + band.group * Block::kPieces * kLanes + chunk.first * layer.column_stride * band.x_pixel_stride;
  uint8_t* out = band.scratch;
  const int64_t quads = layer.quad_end[band.rows - 1];
  for (int64_t q = 0; q < quads; ++q) {
    const uint8_t* rows[4];
    for (int64_t i = 0; i < 4; ++i) {
      // Rows that do not exist meet zero weights; any readable row does.
      const int64_t row = 4 * q + i < band.x_rows ? 4 * q + i : band.x_rows - 1;
      rows[i] = x + row * band.x_row_stride;
    }
    for (int64_t c = 0; c < chunk.columns; ++c, out += Block::kColumnBytes) {
      Block::template interleave<P>(rows, c * band.x_pixel_stride, streams.x, out);
    }
  }
}

// Sums, then codes, of C outputs of one row. `x` is the first column of the first, `y` and `residual` where its codes are.
template <int P, int C>
inline __attribute__((always_inline)) void depthwise_tile(const DepthwiseLayer& layer, const DepthwiseBand& band,
                                                          const Streams& streams, const Block::Finish& finish,
                                                          const int32_t* seed, const int8_t* weight, const uint8_t* x,
                                                          int64_t quads, int64_t quad_bytes, uint8_t* y,
                                                          const uint8_t* residual, int64_t n) {
  constexpr int kVectors = Block::kVectors;
  const int64_t step = layer.column_stride * Block::kColumnBytes;
  const int64_t dilation_bytes = layer.column_dilation * Block::kColumnBytes;
  Block::Part parts[C][Block::kPasses];
#pragma GCC unroll 2
  for (int pass = 0; pass < Block::kPasses; ++pass) {
    Block::Ints acc[C][kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const Block::Ints start = Block::load_seed(seed, pass * kVectors + v);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) acc[c][v] = start;
    }
    const int8_t* w = weight;
    for (int64_t q = 0; q < quads; ++q) {
      const uint8_t* tap = x + q * quad_bytes;
      for (int64_t k = 0; k < layer.kernel_width; ++k) {
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          const Block::Weights now = Block::load_weights(w, pass * kVectors + v);
#pragma GCC unroll 8
          for (int c = 0; c < C; ++c) acc[c][v] = Block::dot(acc[c][v], tap + c * step, pass * kVectors + v, now);
        }
        w += Block::kWeightBytes;
        tap += dilation_bytes;
      }
    }
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      Block::Floats sums[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        sums[v] = finish.affine(acc[c][v], pass * kVectors + v);
        if (residual != nullptr) {
          sums[v] = finish.template add_residual<P>(sums[v], residual + c * band.residual_pixel_stride,
                                                    streams.residual, pass * kVectors + v);
        }
      }
      parts[c][pass] = finish.part(sums);
    }
  }
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c) finish.template store<P>(parts[c], y + c * band.y_pixel_stride, streams.y, n);
}

// `tiles` runs of C outputs of every row, from column `from` of the chunk on.
template <int P, int C>
void depthwise_tiles(const DepthwiseLayer& layer, const DepthwiseBand& band, const Streams& streams,
                     const DepthwiseChunk& chunk, int64_t from, int64_t tiles) {
  const int64_t channel = band.group * Block::kPieces * kLanes;
  const int64_t n = layer.channels - channel < P * kLanes ? layer.channels - channel : P * kLanes;
  const int32_t* seed = layer.seed + channel;
  const Block::Finish finish(layer.epilogue, channel);
  const int64_t kernel_bytes = layer.kernel_width * Block::kWeightBytes;
  const int64_t quad_bytes = chunk.columns * Block::kColumnBytes;
  const int64_t column = chunk.first + from;
  for (int64_t row = 0; row < band.rows; ++row) {
    const int64_t quad = layer.quad_begin[row], quads = layer.quad_end[row] - quad;
    const int8_t* weight = layer.weight + ((band.group * layer.band + row) * layer.quads + quad) * kernel_bytes;
    const uint8_t* x = band.scratch + quad * quad_bytes + from * layer.column_stride * Block::kColumnBytes;
    uint8_t* y = band.y + row * band.y_row_stride + column * band.y_pixel_stride + channel;
    if (band.residual == nullptr) {
      for (int64_t t = 0; t < tiles; ++t) {
        depthwise_tile<P, C>(layer, band, streams, finish, seed, weight, x, quads, quad_bytes, y, nullptr, n);
        x += C * layer.column_stride * Block::kColumnBytes;
        y += C * band.y_pixel_stride;
      }
    } else {
      const uint8_t* residual =
          band.residual + row * band.residual_row_stride + column * band.residual_pixel_stride + channel;
      for (int64_t t = 0; t < tiles; ++t) {
        depthwise_tile<P, C>(layer, band, streams, finish, seed, weight, x, quads, quad_bytes, y, residual, n);
        x += C * layer.column_stride * Block::kColumnBytes;
        y += C * band.y_pixel_stride;
        residual += C * band.residual_pixel_stride;
      }
    }
  }
}

template <int P>
using TilesFunction = void (*)(const DepthwiseLayer&, const DepthwiseBand&, const Streams&, const DepthwiseChunk&,
                               int64_t, int64_t);

template <int P>
TilesFunction<P> tiles_of(int64_t columns) {
  static constexpr TilesFunction<P> kWidths[7] = {
      depthwise_tiles<P, 1>,
      depthwise_tiles<P, 2>,
      depthwise_tiles<P, 3>,
      depthwise_tiles<P, 4>,
      depthwise_tiles<P, (Block::kColumns < 5 ? 1 : 5)>,
      depthwise_tiles<P, (Block::kColumns < 6 ? 1 : 6)>,
      depthwise_tiles<P, (Block::kColumns < 7 ? 1 : 7)>,
  };
  return kWidths[columns - 1];
}

// A group of P panels.
template <int P>
void depthwise_group(const DepthwiseLayer& layer, const DepthwiseBand& band) {
  constexpr int64_t kStreams = Block::kPieces / P;
  const int64_t width = (band.columns + kStreams - 1) / kStreams;
  Streams streams;
  for (int64_t s = 0; s < kStreams; ++s) {
    // The last ones do some of their neighbours' columns again.
    const int64_t first = s * width < band.columns - width ? s * width : band.columns - width;
    streams.x[s] = first * layer.column_stride * band.x_pixel_stride;
    streams.y[s] = first * band.y_pixel_stride;
    streams.residual[s] = first * band.residual_pixel_stride;
  }
  const int64_t whole = layer.chunk / Block::kColumns * Block::kColumns;
  const int64_t most = whole > 0 ? whole : layer.chunk;
  const int64_t chunks = (width + most - 1) / most;
  for (int64_t i = 0; i < chunks; ++i) {
    DepthwiseChunk chunk;
    chunk.first = width * i / chunks;
    chunk.count = width * (i + 1) / chunks - chunk.first;
    chunk.columns = (chunk.count - 1) * layer.column_stride + (layer.kernel_width - 1) * layer.column_dilation + 1;
    interleave_quads<P>(layer, band, streams, chunk);
    const int64_t tiles = (chunk.count + Block::kColumns - 1) / Block::kColumns;
    const int64_t narrow = chunk.count / tiles;
    const int64_t wide_tiles = chunk.count % tiles;
    if (wide_tiles > 0) tiles_of<P>(narrow + 1)(layer, band, streams, chunk, 0, wide_tiles);
    tiles_of<P>(narrow)(layer, band, streams, chunk, wide_tiles * (narrow + 1), tiles - wide_tiles);
  }
}

void depthwise(const DepthwiseLayer& layer, const DepthwiseBand& band) {
  if (band.streams == 1) {
    depthwise_group<Block::kPieces>(layer, band);
  } else if (band.streams == 2) {
    depthwise_group<(Block::kPieces + 1) / 2>(layer, band);
  } else {
    depthwise_group<(Block::kPieces + 3) / 4>(layer, band);
  }
}

}  // namespace
}  // namespace pyquant
