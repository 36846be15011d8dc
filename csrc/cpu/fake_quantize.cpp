// Cuts a tensor into rows for the row kernels, shares them among threads, and combines the sums in a fixed order.
//
// Two plans. Long rows: (outer, channel) has `inner` consecutive elements with one scale. An item is a block of kBlock elements of
// one row, or as many rows of one `outer` as fit in a block.
// Short rows (depthwise 3x3, channels last): a tile of kTile consecutive elements carries its scales beside it, one an element,
// and walks down `outer`, so the scales are laid out once and the sums stay in L1.
#include "cpu/fake_quantize.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/fake_quantize_rows.h"
#include "cpu/threads.h"

namespace pyquant {
namespace {

constexpr int64_t kShort = 32;               // rows below this take the tiled plan
constexpr int64_t kBlock = 8192;             // elements that one item of long rows sums, and one staged write holds
constexpr int64_t kMostRows = kBlock / kShort;
constexpr int64_t kTile = 1024;              // most elements of a tile, whole steps; its sums and scales fit in L1
constexpr int64_t kBeside = 512;             // elements that steps side by side fill: less of L1 is faster where a tile has the choice
constexpr int64_t kStepsDown = 128;          // tile-fulls down `outer` that one item sums
constexpr int64_t kStreamBytes = 8 << 20;    // results beyond this would only push others out of the cache
constexpr int64_t kLine = 64;
constexpr int64_t kElementsAThread = 65536;  // below this a thread costs more than it brings

const RowKernels* rows_of(FakeQuantizeIsa isa) {
  switch (isa) {
    case FakeQuantizeIsa::avx512: return fake_quantize_rows_avx512();
    case FakeQuantizeIsa::avx2: return fake_quantize_rows_avx2();
    default: return fake_quantize_rows_portable();
  }
}

int64_t size_of(FloatType type) { return type == FloatType::f32 ? 4 : 2; }

const char* at(const void* p, int64_t bytes) { return static_cast<const char*>(p) + bytes; }
char* at(void* p, int64_t bytes) { return static_cast<char*>(p) + bytes; }

// The grid entries of an item, with what the quick kernels want.
struct Entries {
  alignas(64) float scale[kTile], zero[kTile], inverse[kTile], rest[kTile], first[kTile], last[kTile];

  RowGrid prepared(const RowKernels& kernels, const float* s, const float* z, int64_t n, CodeRange range) {
    RowGrid grid{s, z, range};
    grid.quick = kernels.prepare(s, z, n, range, inverse, rest, first, last);
    grid.inverse = inverse;
    grid.rest = rest;
    grid.first = first;
    grid.last = last;
    return grid;
  }
};
static_assert(kMostRows <= kTile, "an item's rows need entries");

// Rows of a result that begin at element `first`.
struct Rows {
  int64_t first, count, n, stride;
  bool contiguous() const { return count == 1 || n == stride; }
};

// Moves a row kernel over the tensor.
struct Walk {
  const GridLayout& grid;
  const RowKernels& kernels;
  int threads;
  FloatType order;  // of the entries of a tile
  bool quick;

  int64_t count() const { return grid.outer * grid.channels * grid.inner; }
  bool tiled() const { return grid.inner < kShort && grid.channels > 1; }
  // A lone channel is one row, however `outer` and `inner` share it.
  int64_t row() const { return grid.channels == 1 ? count() : grid.inner; }
  int64_t outer() const { return grid.channels == 1 ? 1 : grid.outer; }
  int workers() const { return static_cast<int>(std::min<int64_t>(threads, 1 + count() / kElementsAThread)); }
  CodeRange range() const { return {grid.qmin, grid.qmax}; }

  RowGrid entries(Entries& room, const float* scale, const float* zero, int64_t n) const {
    return quick ? room.prepared(kernels, scale, zero, n, range()) : RowGrid{scale, zero, range()};
  }

  // Long rows. Calls body(outer index, first channel, block, rows, their grid).
  int64_t blocks_a_row() const { return (row() + kBlock - 1) / kBlock; }
  int64_t rows_an_item() const { return std::max<int64_t>(1, std::min(grid.channels, kBlock / std::max<int64_t>(1, row()))); }
  template <class Body>
  void long_rows(Body body) const {
    const int64_t blocks = blocks_a_row(), together = rows_an_item(), across = (grid.channels + together - 1) / together;
    parallel_for(workers(), outer() * across * blocks, [&](int64_t begin, int64_t end) {
      Entries room;
      for (int64_t item = begin; item < end; ++item) {
        const int64_t block = item % blocks, o = item / blocks / across, c = item / blocks % across * together;
        const int64_t rows = std::min(together, grid.channels - c), n = std::min(kBlock, row() - block * kBlock);
        body(o, c, block, Rows{(o * grid.channels + c) * row() + block * kBlock, rows, n, n},
             entries(room, grid.scale + c, grid.zero_point + c, rows));
      }
      kernels.fence();
    });
  }

  // Short rows. A tile is `tile_channels` wide; where all channels fit, several `outer` steps lie side by side in it.
  int64_t period() const { return grid.channels * grid.inner; }
  int64_t tile_channels() const { return std::min(grid.channels, kTile / grid.inner); }
  int64_t tiles() const { return (grid.channels + tile_channels() - 1) / tile_channels(); }
  int64_t side_by_side() const { return tiles() > 1 ? 1 : std::max<int64_t>(1, std::min(grid.outer, kBeside / period())); }
  int64_t outer_block() const { return side_by_side() * kStepsDown; }
  int64_t outer_blocks() const { return (grid.outer + outer_block() - 1) / outer_block(); }

  // Calls body(block, first channel, channels, their grid, each) where each(step) calls step(rows).
  template <class Body>
  void short_rows(Body body) const {
    const int64_t across = tiles(), beside = side_by_side();
    parallel_for(workers(), outer_blocks() * across, [&](int64_t begin, int64_t end) {
      Entries room;
      RowGrid tile{};
      for (int64_t item = begin; item < end; ++item) {
        const int64_t block = item / across, first = item % across * tile_channels();
        const int64_t channels = std::min(tile_channels(), grid.channels - first), width = channels * grid.inner;
        // With one tile across, every item has the same scales.
        if (across > 1 || item == begin) tile = lay_out(room, first, channels, beside);
        const int64_t from = block * outer_block(), to = std::min(grid.outer, from + outer_block()), whole = (to - from) / beside;
        body(block, first, channels, tile, [&](auto step) {
          const int64_t start = from * period() + first * grid.inner;
          if (whole > 0) step(Rows{start, whole, beside * width, beside * period()});
          const int64_t left = to - from - whole * beside;
          if (left > 0) step(Rows{start + whole * beside * period(), 1, left * width, left * width});
        });
      }
      kernels.fence();
    });
  }

  // The entries of a tile, one an element; past its end, ones and zeros up to a whole step.
  RowGrid lay_out(Entries& room, int64_t first, int64_t channels, int64_t beside) const {
    int64_t i = 0;
    for (int64_t b = 0; b < beside; ++b)
      for (int64_t c = first; c < first + channels; ++c)
        for (int64_t k = 0; k < grid.inner; ++k, ++i) {
          room.scale[place(order, i)] = grid.scale[c];
          room.zero[place(order, i)] = grid.zero_point[c];
        }
    for (; i % kStep != 0; ++i) {
      room.scale[place(order, i)] = 1.0f;
      room.zero[place(order, i)] = 0.0f;
    }
    return entries(room, room.scale, room.zero, i);
  }

  // Calls call(rows, result, stream), where the result is that of the rows; past the cache only whole lines go: rows that do not
  // lie on lines are written to a block at hand first, and copied from there. Long rows come in one piece: they fit in the block.
  template <class Call>
  void write(void* result, int64_t size, bool stream, const Rows& rows, Call call) const {
    char* to = at(result, rows.first * size);
    if (!stream) {
      call(rows, to, false);
    } else if (reinterpret_cast<uintptr_t>(to) % kLine == 0 && (rows.count == 1 || rows.stride * size % kLine == 0)) {
      call(rows, to, true);
    } else {
      alignas(64) char stage[kBlock * sizeof(float)];
      const int64_t together = rows.contiguous() ? std::min(rows.count, std::max<int64_t>(1, kBlock / rows.n)) : 1;
      for (int64_t r = 0; r < rows.count; r += together) {
        const Rows part{rows.first + r * rows.stride, std::min(together, rows.count - r), rows.n, rows.stride};
        call(part, stage, false);
        kernels.copy(at(result, part.first * size), stage, part.count * part.n * size);
      }
    }
  }
};

struct Sums {
  double slope = 0.0, outside = 0.0;
  void add(const Sums& other) {
    slope += other.slope;
    outside += other.outside;
  }
};

// Where the sums of a channel go: from partial sums [runs][channels][blocks] in ascending order, or at once if there is but one.
struct Gradients {
  const GridLayout& grid;
  int64_t runs, blocks;
  float* dscale;
  float* dzero;
  std::unique_ptr<Sums[]> partial;

  Gradients(const GridLayout& grid_, int64_t runs_, int64_t blocks_, float* dscale_, float* dzero_)
      : grid(grid_), runs(runs_), blocks(blocks_), dscale(dscale_), dzero(dzero_) {
    if (dscale != nullptr && runs * blocks > 1) partial.reset(new Sums[static_cast<size_t>(runs * grid.channels * blocks)]);
  }

  // The sums of `rows` channels from c on.
  void put(int64_t run, int64_t c, int64_t block, int64_t rows, const double* slope, const double* outside) {
    if (partial) {
      Sums* to = partial.get() + (run * grid.channels + c) * blocks + block;
      for (int64_t r = 0; r < rows; ++r) to[r * blocks] = {slope[r], outside[r]};
    } else {
      for (int64_t r = 0; r < rows; ++r) finish(c + r, slope[r], outside[r]);
    }
  }

  void finish(int64_t c, double slope, double outside) {
    dscale[c] = static_cast<float>(slope);
    dzero[c] = static_cast<float>(-(static_cast<double>(grid.scale[c]) * outside));
  }

  void combine() {
    if (!partial) return;
    std::vector<Sums> totals(static_cast<size_t>(grid.channels));
    const Sums* next = partial.get();
    for (int64_t r = 0; r < runs; ++r)
      for (Sums& total : totals)
        for (int64_t b = 0; b < blocks; ++b) total.add(*next++);
    for (int64_t c = 0; c < grid.channels; ++c) {
      const Sums& total = totals[static_cast<size_t>(c)];
      finish(c, total.slope, total.outside);
    }
  }
};

}  // namespace

bool fake_quantize_has(FakeQuantizeIsa isa) {
  if (rows_of(isa) == nullptr) return false;
#if defined(__x86_64__)
  // All that setup.py lets the compiler use in the file, or a rare machine would meet an instruction it does not have.
  if (isa == FakeQuantizeIsa::avx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
  if (isa == FakeQuantizeIsa::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return true;
}

void fake_quantize_forward(FloatType type, const void* x, void* y, const GridLayout& grid, FakeQuantizeIsa isa, int threads) {
  const Walk walk{grid, *rows_of(isa), threads, type, true};
  const int64_t size = size_of(type);
  const bool stream = walk.count() * size >= kStreamBytes;
  const auto& kernels = walk.kernels.forward[static_cast<int>(type)];
  const auto run = [&](bool spread, const Rows& rows, const RowGrid& entries) {
    walk.write(y, size, stream, rows, [&](const Rows& part, void* to, bool past) {
      kernels[spread][past](at(x, part.first * size), to, part.count, part.n, part.stride, entries);
    });
  };
  if (walk.tiled()) {
    walk.short_rows([&](int64_t, int64_t, int64_t, const RowGrid& entries, auto each) {
      each([&](const Rows& rows) { run(true, rows, entries); });
    });
  } else {
    walk.long_rows([&](int64_t, int64_t, int64_t, const Rows& rows, const RowGrid& entries) { run(false, rows, entries); });
  }
}

void fake_quantize_backward(FloatType type, const void* dy, const void* x, void* dx, float* dscale, float* dzero,
                            const GridLayout& grid, FakeQuantizeIsa isa, int threads) {
  const Walk walk{grid, *rows_of(isa), threads, type, true};
  const int64_t size = size_of(type);
  const bool stream = walk.count() * size >= kStreamBytes;
  const bool sums = dscale != nullptr;
  const auto& kernels = walk.kernels.backward[static_cast<int>(type)];
  const auto run = [&](bool spread, const Rows& rows, const RowGrid& entries, double* slope, double* outside) {
    walk.write(dx, size, stream, rows, [&](const Rows& part, void* to, bool past) {
      const int64_t from = part.first * size;
      kernels[spread][sums][past](at(dy, from), at(x, from), to, part.count, part.n, part.stride, entries, slope, outside);
    });
  };
  if (walk.tiled()) {
    Gradients gradients(grid, 1, walk.outer_blocks(), dscale, dzero);
    walk.short_rows([&](int64_t block, int64_t first, int64_t channels, const RowGrid& entries, auto each) {
      alignas(64) double slope[kTile] = {};
      alignas(64) double outside[kTile] = {};
      each([&](const Rows& rows) { run(true, rows, entries, slope, outside); });
      if (!sums) return;
      for (int64_t c = 0; c < channels; ++c) {
        Sums total;
        for (int64_t b = 0; b < walk.side_by_side(); ++b)
          for (int64_t k = 0; k < grid.inner; ++k) {
            const int64_t j = place(type, (b * channels + c) * grid.inner + k);
            total.add({slope[j], outside[j]});
          }
        gradients.put(0, first + c, block, 1, &total.slope, &total.outside);
      }
    });
    gradients.combine();
  } else {
    Gradients gradients(grid, walk.outer(), walk.blocks_a_row(), dscale, dzero);
    walk.long_rows([&](int64_t o, int64_t c, int64_t block, const Rows& rows, const RowGrid& entries) {
      double slope[kMostRows], outside[kMostRows];
      run(false, rows, entries, slope, outside);
      if (sums) gradients.put(o, c, block, rows.count, slope, outside);
    });
    gradients.combine();
  }
}

bool fake_quantize_masks(const GridLayout& grid) { return grid.channels == 1 || grid.inner % kStep == 0; }

void fake_quantize_forward_masked(FloatType type, const void* x, void* y, uint32_t* inside, const GridLayout& grid,
                                  FakeQuantizeIsa isa, int threads) {
  const Walk walk{grid, *rows_of(isa), threads, type, true};
  const int64_t size = size_of(type);
  const bool stream = walk.count() * size >= kStreamBytes;
  const auto& kernels = walk.kernels.forward_masked[static_cast<int>(type)];
  walk.long_rows([&](int64_t, int64_t, int64_t, const Rows& rows, const RowGrid& entries) {
    walk.write(y, size, stream, rows, [&](const Rows& part, void* to, bool past) {
      kernels[past](at(x, part.first * size), to, inside + part.first / kStep, part.count, part.n, part.stride, entries);
    });
  });
}

void keep_inside(FloatType type, const void* dy, const uint32_t* inside, void* dx, int64_t count, FakeQuantizeIsa isa, int threads) {
  const GridLayout flat{nullptr, nullptr, 1, 1, count, 0.0f, 0.0f};
  const Walk walk{flat, *rows_of(isa), threads, type, false};
  const int64_t size = size_of(type);
  const bool stream = count * size >= kStreamBytes;
  const auto& kernels = walk.kernels.keep_inside[static_cast<int>(type)];
  walk.long_rows([&](int64_t, int64_t, int64_t, const Rows& rows, const RowGrid&) {
    walk.write(dx, size, stream, rows, [&](const Rows& part, void* to, bool past) {
      kernels[past](at(dy, part.first * size), inside + part.first / kStep, to, part.n);
    });
  });
}

void quantize_codes(FloatType type, const void* x, uint8_t* codes, const GridLayout& grid, FakeQuantizeIsa isa, int threads) {
  const Walk walk{grid, *rows_of(isa), threads, FloatType::f32, false};
  const int64_t size = size_of(type);
  const auto& kernels = walk.kernels.quantize[static_cast<int>(type)];
  const auto run = [&](bool spread, const Rows& rows, const RowGrid& entries) {
    kernels[spread](at(x, rows.first * size), codes + rows.first, rows.count, rows.n, rows.stride, entries);
  };
  if (walk.tiled()) {
    walk.short_rows([&](int64_t, int64_t, int64_t, const RowGrid& entries, auto each) {
      each([&](const Rows& rows) { run(true, rows, entries); });
    });
  } else {
    walk.long_rows([&](int64_t, int64_t, int64_t, const Rows& rows, const RowGrid& entries) { run(false, rows, entries); });
  }
}

}  // namespace pyquant
