// Panels of low-bit weights times any number of rows, in terms of LowBit. Few rows: bound by the bytes of the weights, so
// all of K goes through registers at once. More rows: bound by the dot products, so a part of K of each panel is unpacked
// once, into the first-level cache, and all the rows use it.
#pragma once
#include <algorithm>
#include <cstring>

#include "cpu/gemm_w4_tile.h"

namespace pyquant {
namespace {

// Prefetches the packed codes that come after a part, a share of them at each of `calls` steps: all at once they would
// stand in the way of the loads that are needed now.
class Ahead {
 public:
  Ahead(const Codes& from, int64_t calls) : from_(from), calls_(calls) {}
  void step() {
    const int64_t end = from_.next_lines * ++call_ / calls_;
    for (; line_ < end; ++line_) {
      for (int p = 0; p < kTilePanels; ++p) LowBit::prefetch(from_.next[p] + line_ * 64);
    }
  }

 private:
  const Codes& from_;
  int64_t calls_, call_ = 0, line_ = 0;
};

// All rows in tiles as even as can be; with kBits = 8, of codes that lie unpacked.
template <int kBits>
void gemm_w4_rows(const GemmW4& w4, const RowCodes& rows, const Codes& from, int64_t panel, float* totals,
                  int32_t* kept) {
  using Tile = void (*)(const GemmW4&, const RowCodes&, const Codes&, int64_t, int64_t, float*, int32_t*);
  static constexpr Tile kTiles[] = {gemm_w4_tile<1, kBits>, gemm_w4_tile<2, kBits>, gemm_w4_tile<3, kBits>,
                                    gemm_w4_tile<4, kBits>, gemm_w4_tile<5, kBits>, gemm_w4_tile<6, kBits>};
  static_assert(LowBit::kTileRows <= 6, "no taller tile is compiled");
  const int64_t tiles = (rows.count + LowBit::kTileRows - 1) / LowBit::kTileRows;
  Ahead ahead(from, tiles);
  for (int64_t t = 0; t < tiles; ++t) {
    ahead.step();
    const int64_t begin = t * rows.count / tiles, end = (t + 1) * rows.count / tiles;
    kTiles[end - begin - 1](w4, rows, from, begin, panel, totals + begin * kTileFloats, kept + begin * kTileFloats);
  }
}

struct PlainRows {
  static constexpr int64_t kRowsInRegisters = LowBit::kRowsInRegisters;
  static constexpr int64_t kRowsStreamed = 0;

  template <int kBits>
  static void unpack(const GemmW4&, const RowCodes&, const uint8_t* from, int64_t blocks, uint8_t* to) {
    for (int64_t b = 0; b < blocks; ++b, from += 64 * kBits, to += 512) {
#pragma GCC unroll LowBit::kQuadsUnrolled
      for (int q = 0; q < 8; ++q) LowBit::store_quad(to + 64 * q, LowBit::template quad<kBits>(from, q));
    }
  }

  static void run(const GemmW4& w4, const RowCodes& rows, const Codes& from, int64_t panel, float* totals,
                  int32_t* kept) {
    gemm_w4_rows<8>(w4, rows, from, panel, totals, kept);
  }
};

// Unpacked::unpack writes a part of K, one code a byte; Unpacked::run multiplies it by all the rows.
template <class Unpacked, int kBits>
void gemm_w4_unpacked(const GemmW4& w4, const RowCodes& rows, const Codes& packed, int64_t panel, float* totals,
                      int32_t* kept) {
  constexpr int64_t kBlocks = 16;  // of each panel: 8 KB, a third of a first-level cache for two
  alignas(64) uint8_t unpacked[kTilePanels][kBlocks * 512];
  const int64_t blocks = std::min(w4.blocks, kBlocks), groups = kBlocks / blocks;
  Codes part = packed;
  part.next_codes = w4.blocks * 512;
  part.next_lines = groups * (blocks * kBits + 1);
  for (int64_t g = 0; g < w4.groups; g += groups) {
    part.group_begin = g;
    part.group_end = std::min(g + groups, w4.groups);
    for (int64_t b = 0; b < w4.blocks; b += blocks) {
      part.block_begin = b;
      part.block_end = std::min(b + blocks, w4.blocks);
      const bool last = part.group_end == w4.groups && part.block_end == w4.blocks;
      for (int p = 0; p < kTilePanels; ++p) {
        const uint8_t* const end = packed.codes[p] + (part.group_end - 1) * w4.record + part.block_end * 64 * kBits;
        part.next[p] = end + (last ? (kTilePanels - 1) * w4.groups * w4.record : 0);
        part.scale[p] = packed.scale[p] + g * w4.record;
        part.codes[p] = unpacked[p];
        for (int64_t i = g; i < part.group_end; ++i) {
          Unpacked::template unpack<kBits>(w4, rows, packed.codes[p] + i * w4.record + b * 64 * kBits,
                                           part.block_end - b, unpacked[p] + (i - g) * part.next_codes);
        }
        // Tiles take blocks two by two.
        if (w4.groups == 1 && part.block_end % 2 != 0) std::memset(unpacked[p] + (part.block_end - b) * 512, 0, 512);
      }
      Unpacked::run(w4, rows, part, panel, totals, kept);
    }
  }
}

// Rows of y lie far apart, each on pages of its own, so that 128 bytes to each of 128 rows are slow to write: so many times
// kTilePanels panels are written at once.
constexpr int64_t kWrittenAtOnce = 8;

template <class Unpacked, int kBits>
void gemm_w4_panels(const GemmW4& w4, const RowCodes& rows, int64_t panel_begin, int64_t panel_end) {
  alignas(64) float totals[kWrittenAtOnce * kRowBlock * kTileFloats];
  alignas(64) int32_t kept[kRowBlock * kTileFloats];  // sums of a group that is longer than a part
  const int64_t panel_bytes = w4.groups * w4.record, place = rows.count * kTileFloats;
  for (int64_t first = panel_begin; first < panel_end; first += kWrittenAtOnce * kTilePanels) {
    const int64_t last = std::min(panel_end, first + kWrittenAtOnce * kTilePanels);
    float* here = totals;
    for (int64_t panel = first; panel < last; panel += kTilePanels, here += place) {
      Codes from{};
      for (int p = 0; p < kTilePanels; ++p) {
        from.scale[p] = w4.records + (panel + p) * panel_bytes;
        from.codes[p] = from.scale[p] + kScaleBytes;
      }
      from.next_codes = from.next_scale = w4.record;
      from.panel_bytes = panel_bytes;
      from.group_end = w4.groups;
      from.block_end = w4.blocks;
      for (int64_t i = 0; i < place; i += kPanel) LowBit::store_floats(here + i, LowBit::set_float(0), kPanel);
      if (rows.count <= Unpacked::kRowsInRegisters) {
        gemm_w4_rows<kBits>(w4, rows, from, panel, here, kept);
      } else if (rows.count <= Unpacked::kRowsStreamed) {
        if constexpr (Unpacked::kRowsStreamed != 0) {
          Unpacked::template run_stream<kBits>(w4, rows, from, panel, here, kept);
        }
      } else {
        gemm_w4_unpacked<Unpacked, kBits>(w4, rows, from, panel, here, kept);
      }
    }
    for (int64_t row = 0; row < rows.count; ++row) {
      const LowBit::Floats scale = LowBit::set_float(rows.scale[row]);
      for (int64_t panel = first; panel < last; ++panel) {
        const int64_t channel = panel * kPanel, step = (panel - first) / kTilePanels, p = (panel - first) % kTilePanels;
        if (channel >= w4.channels) break;
        const LowBit::Floats total = LowBit::load_floats(totals + step * place + row * kTileFloats + p * kPanel);
        LowBit::store_float_type(rows.y_type, rows.y, row * rows.y_stride + channel, LowBit::mul(total, scale),
                                 std::min<int64_t>(kPanel, w4.channels - channel));
      }
    }
  }
}

template <class Unpacked>
void gemm_w4(const GemmW4& w4, const RowCodes& rows, int64_t panel_begin, int64_t panel_end) {
  if (w4.bits == 4) return gemm_w4_panels<Unpacked, 4>(w4, rows, panel_begin, panel_end);
  if (w4.bits == 3) return gemm_w4_panels<Unpacked, 3>(w4, rows, panel_begin, panel_end);
  gemm_w4_panels<Unpacked, 2>(w4, rows, panel_begin, panel_end);
}

}  // namespace
}  // namespace pyquant
