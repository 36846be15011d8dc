// A few rows times two, three or four-bit weights, in terms of LowBit: codes are unpacked in registers beside the dot
// product. Totals lie in memory, so that registers are for sums.
#pragma once
#include <algorithm>

#include "cpu/gemm_w4.h"

namespace pyquant {
namespace {

constexpr int kTilePanels = LowBit::kTilePanels;
constexpr int64_t kScaleBytes = kPanel * sizeof(float);
// Far enough for memory, near enough not to be evicted; measured.
constexpr int64_t kPrefetch = 1024;
constexpr int64_t kTileFloats = kTilePanels * kPanel;  // totals of a row

// Codes and scales of kTilePanels panels, packed or unpacked, and the part of K that they are: groups
// [group_begin, group_end), or of a long group blocks [block_begin, block_end), with sums kept in between.
struct Codes {
  const uint8_t* codes[kTilePanels];
  const uint8_t* scale[kTilePanels];
  int64_t next_codes;  // bytes from group to group
  int64_t next_scale;
  int64_t group_begin, group_end;
  int64_t block_begin, block_end;
  int64_t panel_bytes;  // packed
  const uint8_t* next[kTilePanels];  // the packed codes that come after this part: to be in the cache by then
  int64_t next_lines;                // of each panel
};

// Fetches `lines` of a packed panel, a fixed way ahead of `at`. Behind the panel's end comes the next one that is read
// beside the same neighbours: reading several panels at once is what keeps memory busy.
void prefetch_panel(const Codes& from, int p, const uint8_t* at, int64_t lines) {
  const uint8_t* to = at + kPrefetch;
  if (to >= from.scale[p] + from.panel_bytes) to += (kTilePanels - 1) * from.panel_bytes;
  for (int64_t i = 0; i < lines; ++i) LowBit::prefetch(to + 64 * i);
}

template <int R, int kBits>
void gemm_w4_tile(const GemmW4& w4, const RowCodes& rows, const Codes& from, int64_t first, int64_t panel,
                  float* totals, int32_t* kept) {
  constexpr int P = kTilePanels;
  for (int64_t g = from.group_begin; g < from.group_end; ++g) {
    LowBit::Ints acc[R][P];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) {
        acc[r][p] = from.block_begin != 0   ? LowBit::load_ints(kept + (r * P + p) * kPanel)
                    : rows.seed != nullptr ? LowBit::set_int(rows.seed[g * rows.count + first + r])
                                           : LowBit::set_int(0);
      }
    }
    const uint8_t* codes[P];
    for (int p = 0; p < P; ++p) {
      codes[p] = from.codes[p] + (g - from.group_begin) * from.next_codes;
      if (kBits != 8) prefetch_panel(from, p, codes[p] - kScaleBytes, 1);
    }
    for (int64_t b = g * w4.blocks + from.block_begin; b < g * w4.blocks + from.block_end; ++b) {
      const int8_t* x = rows.x + b / 2 * rows.chunk + first * kChunk + b % 2 * kBlock;
      LowBit::Sums sums[R][P];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) sums[r][p] = LowBit::open(acc[r][p]);
      }
      if (kBits != 8) {
        for (int p = 0; p < P; ++p) prefetch_panel(from, p, codes[p], kBits);
      }
#pragma GCC unroll LowBit::kQuadsUnrolled
      for (int q = 0; q < 8; ++q) {
        LowBit::Quad w[P];
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) w[p] = LowBit::template quad<kBits>(codes[p], q);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const auto four = LowBit::four(x + r * kChunk + 4 * q);
#pragma GCC unroll 2
          for (int p = 0; p < P; ++p) sums[r][p] = LowBit::dot_codes(sums[r][p], w[p], four);
        }
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) acc[r][p] = LowBit::close(acc[r][p], sums[r][p]);
      }
      for (int p = 0; p < P; ++p) codes[p] += 64 * kBits;
    }
    if (from.block_end != w4.blocks) {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) LowBit::store_ints(kept + (r * P + p) * kPanel, acc[r][p]);
      }
      continue;
    }
    if (rows.seed == nullptr) {
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) {
        const int64_t at = ((panel + p) * w4.groups + g) * kPanel;
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const int64_t row = first + r, entry = g * rows.count + row;
          if (w4.pair != nullptr) {
            acc[r][p] = LowBit::add_pair(acc[r][p], w4.pair + at, rows.pair[entry]);
          } else {
            const auto from_w = LowBit::mul_ints(LowBit::set_int(rows.sum[entry]), LowBit::load_ints(w4.zero + at));
            const auto from_x = LowBit::mul_ints(LowBit::set_int(rows.zero[row]), LowBit::load_ints(w4.sum + at));
            acc[r][p] = LowBit::sub_ints(LowBit::sub_ints(acc[r][p], from_w), from_x);
          }
        }
      }
    }
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) {
      const uint8_t* at = from.scale[p] + (g - from.group_begin) * from.next_scale;
      const LowBit::Floats scale = LowBit::load_floats(reinterpret_cast<const float*>(at));
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        float* to = totals + (r * P + p) * kPanel;
        const LowBit::Floats total = LowBit::mul(LowBit::to_float(acc[r][p]), scale);
        LowBit::store_floats(to, LowBit::add(LowBit::load_floats(to), total), kPanel);
      }
    }
  }
}

}  // namespace
}  // namespace pyquant
