// Convolution and matrix product on a register tile of output pixels x panels of 16 channels. Written once; each
// instruction set's file includes it behind its own Lanes.
#pragma once
#include "cpu/epilogue.h"
#include "cpu/kernels.h"

namespace pyquant {
namespace {

// One tile: every step broadcasts four codes of each pixel against four weights of each channel.
template <int R, int P>
void conv_tile(const ConvLayer& layer, const ConvPixels& pixels, int64_t first, int64_t panel) {
  const int64_t panel_bytes = layer.segments * layer.steps * (kLanes * 4);
  const int8_t* w = layer.weight + panel * panel_bytes;
  Lanes::Ints acc[R][P];
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
    const Lanes::Ints seed = Lanes::load_ints(layer.seed + (panel + p) * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[r][p] = seed;
  }
  for (int64_t s = 0; s < layer.segments; ++s) {
    const uint8_t* x[R];
    for (int r = 0; r < R; ++r) x[r] = pixels.x[first + r] + layer.segment_offset[s];
    for (int64_t k = 0; k < 4 * layer.steps; k += 4) {
      Lanes::Weights now[P];
      for (int p = 0; p < P; ++p) now[p] = Lanes::load_weights(w + p * panel_bytes);
      for (int r = 0; r < R; ++r) {
        const Lanes::Broadcast four = Lanes::broadcast(x[r] + k);
        for (int p = 0; p < P; ++p) acc[r][p] = Lanes::dot(acc[r][p], four, now[p]);
      }
      w += kLanes * 4;
    }
  }
  const Requantise requantise(layer.epilogue);
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
    const int64_t channel = (panel + p) * kLanes;
    const int64_t n = layer.channels - channel < kLanes ? layer.channels - channel : kLanes;
    const Affine affine(layer.epilogue, channel);
    // One unrolled loop for each kind of result: a branch inside would send the accumulators through memory.
    void* const* y = pixels.y + first;
    if (pixels.to_float) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) Lanes::store_floats(static_cast<float*>(y[r]) + channel, affine(acc[r][p]), n);
    } else if (pixels.residual != nullptr) {
      const uint8_t* const* residual = pixels.residual + first;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        requantise.store(requantise.add_residual(affine(acc[r][p]), residual[r] + channel),
                         static_cast<uint8_t*>(y[r]) + channel, n);
      }
    } else if (n == kLanes) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) requantise.store(affine(acc[r][p]), static_cast<uint8_t*>(y[r]) + channel, kLanes);
    } else {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) requantise.store(affine(acc[r][p]), static_cast<uint8_t*>(y[r]) + channel, n);
    }
  }
}

using TileFunction = void (*)(const ConvLayer&, const ConvPixels&, int64_t, int64_t);

template <int P>
TileFunction tile_of(int64_t rows) {
  static constexpr TileFunction kTiles[7] = {
      conv_tile<1, P>,
      conv_tile<2, P>,
      conv_tile<3, P>,
      conv_tile<4, P>,
      conv_tile<(Lanes::kRows < 5 ? 1 : 5), P>,
      conv_tile<(Lanes::kRows < 6 ? 1 : 6), P>,
      conv_tile<(Lanes::kRows < 7 ? 1 : 7), P>,
  };
  return kTiles[rows - 1];
}

template <int P>
void conv_panels(const ConvLayer& layer, const ConvPixels& pixels, int64_t panel) {
  // Tiles of nearly equal height: a last tile of one row would waste most of its time waiting for its own results.
  const int64_t tiles = (pixels.count + Lanes::kRows - 1) / Lanes::kRows;
  const int64_t short_rows = pixels.count / tiles;
  const int64_t tall_tiles = pixels.count % tiles;
  int64_t first = 0;
  if (tall_tiles > 0) {
    const TileFunction tall = tile_of<P>(short_rows + 1);
    for (int64_t t = 0; t < tall_tiles; ++t, first += short_rows + 1) tall(layer, pixels, first, panel);
  }
  const TileFunction low = tile_of<P>(short_rows);
  for (; first < pixels.count; first += short_rows) low(layer, pixels, first, panel);
}

void conv(const ConvLayer& layer, const ConvPixels& pixels, int64_t panel_begin, int64_t panel_end) {
  if (pixels.count == 0) return;
  int64_t panel = panel_begin;
  for (; panel + Lanes::kPanels <= panel_end; panel += Lanes::kPanels)
    conv_panels<Lanes::kPanels>(layer, pixels, panel);
  for (; panel < panel_end; ++panel) conv_panels<1>(layer, pixels, panel);
}

}  // namespace
}  // namespace pyquant
