// The low-bit matrix product compiled for the instruction set in this file's name; setup.py gives the flags.
#if defined(__x86_64__)
#include "cpu/low_bit_avx512.h"
// LowBit comes first: the kernels below are written in terms of it.
#include "cpu/gemm_w4_panels.h"
#include "cpu/quantize_row.h"
#include "cpu/vnni_tile.h"

namespace pyquant {
namespace {

struct VnniRows : PlainRows {
  static void run(const GemmW4& w4, const RowCodes& rows, const Codes& from, int64_t panel, float* totals,
                  int32_t* kept) {
    using Tile = void (*)(const VnniTile&);
    static constexpr Tile kTiles[] = {vnni_tile<1>, vnni_tile<2>, vnni_tile<3>, vnni_tile<4>,
                                      vnni_tile<5>, vnni_tile<6>, vnni_tile<7>, vnni_tile<8>,
                                      vnni_tile<9>, vnni_tile<10>, vnni_tile<11>, vnni_tile<12>};
    constexpr int64_t kMost = 12;
    static constexpr int32_t kZeros[kMost] = {};
    // The zero points of a row too long for pairs are left to the plain tile, which gets no blocks to multiply.
    const bool last = from.block_end == w4.blocks, wide = rows.seed == nullptr && w4.pair == nullptr;
    if (wide && w4.groups > 1) return PlainRows::run(w4, rows, from, panel, totals, kept);
    VnniTile t{};
    t.blocks = from.block_end - from.block_begin;
    t.chunk = rows.chunk;
    t.continued = from.block_begin != 0;
    t.end = !last || wide ? VnniEnd::keep : rows.seed != nullptr ? VnniEnd::total : VnniEnd::pairs_total;
    const int64_t tiles = (rows.count + kMost - 1) / kMost;
    Ahead ahead(from, tiles * (from.group_end - from.group_begin));
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t begin = i * rows.count / tiles, end = (i + 1) * rows.count / tiles;
      t.sums = kept + begin * kTileFloats;
      t.totals = totals + begin * kTileFloats;
      for (int64_t g = from.group_begin; g < from.group_end; ++g) {
        const int64_t block = g * w4.blocks + from.block_begin;
        t.x = rows.x + block / 2 * rows.chunk + begin * kChunk + block % 2 * kBlock;
        t.step[block % 2] = kBlock;
        t.step[1 - block % 2] = rows.chunk - kBlock;
        t.seed = rows.seed != nullptr ? rows.seed + g * rows.count + begin : kZeros;
        t.row_pair = rows.pair + g * rows.count + begin;
        for (int p = 0; p < kTilePanels; ++p) {
          const int64_t at = g - from.group_begin;
          t.codes[p] = from.codes[p] + at * from.next_codes;
          t.scale[p] = reinterpret_cast<const float*>(from.scale[p] + at * from.next_scale);
          t.pair[p] = w4.pair + ((panel + p) * w4.groups + g) * kPanel;
        }
        ahead.step();
        kTiles[end - begin - 1](t);
      }
    }
    if (last && wide) {
      Codes none = from;
      none.block_begin = none.block_end;
      PlainRows::run(w4, rows, none, panel, totals, kept);
    }
  }
};

}  // namespace

const GemmW4Kernels& gemm_w4_avx512() {
  static const GemmW4Kernels table = {kTilePanels, gemm_w4<VnniRows>, quantize_row};
  return table;
}

}  // namespace pyquant
#endif
