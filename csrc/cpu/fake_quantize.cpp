// Cuts a tensor into rows for the row kernels, shares them among threads, and combines the sums in a fixed order.
//
// Two plans. Long rows: (outer, channel) has `inner` consecutive elements with one scale, in blocks of kBlock.
// Short rows (depthwise 3x3, channels last, small groups): a tile of kTile consecutive elements carries its scales beside it,
// one an element, and walks down `outer`, so the scales are laid out once and the sums stay in L1.
#include "cpu/fake_quantize.h"

#include <algorithm>
#include <vector>

#include "cpu/fake_quantize_rows.h"
#include "cpu/threads.h"

namespace pyquant {
namespace {

constexpr int64_t kShort = 32;              // rows below this take the tiled plan
constexpr int64_t kBlock = 16384;           // elements of a long row that one item sums
constexpr int64_t kTile = 1024;             // elements of a tile; four arrays of it fit in L1
constexpr int64_t kStepsDown = 64;          // tile-fulls down `outer` that one item sums
constexpr int64_t kStreamBytes = 8 << 20;   // results beyond this would only push others out of the cache
constexpr int64_t kElementsAThread = 65536;  // below this a thread costs more than it brings

const RowKernels* rows_of(FakeQuantizeIsa isa) {
  switch (isa) {
    case FakeQuantizeIsa::avx512: return fake_quantize_rows_avx512();
    case FakeQuantizeIsa::avx2: return fake_quantize_rows_avx2();
    default: return fake_quantize_rows_portable();
  }
}

// Moves a row kernel over the tensor.
struct Walk {
  const GridLayout& grid;
  const RowKernels& kernels;
  int threads;

  int64_t count() const { return grid.outer * grid.channels * grid.inner; }
  bool tiled() const { return grid.inner < kShort && grid.channels > 1; }
  // A lone channel is one row, however `outer` and `inner` share it.
  int64_t row() const { return grid.channels == 1 ? count() : grid.inner; }
  int64_t rows() const { return grid.channels == 1 ? 1 : grid.outer * grid.channels; }
  int workers() const { return static_cast<int>(std::min<int64_t>(threads, 1 + count() / kElementsAThread)); }

  // Long rows: body(block, channel, first element, length).
  int64_t blocks_a_row() const { return (row() + kBlock - 1) / kBlock; }
  template <class Body>
  void long_rows(Body body) const {
    const int64_t blocks = blocks_a_row();
    parallel_for(workers(), rows() * blocks, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t r = item / blocks, from = item % blocks * kBlock;
        body(item, r % grid.channels, r * row() + from, std::min(kBlock, row() - from));
      }
      kernels.fence();
    });
  }

  // Short rows. A tile is `tile_channels` wide; where all channels fit, several `outer` steps lie side by side in it.
  int64_t period() const { return grid.channels * grid.inner; }
  int64_t tile_channels() const { return std::min(grid.channels, kTile / grid.inner); }
  int64_t tiles() const { return (grid.channels + tile_channels() - 1) / tile_channels(); }
  int64_t side_by_side() const { return tiles() > 1 ? 1 : std::max<int64_t>(1, std::min(grid.outer, kTile / period())); }
  int64_t outer_block() const { return side_by_side() * kStepsDown; }
  int64_t outer_blocks() const { return (grid.outer + outer_block() - 1) / outer_block(); }

  // Calls body(block, first channel, width, scale, zero, each) where each(step) calls step(first element, length).
  template <class Body>
  void short_rows(Body body) const {
    const int64_t across = tiles(), beside = side_by_side();
    parallel_for(workers(), outer_blocks() * across, [&](int64_t begin, int64_t end) {
      alignas(64) float scale[kTile];
      alignas(64) float zero[kTile];
      for (int64_t item = begin; item < end; ++item) {
        const int64_t block = item / across, first = item % across * tile_channels();
        const int64_t channels = std::min(tile_channels(), grid.channels - first), width = channels * grid.inner;
        // With one tile across, every item has the same scales.
        if (across > 1 || item == begin) {
          int64_t at = 0;
          for (int64_t b = 0; b < beside; ++b)
            for (int64_t c = first; c < first + channels; ++c, at += grid.inner) {
              std::fill_n(scale + at, grid.inner, grid.scale[c]);
              std::fill_n(zero + at, grid.inner, grid.zero_point[c]);
            }
        }
        const int64_t last = std::min(grid.outer, (block + 1) * outer_block());
        body(block, first, channels, scale, zero, [&](auto step) {
          for (int64_t o = block * outer_block(); o < last; o += beside)
            step(o * period() + first * grid.inner, std::min(beside, last - o) * width);
        });
      }
      kernels.fence();
    });
  }
};

struct Sums {
  double slope, outside;
};

// The gradients of every channel from partial sums [runs][channels][blocks], in ascending order.
void combine(const std::vector<Sums>& partial, const GridLayout& grid, int64_t runs, int64_t blocks, float* dscale, float* dzero) {
  for (int64_t c = 0; c < grid.channels; ++c) {
    Sums total{0.0, 0.0};
    for (int64_t r = 0; r < runs; ++r)
      for (int64_t b = 0; b < blocks; ++b) {
        const Sums& part = partial[static_cast<size_t>((r * grid.channels + c) * blocks + b)];
        total.slope += part.slope;
        total.outside += part.outside;
      }
    dscale[c] = static_cast<float>(total.slope);
    dzero[c] = static_cast<float>(-(static_cast<double>(grid.scale[c]) * total.outside));
  }
}

int64_t size_of(FloatType type) { return type == FloatType::f32 ? 4 : 2; }

const char* at(const void* p, int64_t bytes) { return static_cast<const char*>(p) + bytes; }
char* at(void* p, int64_t bytes) { return static_cast<char*>(p) + bytes; }

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
  const Walk walk{grid, *rows_of(isa), threads};
  const int64_t size = size_of(type);
  const bool stream = walk.count() * size >= kStreamBytes;
  const CodeRange range{grid.qmin, grid.qmax};
  const auto& kernels = walk.kernels.forward[static_cast<int>(type)];
  if (walk.tiled()) {
    walk.short_rows([&](int64_t, int64_t, int64_t, const float* scale, const float* zero, auto each) {
      each([&](int64_t i, int64_t n) { kernels[1](at(x, i * size), at(y, i * size), n, scale, zero, range, stream); });
    });
  } else {
    walk.long_rows([&](int64_t, int64_t c, int64_t i, int64_t n) {
      kernels[0](at(x, i * size), at(y, i * size), n, grid.scale + c, grid.zero_point + c, range, stream);
    });
  }
}

void fake_quantize_backward(FloatType type, const void* dy, const void* x, void* dx, float* dscale, float* dzero,
                            const GridLayout& grid, FakeQuantizeIsa isa, int threads) {
  const Walk walk{grid, *rows_of(isa), threads};
  const int64_t size = size_of(type);
  const bool stream = walk.count() * size >= kStreamBytes;
  const bool sums = dscale != nullptr;
  const CodeRange range{grid.qmin, grid.qmax};
  const auto& kernels = walk.kernels.backward[static_cast<int>(type)];
  const auto call = [&](bool spread, int64_t i, int64_t n, const float* scale, const float* zero, double* slope, double* outside) {
    kernels[spread][sums](at(dy, i * size), at(x, i * size), at(dx, i * size), n, scale, zero, range, slope, outside, stream);
  };
  if (walk.tiled()) {
    std::vector<Sums> partial(sums ? static_cast<size_t>(walk.outer_blocks() * grid.channels) : 0);
    walk.short_rows([&](int64_t block, int64_t first, int64_t channels, const float* scale, const float* zero, auto each) {
      alignas(64) double slope[kTile] = {};
      alignas(64) double outside[kTile] = {};
      each([&](int64_t i, int64_t n) { call(true, i, n, scale, zero, slope, outside); });
      if (!sums) return;
      for (int64_t c = 0; c < channels; ++c) {
        Sums total{0.0, 0.0};
        for (int64_t b = 0; b < walk.side_by_side(); ++b)
          for (int64_t k = 0; k < grid.inner; ++k) {
            const int64_t j = (b * channels + c) * grid.inner + k;
            total.slope += slope[j];
            total.outside += outside[j];
          }
        partial[static_cast<size_t>(block * grid.channels + first + c)] = total;
      }
    });
    if (sums) combine(partial, grid, walk.outer_blocks(), 1, dscale, dzero);
  } else {
    const int64_t blocks = walk.blocks_a_row(), rows = walk.rows();
    std::vector<Sums> partial(sums ? static_cast<size_t>(rows * blocks) : 0);
    walk.long_rows([&](int64_t item, int64_t c, int64_t i, int64_t n) {
      Sums part;
      call(false, i, n, grid.scale + c, grid.zero_point + c, &part.slope, &part.outside);
      if (sums) partial[static_cast<size_t>(item)] = part;
    });
    if (sums) combine(partial, grid, rows / grid.channels, blocks, dscale, dzero);
  }
}

void quantize_codes(FloatType type, const void* x, uint8_t* codes, const GridLayout& grid, FakeQuantizeIsa isa, int threads) {
  const Walk walk{grid, *rows_of(isa), threads};
  const int64_t size = size_of(type);
  const CodeRange range{grid.qmin, grid.qmax};
  const auto& kernels = walk.kernels.quantize[static_cast<int>(type)];
  if (walk.tiled()) {
    walk.short_rows([&](int64_t, int64_t, int64_t, const float* scale, const float* zero, auto each) {
      each([&](int64_t i, int64_t n) { kernels[1](at(x, i * size), codes + i, n, scale, zero, range); });
    });
  } else {
    walk.long_rows([&](int64_t, int64_t c, int64_t i, int64_t n) {
      kernels[0](at(x, i * size), codes + i, n, grid.scale + c, grid.zero_point + c, range);
    });
  }
}

}  // namespace pyquant
