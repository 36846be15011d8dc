// Pixels in tiles of nearly equal height: a last tile of one row would waste most of its time waiting for its own
// results.
#pragma once
#include <cstdint>

namespace pyquant {
namespace {

struct Rows {
  int64_t tiles, low, tall_tiles;

  Rows(int64_t count, int64_t most)
      : tiles((count + most - 1) / most), low(count / tiles), tall_tiles(count % tiles) {}
  int64_t first(int64_t tile) const { return tile * low + (tile < tall_tiles ? tile : tall_tiles); }
  int64_t height(int64_t tile) const { return low + (tile < tall_tiles ? 1 : 0); }
};

}  // namespace
}  // namespace pyquant
