// Unpacked low-bit codes times rows on AMX tiles, in terms of LowBit of AVX-512. Up to sixteen rows x sixteen channels x
// 64 k an instruction; a group of 32 makes half tiles. What a group's sums still need (zero points, scale, totals) runs
// on the vector ports while the tiles multiply the next group.
#pragma once
#include "cpu/gemm_w4_panels.h"

namespace pyquant {
namespace {

constexpr int64_t kTileRows = 16;

// Tiles 0 to 3 sum (2 * rows + panel), 4 and 5 hold activations, 6 and 7 weights.
struct alignas(64) TileShapes {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  TileShapes(int64_t height, int64_t depth) {
    for (int t = 0; t < 8; ++t) {
      row_bytes[t] = static_cast<uint16_t>(t == 4 || t == 5 ? depth : 64);
      rows[t] = static_cast<uint8_t>(t < 6 ? height : depth / 4);
    }
  }
};

struct AmxRows {
  static constexpr int64_t kRowsInRegisters = 4;
  static constexpr int64_t kRowsStreamed = 2 * kTileRows;

  using Sums = int32_t[2][kTilePanels][kTileRows][kPanel];

  const GemmW4& w4;
  const RowCodes& rows;
  const Codes& from;
  int64_t panel;
  float* totals;
  int32_t* kept;
  int64_t tiles;
  int64_t height;  // rows of a tile
  int64_t depth;   // k of a tile
  Ahead ahead;

  AmxRows(const GemmW4& w4_, const RowCodes& rows_, const Codes& from_, int64_t panel_, float* totals_, int32_t* kept_)
      : w4(w4_),
        rows(rows_),
        from(from_),
        panel(panel_),
        totals(totals_),
        kept(kept_),
        tiles((rows.count + kTileRows - 1) / kTileRows),
        height((rows.count + tiles - 1) / tiles),
        depth(w4.blocks == 1 ? kBlock : kChunk),
        ahead(from, (tiles + 1) / 2 * (from.group_end - from.group_begin)) {
    const TileShapes shapes(height, depth);
    _tile_loadconfig(&shapes);
  }
  ~AmxRows() { _tile_release(); }

  static void run(const GemmW4& w4, const RowCodes& rows, const Codes& from, int64_t panel, float* totals,
                  int32_t* kept) {
    AmxRows call(w4, rows, from, panel, totals, kept);
    for (int64_t t = 0; t < call.tiles; t += 2) {
      t + 1 < call.tiles ? call.row_tiles<2>(t * call.height) : call.row_tiles<1>(t * call.height);
    }
  }

  template <int kBits>
  static void run_stream(const GemmW4& w4, const RowCodes& rows, const Codes& from, int64_t panel, float* totals,
                         int32_t* kept) {
    AmxRows call(w4, rows, from, panel, totals, kept);
    call.tiles == 1 ? call.stream<1, kBits>() : call.stream<2, kBits>();
  }

  // T tiles of rows from `first` on. The last may read rows behind the last one; their sums are not used.
  template <int T>
  void row_tiles(int64_t first) {
    alignas(64) Sums sums[2];
    for (int64_t g = from.group_begin; g < from.group_end; ++g) {
      multiply<T>(g, first, sums[g % 2]);
      ahead.step();
      if (g > from.group_begin) finish<T>(g - 1, first, sums[(g - 1) % 2]);
    }
    finish<T>(from.group_end - 1, first, sums[(from.group_end - 1) % 2]);
  }

  template <int T>
  void multiply(int64_t g, int64_t first, Sums& sums) {
    const uint8_t* w[kTilePanels];
    for (int p = 0; p < kTilePanels; ++p) w[p] = from.codes[p] + (g - from.group_begin) * from.next_codes;
    begin<T>();
    const int64_t block = g * w4.blocks, end = (block + from.block_end) * kBlock;
    for (int64_t k = (block + from.block_begin) * kBlock; k < end; k += depth) {
      step<T>(k, first, w);
      for (int p = 0; p < kTilePanels; ++p) w[p] += depth * kPanel;
    }
    keep_sums<T>(sums);
  }

  // Up to two tiles of rows: codes are unpacked just before they are multiplied, at the pace at which memory brings them.
  template <int T, int kBits>
  void stream() {
    alignas(64) Sums sums[2];
    alignas(64) uint8_t unpacked[2][kTilePanels][kChunk * kPanel];
    const int64_t blocks = depth / kBlock;
    for (int64_t g = 0; g < w4.groups; ++g) {
      begin<T>();
      for (int64_t b = 0; b < w4.blocks; b += blocks) {
        const uint8_t* w[kTilePanels];
        for (int p = 0; p < kTilePanels; ++p) {
          uint8_t* const to = unpacked[b / blocks % 2][p];
          const uint8_t* const packed = from.codes[p] + g * from.next_codes + b * 64 * kBits;
          if (b == 0) prefetch_panel(from, p, packed - kScaleBytes, 1);
          prefetch_panel(from, p, packed, blocks * kBits);
          unpack_blocks<kBits>(packed, 1, to);
          if (b + 1 < w4.blocks) {
            unpack_blocks<kBits>(packed + 64 * kBits, 1, to + 512);
          } else {
            std::memset(to + 512, 0, 512);
          }
          w[p] = to;
        }
        step<T>((g * w4.blocks + b) * kBlock, 0, w);
      }
      keep_sums<T>(sums[g % 2]);
      if (g > 0) finish<T>(g - 1, 0, sums[(g - 1) % 2]);
    }
    finish<T>(w4.groups - 1, 0, sums[(w4.groups - 1) % 2]);
  }

  template <int T>
  static void begin() {
    _tile_zero(0);
    _tile_zero(1);
    if (T == 2) _tile_zero(2);
    if (T == 2) _tile_zero(3);
  }

  template <int T>
  void step(int64_t k, int64_t first, const uint8_t* const* w) const {
    const int8_t* x = rows.x + k / kChunk * rows.chunk + first * kChunk + k % kChunk;
    _tile_loadd(6, w[0], 64);
    _tile_loadd(4, x, kChunk);
    _tile_dpbsud(0, 4, 6);
    _tile_loadd(7, w[1], 64);
    _tile_dpbsud(1, 4, 7);
    if (T == 2) {
      _tile_loadd(5, x + height * kChunk, kChunk);
      _tile_dpbsud(2, 5, 6);
      _tile_dpbsud(3, 5, 7);
    }
  }

  template <int T>
  static void keep_sums(Sums& sums) {
    _tile_stored(0, sums[0][0], 64);
    _tile_stored(1, sums[0][1], 64);
    if (T == 2) _tile_stored(2, sums[1][0], 64);
    if (T == 2) _tile_stored(3, sums[1][1], 64);
  }

  template <int T>
  void finish(int64_t g, int64_t first, const Sums& sums) {
    for (int t = 0; t < T; ++t) {
      const int64_t row = first + t * height, count = std::min(height, rows.count - row);
      for (int p = 0; p < kTilePanels; ++p) finish_tile(g, row, count, p, sums[t][p][0]);
    }
  }

  void finish_tile(int64_t g, int64_t row, int64_t count, int p, const int32_t* sums) {
    const auto sum = [&](int64_t r) { return LowBit::load_ints(sums + r * kPanel); };
    const int64_t at = ((panel + p) * w4.groups + g) * kPanel, entry = g * rows.count + row;
    const int64_t place = row * kTileFloats + p * kPanel;
    int32_t* const keep = kept + place;
    const bool begun = from.block_begin != 0, last = from.block_end == w4.blocks;
    if (!last) {
      for (int64_t r = 0; r < count; ++r) {
        LowBit::Ints part = sum(r);
        if (begun) part = LowBit::add_ints(part, LowBit::load_ints(keep + r * kTileFloats));
        LowBit::store_ints(keep + r * kTileFloats, part);
      }
      return;
    }
    const LowBit::Floats scale = LowBit::load_floats(
        reinterpret_cast<const float*>(from.scale[p] + (g - from.group_begin) * from.next_scale));
    const auto add_to_totals = [&](int64_t r, LowBit::Ints all) {
      float* const total = totals + place + r * kTileFloats;
      if (begun) all = LowBit::add_ints(all, LowBit::load_ints(keep + r * kTileFloats));
      const LowBit::Floats product = LowBit::mul(LowBit::to_float(all), scale);
      LowBit::store_floats(total, LowBit::add(LowBit::load_floats(total), product), kPanel);
    };
    if (rows.seed != nullptr) {
      const int32_t* const seed = rows.seed + entry;
      for (int64_t r = 0; r < count; ++r) add_to_totals(r, LowBit::add_ints(sum(r), LowBit::set_int(seed[r])));
    } else if (w4.pair != nullptr) {
      const int32_t* const pair = rows.pair + entry;
      for (int64_t r = 0; r < count; ++r) add_to_totals(r, LowBit::add_pair(sum(r), w4.pair + at, pair[r]));
    } else {
      const LowBit::Ints zero = LowBit::load_ints(w4.zero + at), codes = LowBit::load_ints(w4.sum + at);
      for (int64_t r = 0; r < count; ++r) {
        const LowBit::Ints from_w = LowBit::mul_ints(LowBit::set_int(rows.sum[entry + r]), zero);
        const LowBit::Ints from_x = LowBit::mul_ints(LowBit::set_int(rows.zero[row + r]), codes);
        add_to_totals(r, LowBit::sub_ints(LowBit::sub_ints(sum(r), from_w), from_x));
      }
    }
  }
};

}  // namespace
}  // namespace pyquant
