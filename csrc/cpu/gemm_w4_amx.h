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
  static constexpr int64_t kKeptBytes = kTileFloats * sizeof(int32_t);  // of a row

  // The sums of a group, of one or two tiles of rows: tile 2 * (rows) + panel.
  struct Unit {
    int64_t group = 0, first = 0;
    int tiles = 0;  // 0: there are none
  };

  const GemmW4& w4;
  const RowCodes& rows;
  const Codes& from;
  int64_t panel;
  float* totals;
  int32_t* kept;
  int64_t tiles;
  int64_t height;  // rows of a tile
  int64_t depth;   // k of a tile
  int32_t zero;    // taken off the weights' codes
  Ahead ahead;
  alignas(64) int32_t sums[2][4][kTileRows][kPanel];
  int turn = 0;   // where the sums in the tiles will go
  Unit summed;    // in the tiles
  Unit stored;    // in sums[1 - turn], still to be added to the totals

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
        zero(zero_of(w4, rows)),
        ahead(from, (tiles + 1) / 2 * (from.group_end - from.group_begin) * steps()) {
    const TileShapes shapes(height, depth);
    _tile_loadconfig(&shapes);
  }
  ~AmxRows() { _tile_release(); }

  // Of a group, in this part of K.
  int64_t steps() const { return ((from.block_end - from.block_begin) * kBlock + depth - 1) / depth; }

  // Tiles multiply signed codes as well as unsigned ones: a zero point that all groups share is taken off the codes where
  // they are unpacked, if a byte holds what is left. Then the sums need no correction.
  static int32_t zero_of(const GemmW4& w4, const RowCodes& rows) {
    return rows.seed != nullptr && w4.zero[0] >= -100 && w4.zero[0] <= 100 ? w4.zero[0] : 0;
  }

  template <int kBits>
  static void unpack(const GemmW4& w4, const RowCodes& rows, const uint8_t* from, int64_t blocks, uint8_t* to) {
    const __m512i zeros = _mm512_set1_epi8(static_cast<char>(zero_of(w4, rows)));
    for (int64_t b = 0; b < blocks; ++b, from += 64 * kBits, to += 512) {
#pragma GCC unroll 8
      for (int q = 0; q < 8; ++q) {
        LowBit::store_quad(to + 64 * q, _mm512_sub_epi8(LowBit::quad<kBits>(from, q), zeros));
      }
    }
  }

  static void run(const GemmW4& w4, const RowCodes& rows, const Codes& from, int64_t panel, float* totals,
                  int32_t* kept) {
    AmxRows call(w4, rows, from, panel, totals, kept);
    for (int64_t t = 0; t < call.tiles; t += 2) {
      t + 1 < call.tiles ? call.row_tiles<2>(t * call.height) : call.row_tiles<1>(t * call.height);
    }
    call.drain();
  }

  template <int kBits>
  static void run_stream(const GemmW4& w4, const RowCodes& rows, const Codes& from, int64_t panel, float* totals,
                         int32_t* kept) {
    AmxRows call(w4, rows, from, panel, totals, kept);
    call.tiles == 1 ? call.stream<1, kBits>() : call.stream<2, kBits>();
    call.drain();
  }

  // T tiles of rows from `first` on. The last may read rows behind the last one; their sums are not used.
  template <int T>
  void row_tiles(int64_t first) {
    for (int64_t g = from.group_begin; g < from.group_end; ++g) {
      const int64_t offset = (g - from.group_begin) * from.next_codes;
      multiply<T>(g, first, [&](int p, int64_t b) {
        return from.codes[p] + offset + (b - from.block_begin) * kBlock * kPanel;
      });
    }
  }

  // Up to two tiles of rows: codes are unpacked just before they are multiplied, at the pace at which memory brings them.
  template <int T, int kBits>
  void stream() {
    alignas(64) uint8_t unpacked[2][kTilePanels][kChunk * kPanel];
    const int64_t blocks = depth / kBlock;
    for (int64_t g = 0; g < w4.groups; ++g) {
      multiply<T>(g, 0, [&](int p, int64_t b) {
        uint8_t* const to = unpacked[(g + b / blocks) % 2][p];
        const uint8_t* const packed = from.codes[p] + g * from.next_codes + b * 64 * kBits;
        if (b == 0) prefetch_panel(from, p, packed - kScaleBytes, 1);
        prefetch_panel(from, p, packed, blocks * kBits);
        unpack<kBits>(w4, rows, packed, 1, to);
        if (b + 1 < w4.blocks) {
          unpack<kBits>(w4, rows, packed + 64 * kBits, 1, to + 512);
        } else {
          std::memset(to + 512, 0, 512);
        }
        return to;
      });
    }
  }

  // Multiplies the blocks of group g that there are; weights(panel, block) gives the codes of 64 k. A product takes 52
  // cycles to arrive and a tile is stored when it has, so each of the group before is stored only when its turn to be
  // summed anew comes; the one before that goes to the totals meanwhile, in between the products.
  template <int T, class Weights>
  void multiply(int64_t g, int64_t first, const Weights& weights) {
    for (int64_t b = from.block_begin; b < from.block_end; b += depth / kBlock) {
      const int64_t k = (g * w4.blocks + b) * kBlock;
      const int8_t* x = rows.x + k / kChunk * rows.chunk + first * kChunk + k % kChunk;
      const bool begin = b == from.block_begin;
      _tile_loadd(6, weights(0, b), 64);
      _tile_loadd(4, x, kChunk);
      if (begin) change<0, T>(first);
      _tile_dpbssd(0, 4, 6);
      if (begin) finish(0);
      ahead.step();
      _tile_loadd(7, weights(1, b), 64);
      if (begin) change<1, T>(first);
      _tile_dpbssd(1, 4, 7);
      if (begin) finish(1);
      if (T == 2) _tile_loadd(5, x + height * kChunk, kChunk);
      if (begin) change<2, T>(first);
      if (T == 2) _tile_dpbssd(2, 5, 6);
      if (begin) finish(2);
      if (begin) change<3, T>(first);
      if (T == 2) _tile_dpbssd(3, 5, 7);
      if (begin) finish(3);
    }
    advance({g, first, T});
  }

  // Stores tile I, if it holds sums, and lets it begin those of rows from `first` on, T tiles of them.
  template <int I, int T>
  void change(int64_t first) {
    if (summed.tiles > I / 2) store<I>();
    if (I / 2 < T) from.block_begin == 0 ? zero_tile<I>() : load_tile<I>(place<I>(first));
  }

  // Between parts of a long group its sums are kept beside each other; those of a whole one are to be added up.
  template <int I>
  void store() {
    from.block_end == w4.blocks ? store_tile<I>(sums[turn][I][0], 64)
                                : store_tile<I>(place<I>(summed.first), kKeptBytes);
  }

  template <int I>
  int32_t* place(int64_t first) const {
    return kept + (first + I / 2 * height) * kTileFloats + I % 2 * kPanel;
  }

  void advance(const Unit& next) {
    stored = summed;
    if (from.block_end != w4.blocks) stored.tiles = 0;
    summed = next;
    turn = 1 - turn;
  }

  void drain() {
    for (int i = 0; i < 4; ++i) finish(i);
    if (summed.tiles > 0) store<0>(), store<1>();
    if (summed.tiles > 1) store<2>(), store<3>();
    advance({});
    for (int i = 0; i < 4; ++i) finish(i);
  }

  // gcc wants the number of a tile to be a digit.
  template <int I>
  static void zero_tile() {
    if (I == 0) _tile_zero(0);
    if (I == 1) _tile_zero(1);
    if (I == 2) _tile_zero(2);
    if (I == 3) _tile_zero(3);
  }
  template <int I>
  static void load_tile(const int32_t* at) {
    if (I == 0) _tile_loadd(0, at, kKeptBytes);
    if (I == 1) _tile_loadd(1, at, kKeptBytes);
    if (I == 2) _tile_loadd(2, at, kKeptBytes);
    if (I == 3) _tile_loadd(3, at, kKeptBytes);
  }
  template <int I>
  static void store_tile(int32_t* to, int64_t stride) {
    if (I == 0) _tile_stored(0, to, stride);
    if (I == 1) _tile_stored(1, to, stride);
    if (I == 2) _tile_stored(2, to, stride);
    if (I == 3) _tile_stored(3, to, stride);
  }

  // Adds stored sums of tile i to the totals.
  void finish(int i) {
    if (stored.tiles <= i / 2) return;
    const int p = i % 2;
    const int64_t g = stored.group, row = stored.first + i / 2 * height, entry = g * rows.count + row;
    const int64_t count = std::min(height, rows.count - row), constants = ((panel + p) * w4.groups + g) * kPanel;
    const int32_t* const at = sums[1 - turn][i][0];
    if (zero != 0) return add_to_totals(g, row, count, p, at, [](int64_t, LowBit::Ints sum) { return sum; });
    if (rows.seed != nullptr) {
      return add_to_totals(g, row, count, p, at, [&](int64_t r, LowBit::Ints sum) {
        return LowBit::add_ints(sum, LowBit::set_int(rows.seed[entry + r]));
      });
    }
    if (w4.pair != nullptr) {
      return add_to_totals(g, row, count, p, at, [&](int64_t r, LowBit::Ints sum) {
        return LowBit::add_pair(sum, w4.pair + constants, rows.pair[entry + r]);
      });
    }
    const LowBit::Ints zeros = LowBit::load_ints(w4.zero + constants), codes = LowBit::load_ints(w4.sum + constants);
    add_to_totals(g, row, count, p, at, [&](int64_t r, LowBit::Ints sum) {
      const LowBit::Ints from_w = LowBit::mul_ints(LowBit::set_int(rows.sum[entry + r]), zeros);
      const LowBit::Ints from_x = LowBit::mul_ints(LowBit::set_int(rows.zero[row + r]), codes);
      return LowBit::sub_ints(LowBit::sub_ints(sum, from_w), from_x);
    });
  }

  template <class Correct>
  void add_to_totals(int64_t g, int64_t row, int64_t count, int p, const int32_t* at, const Correct& correct) {
    const LowBit::Floats scale = LowBit::load_floats(
        reinterpret_cast<const float*>(from.scale[p] + (g - from.group_begin) * from.next_scale));
    float* total = totals + row * kTileFloats + p * kPanel;
#pragma GCC unroll 8
    for (int64_t r = 0; r < count; ++r, at += kPanel, total += kTileFloats) {
      const LowBit::Floats product = LowBit::mul(LowBit::to_float(correct(r, LowBit::load_ints(at))), scale);
      LowBit::store_floats(total, LowBit::add(LowBit::load_floats(total), product), kPanel);
    }
  }
};

}  // namespace
}  // namespace pyquant
