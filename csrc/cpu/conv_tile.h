// Convolution and matrix product on a register tile of output pixels x one panel of 16 channels. Written once; each
// instruction set's file but AVX-512's includes it behind its own Lanes.
#pragma once
#include <utility>

#include "cpu/balanced_rows.h"
#include "cpu/epilogue.h"
#include "cpu/kernels.h"

namespace pyquant {
namespace {

// Weights are fetched so far ahead of their use: a panel comes from L2 or beyond, for all panels seldom fit in L1.
constexpr int64_t kWeightsAhead = 512;

// Step D of some that are done together: broadcasts four codes of each pixel against four weights of each channel.
template <int D, int R>
inline __attribute__((always_inline)) void conv_step(Lanes::Ints (&acc)[R], const uint8_t* const (&x)[R], int64_t k,
                                                     const int8_t* w) {
  w += D * kLanes * 4;
  const Lanes::Weights now = Lanes::load_weights(w);
  __builtin_prefetch(w + kWeightsAhead);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) Lanes::dot_row<4 * D>(acc[r], x[r], k, now);
}

template <int R, size_t... D>
inline __attribute__((always_inline)) void conv_steps(Lanes::Ints (&acc)[R], const uint8_t* const (&x)[R],
                                                      const int8_t* w, int64_t k, std::index_sequence<D...>) {
  (conv_step<static_cast<int>(D)>(acc, x, k, w), ...);
}

// `sums` holds R * 16 integers. It is the caller's, for an aligned array here would cost a register that a pointer wants.
template <int R>
void conv_tile(const ConvLayer& layer, const ConvPixels& pixels, int64_t first, int64_t panel, int32_t* sums) {
  const int8_t* w = layer.weight + panel * layer.segments * layer.steps * (kLanes * 4);
  const Lanes::Ints seed = Lanes::load_ints(layer.seed + panel * kLanes);
  Lanes::Ints acc[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) acc[r] = seed;
  for (int64_t s = 0; s < layer.segments; ++s) {
    const uint8_t* x[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) x[r] = pixels.x[first + r] + layer.segment_offset[s];
    // Counted by turns, so that nothing but `k` has to stay in a register beside the pointers.
    int64_t k = 0;
    for (int64_t turns = layer.steps / Lanes::kSteps; turns > 0; --turns) {
      conv_steps(acc, x, w, k, std::make_index_sequence<Lanes::kSteps>());
      k += 4 * Lanes::kSteps;
      w += 4 * Lanes::kSteps * kLanes;
    }
    for (int64_t left = layer.steps % Lanes::kSteps; left > 0; --left, k += 4, w += 4 * kLanes) {
      conv_step<0>(acc, x, k, w);
    }
  }
  // Through memory: the ports that store are idle, and the epilogue then is one function for tiles of all sizes.
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) Lanes::store_ints(sums + r * kLanes, acc[r]);
  finish_panel(layer, pixels, first, R, panel, sums);
}

using TileFunction = void (*)(const ConvLayer&, const ConvPixels&, int64_t, int64_t, int32_t*);

template <size_t... R>
TileFunction tile_of(int64_t rows, std::index_sequence<R...>) {
  static constexpr TileFunction kTiles[] = {conv_tile<static_cast<int>(R) + 1>...};
  return kTiles[rows - 1];
}

void conv(const ConvLayer& layer, const ConvPixels& pixels, int64_t panel_begin, int64_t panel_end) {
  if (pixels.count == 0) return;
  constexpr auto kHeights = std::make_index_sequence<Lanes::kRows>();
  alignas(64) int32_t sums[Lanes::kRows * kLanes];
  const Rows rows(pixels.count, Lanes::kRows);
  const auto tile = [&](int64_t t, int64_t panel) {
    tile_of(rows.height(t), kHeights)(layer, pixels, rows.first(t), panel, sums);
  };
  if (weights_stay(layer, panel_end - panel_begin)) {
    for (int64_t t = 0; t < rows.tiles; ++t) {
      for (int64_t panel = panel_begin; panel < panel_end; ++panel) tile(t, panel);
    }
  } else {
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
      for (int64_t t = 0; t < rows.tiles; ++t) tile(t, panel);
    }
  }
}

}  // namespace
}  // namespace pyquant
