// Convolution and matrix product on a register tile of output pixels x panels of 16 channels. Written once; each
// instruction set's file includes it behind its own Lanes.
#pragma once
#include <utility>

#include "cpu/epilogue.h"
#include "cpu/kernels.h"

namespace pyquant {
namespace {

// Weights are fetched so far ahead of their use: a panel comes from L2 or beyond, for all panels seldom fit in L1.
constexpr int64_t kWeightsAhead = 512;

// Step D of some that are done together: broadcasts four codes of each pixel against four weights of each channel.
template <int D, int R, int P>
inline __attribute__((always_inline)) void conv_step(Lanes::Ints (&acc)[R][P], const uint8_t* const (&x)[R], int64_t k,
                                                     const int8_t* w, int64_t panel_bytes) {
  w += D * kLanes * 4;
  Lanes::Weights now[P];
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
    now[p] = Lanes::load_weights(w + p * panel_bytes);
    __builtin_prefetch(w + p * panel_bytes + kWeightsAhead);
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) Lanes::dot_row<4 * D>(acc[r], x[r], k, now);
}

template <int R, int P, size_t... D>
inline __attribute__((always_inline)) void conv_steps(Lanes::Ints (&acc)[R][P], const uint8_t* const (&x)[R],
                                                      const int8_t* w, int64_t k, int64_t panel_bytes,
                                                      std::index_sequence<D...>) {
  (conv_step<static_cast<int>(D)>(acc, x, k, w, panel_bytes), ...);
}

// `sums` holds R * P * 16 integers. It is the caller's, for an aligned array here would cost a register that a pointer wants.
template <int R, int P>
void conv_tile(const ConvLayer& layer, const ConvPixels& pixels, int64_t first, int64_t panel, int32_t* sums) {
  const int64_t panel_bytes = layer.segments * layer.steps * (kLanes * 4);
  const int8_t* w = layer.weight + panel * panel_bytes;
  Lanes::Ints acc[R][P];
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
    const Lanes::Ints seed = Lanes::load_ints(layer.seed + (panel + p) * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) acc[r][p] = seed;
  }
  for (int64_t s = 0; s < layer.segments; ++s) {
    const uint8_t* x[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) x[r] = pixels.x[first + r] + layer.segment_offset[s];
    // Counted by turns, so that nothing but `k` has to stay in a register beside the pointers.
    int64_t k = 0;
    for (int64_t turns = layer.steps / Lanes::kSteps; turns > 0; --turns) {
      conv_steps(acc, x, w, k, panel_bytes, std::make_index_sequence<Lanes::kSteps>());
      k += 4 * Lanes::kSteps;
      w += 4 * Lanes::kSteps * kLanes;
    }
    for (int64_t left = layer.steps % Lanes::kSteps; left > 0; --left, k += 4, w += 4 * kLanes) {
      conv_step<0>(acc, x, k, w, panel_bytes);
    }
  }
  // Through memory: the ports that store are idle, and the epilogue then is one function for tiles of all sizes.
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) Lanes::store_ints(sums + (p * R + r) * kLanes, acc[r][p]);
  }
  finish_panels(layer, pixels, first, R, panel, P, sums, R * kLanes);
}

using TileFunction = void (*)(const ConvLayer&, const ConvPixels&, int64_t, int64_t, int32_t*);

template <int P, size_t... R>
TileFunction tile_of(int64_t rows, std::index_sequence<R...>) {
  static constexpr TileFunction kTiles[] = {conv_tile<static_cast<int>(R) + 1, P>...};
  return kTiles[rows - 1];
}

// Pixels in tiles of nearly equal height: a last tile of one row would waste most of its time waiting for its own
// results.
struct Rows {
  int64_t tiles, low, tall_tiles;

  Rows(int64_t count, int64_t most)
      : tiles((count + most - 1) / most), low(count / tiles), tall_tiles(count % tiles) {}
  int64_t first(int64_t tile) const { return tile * low + (tile < tall_tiles ? tile : tall_tiles); }
  int64_t height(int64_t tile) const { return low + (tile < tall_tiles ? 1 : 0); }
};

template <int P>
void conv_panels(const ConvLayer& layer, const ConvPixels& pixels, int64_t panel) {
  constexpr int64_t kRows = Lanes::rows(P);
  constexpr auto kHeights = std::make_index_sequence<kRows>();
  alignas(64) int32_t sums[kRows * P * kLanes];
  const Rows rows(pixels.count, kRows);
  for (int64_t t = 0; t < rows.tiles; ++t) {
    tile_of<P>(rows.height(t), kHeights)(layer, pixels, rows.first(t), panel, sums);
  }
}

void conv_all_panels(const ConvLayer& layer, const ConvPixels& pixels, int64_t panel_begin, int64_t panel_end) {
  int64_t panel = panel_begin;
  if constexpr (Lanes::kPanels == 2) {
    // An odd number of panels ends with three at once: one alone would load as much for half the products.
    for (; panel_end - panel >= 4 || panel_end - panel == 2; panel += 2) conv_panels<2>(layer, pixels, panel);
    if (panel_end - panel == 3) conv_panels<3>(layer, pixels, panel), panel += 3;
  }
  for (; panel < panel_end; ++panel) conv_panels<1>(layer, pixels, panel);
}

void conv(const ConvLayer& layer, const ConvPixels& pixels, int64_t panel_begin, int64_t panel_end) {
  if (pixels.count == 0) return;
  if (!weights_stay(layer, panel_end - panel_begin)) {
    conv_all_panels(layer, pixels, panel_begin, panel_end);
    return;
  }
  const Rows rows(pixels.count, Lanes::rows(Lanes::kPanels));
  for (int64_t t = 0; t < rows.tiles; ++t) {
    ConvPixels part = pixels;
    part.x += rows.first(t);
    part.y += rows.first(t);
    if (part.residual != nullptr) part.residual += rows.first(t);
    part.count = rows.height(t);
    conv_all_panels(layer, part, panel_begin, panel_end);
  }
}

}  // namespace
}  // namespace pyquant
