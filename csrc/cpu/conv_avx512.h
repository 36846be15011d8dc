// Convolution and matrix product for AVX-512: panels in pairs, an odd one alone, on register tiles of assembly.
#pragma once
#include "cpu/balanced_rows.h"
#include "cpu/epilogue.h"
#include "cpu/kernels.h"
#include "cpu/register_tile_avx512.h"

namespace pyquant {
namespace {

constexpr int64_t kTileHeight = 12;

// One call of the kernel: what all its tiles have in common is written down once.
class Avx512Call {
 public:
  Avx512Call(const ConvLayer& layer, const ConvPixels& pixels) : layer_(layer), pixels_(pixels) {
    const Epilogue& e = layer.epilogue;
    flags_ = (e.saturates ? 0 : RegisterTile::kClamp) | (e.zero == 0 ? 0 : RegisterTile::kZero) |
             (pixels.residual == nullptr ? 0 : RegisterTile::kResidual) | (pixels.to_float ? RegisterTile::kSums : 0);
    tile_.segment_offset = layer.segment_offset;
    tile_.residual = nullptr;
    tile_.sums = sums_;
    tile_.panel_bytes = layer.segments * layer.steps * (kLanes * 4);
    tile_.segments = layer.segments;
    tile_.run = 4 * layer.steps;
    tile_.mask = 0;
    tile_.zero = _mm512_set1_epi16(static_cast<int16_t>(e.zero));
    tile_.lowest = _mm512_set1_epi8(static_cast<int8_t>(static_cast<int32_t>(e.low_less_zero) + e.zero));
    tile_.high_less_zero = _mm512_set1_ps(e.high_less_zero);
    tile_.residual_zero = _mm512_set1_ps(Lanes::kCodeOffset + e.residual_zero);
    tile_.residual_scale = _mm512_set1_ps(e.residual_scale);
    tile_.place = _mm512_castps_si512(_mm512_set1_ps(Lanes::kCodeOffset));
    tile_.spread = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    tile_.order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  }

  // `count` pixels from `first` on, `panels` (one or two) of channels from `panel` on.
  void tile(int64_t first, int64_t count, int64_t panel, int64_t panels) {
    const int64_t channel = panel * kLanes;
    const int64_t left = layer_.channels - channel;
    tile_.x = pixels_.x + first;
    tile_.y = pixels_.y + first;
    if (pixels_.residual != nullptr) tile_.residual = pixels_.residual + first;
    tile_.weight = layer_.weight + panel * tile_.panel_bytes;
    tile_.seed = layer_.seed + channel;
    tile_.multiplier = layer_.epilogue.multiplier + channel;
    tile_.bias = layer_.epilogue.bias + channel;
    tile_.channel = channel;
    tile_.flags = flags_;
    if (left < panels * kLanes) {
      tile_.flags |= RegisterTile::kPartial;
      tile_.mask = (uint64_t{1} << left) - 1;
    }
    const Tile tile = panels == 1 ? kSingle[count - 1] : first == 0 ? kFreshPair[count - 1] : kPair[count - kLowest];
    tile(tile_);
    if (!pixels_.to_float) return;
    for (int64_t p = 0; p < panels; ++p) {
      finish_panel(layer_, pixels_, first, count, panel + p, sums_ + p * count * kLanes);
    }
  }

 private:
  using Tile = void (*)(RegisterTile&);
  static constexpr int64_t kLowest = 6;  // of several tiles, all are at least so tall
#define PQ_TALL(name) name<6>, name<7>, name<8>, name<9>, name<10>, name<11>, name<12>
#define PQ_ALL(name) name<1>, name<2>, name<3>, name<4>, name<5>, PQ_TALL(name)
  static constexpr Tile kSingle[] = {PQ_ALL(single_tile)};
  static constexpr Tile kFreshPair[] = {PQ_ALL(fresh_pair_tile)};
  static constexpr Tile kPair[] = {PQ_TALL(pair_tile)};
#undef PQ_TALL
#undef PQ_ALL

  const ConvLayer& layer_;
  const ConvPixels& pixels_;
  int64_t flags_;
  RegisterTile tile_;
  alignas(64) int32_t sums_[2 * kTileHeight * kLanes];
};

void conv_avx512(const ConvLayer& layer, const ConvPixels& pixels, int64_t panel_begin, int64_t panel_end) {
  if (pixels.count == 0) return;
  const Rows rows(pixels.count, kTileHeight);
  Avx512Call call(layer, pixels);
  const auto tile = [&](int64_t t, int64_t panel) {
    call.tile(rows.first(t), rows.height(t), panel, panel_end - panel > 1 ? 2 : 1);
  };
  if (weights_stay(layer, panel_end - panel_begin)) {
    for (int64_t t = 0; t < rows.tiles; ++t) {
      for (int64_t panel = panel_begin; panel < panel_end; panel += 2) tile(t, panel);
    }
  } else {
    for (int64_t panel = panel_begin; panel < panel_end; panel += 2) {
      for (int64_t t = 0; t < rows.tiles; ++t) tile(t, panel);
    }
  }
}

}  // namespace
}  // namespace pyquant
