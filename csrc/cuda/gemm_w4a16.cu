// gemm_w4a16: float16 or bfloat16 activations times 4-bit weights, for few rows: the bytes of w bound it, so they are read
// once, in the order in which the tensor cores want them, and K is split so that every processor has some to read.
//
//   y[m, n] = sum_g scale[g, n] sum_{k in g} x[m, k] (w[n, k] - zero[g, n])
//
// Codes minus zero points are whole numbers of at most 15, exact in either type, so the only roundings are those of the
// float32 sums, and of y. Sums have a fixed order: within a split by K, then by split, in a second kernel.
//
// Layout of w: [ceil64(K) / 64, ceil128(N) / 16, 32 lanes, 4 steps of 16 in K] words of 8 codes, 0..15. A warp's load of 16
// bytes a lane is 512 bytes in a row and brings the fragments of 64 x 16 codes. In the word of lane (g, t), nibble
// i + 4 e is code (k, n) with k = 2t + e + 8 (i % 2) in its step and n = g + 8 (i / 2) in its 16 columns.
#include <type_traits>

#include "gemm_tile.cuh"

namespace pyquant {

constexpr int kDepth = 64;  // of a slab, in K: 128 bytes of x, 4 KB of w

// Minus the numbers that dequantise() subtracts, in both halves of a register: `even` for nibbles 0, 2, 4, 6.
struct Offsets {
  uint32_t even, odd;
};

// In the last bits of a float's mantissa a code is that code, plus the float that the other bits make: 1024 + code, or
// 1024 + 16 code if it is there four bits higher, in float16; 128 + code in bfloat16, whose mantissa has no more room.
template <bool kBf16>
DEVICE Offsets offsets(uint32_t zero) {
  if constexpr (kBf16) {
    const uint32_t both = (0xC300 + zero) * 0x00010001u;  // -(128 + zero)
    return {both, both};
  } else {
    return {(0xE400 + zero) * 0x00010001u, (0xD400 + (zero << 4)) * 0x00010001u};  // -(1024 + zero), -(64 + zero)
  }
}

// Eight codes to four registers of pairs: b[tile][half], all exact.
template <bool kBf16>
DEVICE void dequantise(uint32_t word, const Offsets (&minus)[2], uint32_t (&b)[2][2]) {
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
    const uint32_t low = word >> (8 * tile);
    if constexpr (kBf16) {
      constexpr uint32_t kOne = 0x3F803F80;
      b[tile][0] = fma_pair<kBf16>(and_or(low, 0x000F000F, 0x43004300), kOne, minus[tile].even);
      b[tile][1] = fma_pair<kBf16>(and_or(low >> 4, 0x000F000F, 0x43004300), kOne, minus[tile].odd);
    } else {
      constexpr uint32_t kOne = 0x3C003C00, kSixteenth = 0x2C002C00;
      b[tile][0] = fma_pair<kBf16>(and_or(low, 0x000F000F, 0x64006400), kOne, minus[tile].even);
      b[tile][1] = fma_pair<kBf16>(and_or(low, 0x00F000F0, 0x64006400), kSixteenth, minus[tile].odd);
    }
  }
}

// The arguments of the entries below.
struct W4A16 {
  const uint16_t* x;     // [m, k] float16 or bfloat16, rows a multiple of 16 bytes
  const uint8_t* w;      // as laid out above
  const float* scale;    // [groups, columns], columns = ceil128(n)
  const uint8_t* zero;   // [groups, columns], codes 0..15, or null if all are 8
  uint16_t* y;           // [m, n] float16 or bfloat16; written if there is one split
  float* partial;        // [splits, m, n]; written if there are more
  int m, n, k, groups, group_size;
};

template <class T, bool kBf16>
class GemmW4A16 {
 public:
  static constexpr int kBlockOfW = T::kN * kDepth / 2;  // bytes of w in a slab
  static_assert(kBlockOfW == 2 * 16 * T::kThreads && T::kNTiles == 4, "two chunks of w a thread, and to a warp's columns");

  // Block (i, j, s) of the grid sums rows i kM.. and columns j kN.. over the s-th of gridDim.z parts of K.
  DEVICE void run(const W4A16& args) {
    args_ = args;
    columns_ = (args.n + T::kN - 1) / T::kN * T::kN;
    const int slabs = (args.k + kDepth - 1) / kDepth;
    const int share = (slabs + static_cast<int>(gridDim.z) - 1) / static_cast<int>(gridDim.z);
    const int first = static_cast<int>(blockIdx.z) * share;
    const int count = slabs - first < share ? slabs - first : share;
    const int end = (first + count) * kDepth < args.k ? (first + count) * kDepth : args.k;

    X x_copy;
    x_copy.open(args.x, args.m, args.k * 2, static_cast<int>(blockIdx.x) * T::kM, first * kDepth * 2, end * 2);
    const int64_t slab_bytes = static_cast<int64_t>(columns_) * kDepth / 2;
    const uint8_t* w = args.w + first * slab_bytes + static_cast<int64_t>(blockIdx.y) * kBlockOfW +
                       static_cast<int>(threadIdx.x) * 16;
    int w_left = count;

    rows_.begin_a(T::warp_row());
    fill(acc_, 0.0f);
    fill(total_, 0.0f);
    // A group is whole parts of 32 in K, and a slab is two of them. A split may begin within a group.
    const int parts = args.group_size / 32;
    group_ = args.groups == 1 ? 0 : first * 2 / parts;
    int left = args.groups == 1 ? 2 * slabs + 1 : parts - first * 2 % parts;
    load_zeros(group_);
    begin_group();
    pipeline<T::kStages, false>(
        count, X::kSize + kBlockOfW,
        [&](SharedAddress stage) {
          x_copy.next(stage);
          const SharedAddress to = stage + X::kSize + static_cast<int>(threadIdx.x) * 16;
          cp_async_16(to, w, w_left > 0);
          cp_async_16(to + kBlockOfW / 2, w + kBlockOfW / 2, w_left > 0);
          w += slab_bytes;
          --w_left;
        },
        [&](SharedAddress stage) {
          // A warp's 32 columns are two blocks of 16, each 512 bytes.
          const SharedAddress at = stage + X::kSize + static_cast<int>(threadIdx.x) * 16 +
                                   static_cast<int>(threadIdx.x) / 32 * 512;
          uint32_t words[2][4];
          load_shared_16(words[0], at);
          load_shared_16(words[1], at + 512);
#pragma unroll
          for (int step = 0; step < kDepth / 16; ++step) {
            multiply(stage, step, words);
            if (step % 2 == 1 && --left == 0) {
              add_group();
              left = parts;
              ++group_;
              begin_group();
            }
          }
        });
    add_group();
    store();
  }

 private:
  using X = SlabCopy<T::kM, kDepth * 2, T::kThreads>;

  DEVICE void multiply(SharedAddress stage, int step, const uint32_t (&words)[2][4]) {
    uint32_t a[T::kMTiles][4], b[T::kNTiles][2];
#pragma unroll
    for (int i = 0; i < T::kMTiles; ++i) ldmatrix_x4(a[i], stage + rows_.at[step] + i * 16 * kDepth * 2);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      uint32_t pairs[2][2];
      const Offsets minus[2] = {minus_[2 * j], minus_[2 * j + 1]};
      dequantise<kBf16>(words[j][step], minus, pairs);
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) b[2 * j + tile][0] = pairs[tile][0], b[2 * j + tile][1] = pairs[tile][1];
    }
#pragma unroll
    for (int i = 0; i < T::kMTiles; ++i) {
#pragma unroll
      for (int j = 0; j < T::kNTiles; ++j) mma_16<kBf16>(acc_[i][j], a[i], b[j][0], b[j][1]);
    }
  }

  // What the group that begins needs: offsets now, scales at its end. The next one's zero points are asked for here, so
  // that no product waits for memory.
  DEVICE void begin_group() {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const float* scales = args_.scale + row_of_grid(group_) + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < T::kNTiles; ++j) {
      minus_[j] = offsets<kBf16>(zero_[j]);
      scale_[j] = *reinterpret_cast<const float2*>(scales + 8 * j);
    }
    load_zeros(group_ + 1);
  }

  DEVICE void load_zeros(int group) {
    if (args_.zero == nullptr) {
#pragma unroll
      for (int j = 0; j < T::kNTiles; ++j) zero_[j] = 8;
    } else {
      const uint8_t* zeros = args_.zero + row_of_grid(group) + static_cast<int>(threadIdx.x) % 32 / 4;
#pragma unroll
      for (int j = 0; j < T::kNTiles; ++j) zero_[j] = zeros[8 * j];
    }
  }

  // Where this warp's columns begin in a group's row of scales or zero points; behind the last group, in the last one's.
  DEVICE int64_t row_of_grid(int group) const {
    const int row = group < args_.groups ? group : args_.groups - 1;
    return static_cast<int64_t>(row) * columns_ + first_column() + T::warp_column();
  }

  DEVICE void add_group() {
#pragma unroll
    for (int i = 0; i < T::kMTiles; ++i) {
#pragma unroll
      for (int j = 0; j < T::kNTiles; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          total_[i][j][e] = fmaf(acc_[i][j][e], e % 2 == 0 ? scale_[j].x : scale_[j].y, total_[i][j][e]);
          acc_[i][j][e] = 0;
        }
      }
    }
  }

  DEVICE void store() const {
    const int first_row = static_cast<int>(blockIdx.x) * T::kM;
    for_each_pair<T>(total_, [&](int row, int column, float v0, float v1) {
      row += first_row;
      column += first_column();
      if (gridDim.z > 1) {
        float* part = args_.partial + static_cast<int64_t>(blockIdx.z) * args_.m * args_.n;
        store_pair(part, args_.m, args_.n, row, column, v0, v1);
      } else if (row < args_.m && column < args_.n) {
        uint16_t* to = args_.y + static_cast<int64_t>(row) * args_.n + column;
        to[0] = narrow<kBf16>(v0);
        if (column + 1 < args_.n) to[1] = narrow<kBf16>(v1);
      }
    });
  }

  static DEVICE int first_column() { return static_cast<int>(blockIdx.y) * T::kN; }

  W4A16 args_;
  int columns_, group_;
  LaneRows<kDepth * 2> rows_;
  float acc_[T::kMTiles][T::kNTiles][4], total_[T::kMTiles][T::kNTiles][4];
  float2 scale_[T::kNTiles];
  Offsets minus_[T::kNTiles];
  uint32_t zero_[T::kNTiles];  // of the next group
};

// y[i] = the sum of partial[0][i], partial[1][i], ..., in this order.
template <bool kBf16>
DEVICE void sum_splits(const float* partial, uint16_t* y, int count, int splits) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  float sum = partial[i];
  for (int split = 1; split < splits; ++split) sum = __fadd_rn(sum, partial[static_cast<int64_t>(split) * count + i]);
  y[i] = narrow<kBf16>(sum);
}

}  // namespace pyquant

// The entries: see pyquant::W4A16. group_size: 32, 64 or 128, or k if groups is 1. All pointers aligned to 16 bytes.
#define PYQUANT_GEMM_W4A16(name, bf16, ...)                                                                           \
  extern "C" __global__ void __launch_bounds__(pyquant::Tile<__VA_ARGS__>::kThreads, 1) gemm_w4a16_##name(            \
      const uint16_t* __restrict__ x, const uint8_t* __restrict__ w, const float* __restrict__ scale,                 \
      const uint8_t* __restrict__ zero, uint16_t* __restrict__ y, float* __restrict__ partial, int m, int n, int k,   \
      int groups, int group_size) {                                                                                   \
    pyquant::GemmW4A16<pyquant::Tile<__VA_ARGS__>, bf16>().run(                                                       \
        {x, w, scale, zero, y, partial, m, n, k, groups, group_size});                                                \
  }

PYQUANT_GEMM_W4A16(f16_16x128, false, 1, 4, 1, 4, 4)
PYQUANT_GEMM_W4A16(f16_64x128, false, 1, 4, 4, 4, 4)
PYQUANT_GEMM_W4A16(bf16_16x128, true, 1, 4, 1, 4, 4)
PYQUANT_GEMM_W4A16(bf16_64x128, true, 1, 4, 4, 4, 4)
#undef PYQUANT_GEMM_W4A16

// partial: [splits, count] float32. y: [count] float16 or bfloat16. Blocks of 256 threads, one result each.
extern "C" __global__ void __launch_bounds__(256)
    gemm_w4a16_sum_f16(const float* __restrict__ partial, uint16_t* __restrict__ y, int count, int splits) {
  pyquant::sum_splits<false>(partial, y, count, splits);
}

extern "C" __global__ void __launch_bounds__(256)
    gemm_w4a16_sum_bf16(const float* __restrict__ partial, uint16_t* __restrict__ y, int count, int splits) {
  pyquant::sum_splits<true>(partial, y, count, splits);
}
