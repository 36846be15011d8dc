// Convolution and matrix product on AMX tiles: sixteen pixels x sixteen channels x 64 codes an instruction.
//
// A panel of weights already is a sequence of B tiles, for [steps][16 channels][4] is what the instruction reads; the
// engine pads runs to whole chunks. Pixels at equal distances are A tiles where they lie; others are gathered first.
#pragma once
#include <immintrin.h>

#include "cpu/epilogue_pairs.h"
#include "cpu/kernels.h"

namespace pyquant {
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileBytes = 1024;

// Tiles 0 to 3 accumulate (2 * group + panel), 4 and 5 hold codes, 6 and 7 weights.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  TileConfig(int64_t pixels, int64_t chunk) {
    for (int t = 0; t < 8; ++t) {
      row_bytes[t] = static_cast<uint16_t>(t == 4 || t == 5 ? 4 * chunk : 64);
      rows[t] = static_cast<uint8_t>(t < 6 ? pixels : chunk);
    }
  }
};

// Where a group of pixels has its codes: tile c of segment s begins at base + offset.
struct PixelGroup {
  int64_t first;   // pixel
  int64_t begin;   // rows before it belong to the group before
  int64_t count;   // rows from there on that are its own
  const uint8_t* base;
  int64_t stride;  // bytes from row to row
  bool gathered;
};

// Pixels of one call, in groups of one height. Where a map has a halo, pixels are at equal distances within its rows only,
// in runs. Groups end where runs do if that wastes little of a tile: gathering takes up to a third of the products' time,
// and what it copies fills the cache three times over, for the taps of a row share their codes.
struct AmxCall {
  // Runs that fill less of their tiles than this are gathered.
  static constexpr int64_t kLeastRows = 10;
  static constexpr int64_t kMostRuns = kMostPixels / kLeastRows + 2;
  const ConvLayer& layer;
  const ConvPixels& pixels;
  int64_t chunks;  // of a segment
  int64_t rows;    // of a tile of codes
  int64_t count = 0;
  PixelGroup groups[kMostPixels / kLeastRows + kMostRuns];

  AmxCall(const ConvLayer& layer_, const ConvPixels& pixels_)
      : layer(layer_), pixels(pixels_), chunks(layer.steps / layer.chunk) {
    int64_t ends[kMostRuns], runs = 0, longest = 0;
    for (int64_t first = 0; first < pixels.count && runs < kMostRuns; first = ends[runs++]) {
      ends[runs] = run_end(first);
      longest = ends[runs] - first > longest ? ends[runs] - first : longest;
    }
    rows = even_height(longest);
    // Those that are cut off at the ends of the call, if they are short, do not fill a tile and are gathered.
    int64_t gathered = 0;
    for (int64_t r = 0; r < runs; ++r) gathered += ends[r] - (r > 0 ? ends[r - 1] : 0) < rows;
    const bool fits = ends[runs - 1] == pixels.count && gathered <= (pixels.count + kTileRows - 1) / kTileRows;
    if (fits && (runs == 1 || rows >= kLeastRows)) {
      for (int64_t r = 0; r < runs; ++r) add_groups(r > 0 ? ends[r - 1] : 0, ends[r], true);
    } else {
      rows = even_height(pixels.count);
      add_groups(0, pixels.count, false);
    }
  }

  const uint8_t* codes(const PixelGroup& group, int64_t segment, int64_t chunk) const {
    if (group.gathered) return group.base + (segment * chunks + chunk) * kTileBytes;
    return group.base + layer.segment_offset[segment] + chunk * layer.chunk * 4;
  }

 private:
  static int64_t even_height(int64_t count) {
    const int64_t tiles = (count + kTileRows - 1) / kTileRows;
    return (count + tiles - 1) / tiles;
  }

  // The pixels from `first` on that are at equal distances.
  int64_t run_end(int64_t first) const {
    const uint8_t* const* x = pixels.x;
    int64_t end = first + 1;
    if (end == pixels.count) return end;
    const int64_t stride = x[end] - x[first];
    while (end < pixels.count && x[end] - x[end - 1] == stride) ++end;
    return end;
  }

  // Groups of the pixels of one run, or of several with `run` false.
  void add_groups(int64_t first, int64_t end, bool run) {
    for (int64_t done = first; done < end;) {
      // The last group is as tall as the others, and does some of its neighbour's pixels again.
      const int64_t own = end - done < rows ? end - done : rows;
      const int64_t from = done + own - rows > 0 ? done + own - rows : 0;
      const uint8_t* const* x = pixels.x + from;
      const bool in_place = run && first <= from && from + rows <= end;
      groups[count] = {from, done - from, own, x[0], rows > 1 ? x[1] - x[0] : 0, !in_place};
      if (!in_place) gather(groups[count]);
      ++count;
      done += own;
    }
  }

  void gather(PixelGroup& group) {
    uint8_t* to = pixels.scratch + gathered_++ * layer.segments * chunks * kTileBytes;
    const uint8_t* const* x = pixels.x + group.first;
    group.base = to;
    group.stride = 64;
    const __mmask64 mask = ~__mmask64{0} >> (64 - 4 * layer.chunk);
    for (int64_t s = 0; s < layer.segments; ++s) {
      for (int64_t c = 0; c < chunks; ++c) {
        const int64_t offset = layer.segment_offset[s] + c * layer.chunk * 4;
        for (int64_t r = 0; r < rows; ++r) {
          _mm512_store_si512(to + r * 64, _mm512_maskz_loadu_epi8(mask, x[r] + offset));
        }
        to += kTileBytes;
      }
    }
  }

  int64_t gathered_ = 0;
};

// The sums of some groups of pixels x panels. There are two: one is finished while the products of the next ones are
// under way, for those take long but few instructions, and what was just stored cannot be loaded at once.
struct AmxSums {
  const PixelGroup* groups = nullptr;
  int64_t count = 0, panel = 0, panels = 0;
  alignas(64) int32_t sums[2][2][kTileRows][kLanes];

  void finish(const AmxCall& call) const {
    for (int64_t g = 0; g < count; ++g) {
      const int64_t begin = groups[g].begin;
      finish_panels(call.layer, call.pixels, groups[g].first + begin, groups[g].count, panel, panels, sums[g][0][begin],
                    kTileRows * kLanes);
    }
  }
};

// Multiplies G groups by P panels; finishes the sums of the block before, then stores its own.
template <int G, int P>
void amx_block(const AmxCall& call, const PixelGroup* groups, int64_t panel, AmxSums& sums) {
  const ConvLayer& layer = call.layer;
  const int64_t panel_bytes = layer.segments * layer.steps * (kLanes * 4);
  const int8_t* w = layer.weight + panel * panel_bytes;
  const int32_t* seed = layer.seed + panel * kLanes;
  // Rows 0 bytes apart: every pixel starts from the same seeds.
  _tile_loadd(0, seed, 0);
  if (P == 2) _tile_loadd(1, seed + kLanes, 0);
  if (G == 2) _tile_loadd(2, seed, 0);
  if (G == 2 && P == 2) _tile_loadd(3, seed + kLanes, 0);
  for (int64_t s = 0; s < layer.segments; ++s) {
    for (int64_t c = 0; c < call.chunks; ++c) {
      _tile_loadd(6, w, 64);
      _tile_loadd(4, call.codes(groups[0], s, c), groups[0].stride);
      _tile_dpbusd(0, 4, 6);
      if (P == 2) {
        _tile_loadd(7, w + panel_bytes, 64);
        _tile_dpbusd(1, 4, 7);
      }
      if (G == 2) {
        _tile_loadd(5, call.codes(groups[G - 1], s, c), groups[G - 1].stride);
        _tile_dpbusd(2, 5, 6);
        if (P == 2) _tile_dpbusd(3, 5, 7);
      }
      w += layer.chunk * kLanes * 4;
    }
  }
  sums.finish(call);
  sums.groups = groups;
  sums.count = G;
  sums.panel = panel;
  sums.panels = P;
  _tile_stored(0, sums.sums[0][0], 64);
  if (P == 2) _tile_stored(1, sums.sums[0][1], 64);
  if (G == 2) _tile_stored(2, sums.sums[1][0], 64);
  if (G == 2 && P == 2) _tile_stored(3, sums.sums[1][1], 64);
}

void conv_amx(const ConvLayer& layer, const ConvPixels& pixels, int64_t panel_begin, int64_t panel_end) {
  if (pixels.count == 0) return;
  const AmxCall call(layer, pixels);
  const int64_t count = call.count;
  const TileConfig config(call.rows, layer.chunk);
  _tile_loadconfig(&config);
  AmxSums sums[2];
  int64_t blocks = 0;
  const auto block = [&](int64_t g, int64_t groups, int64_t panel, int64_t panels) {
    constexpr decltype(&amx_block<1, 1>) kBlocks[2][2] = {{amx_block<1, 1>, amx_block<1, 2>},
                                                          {amx_block<2, 1>, amx_block<2, 2>}};
    kBlocks[groups - 1][panels - 1](call, call.groups + g, panel, sums[blocks++ % 2]);
  };
  const int64_t together = weights_stay(layer, panel_end - panel_begin) ? 2 : count;
  for (int64_t from = 0; from < count; from += together) {
    const int64_t to = from + together < count ? from + together : count;
    for (int64_t panel = panel_begin; panel < panel_end; panel += 2) {
      for (int64_t g = from; g < to; g += 2) {
        block(g, to - g < 2 ? 1 : 2, panel, panel_end - panel < 2 ? 1 : 2);
      }
    }
  }
  sums[blocks % 2].finish(call);
  sums[(blocks + 1) % 2].finish(call);
  _tile_release();
}

}  // namespace
}  // namespace pyquant
