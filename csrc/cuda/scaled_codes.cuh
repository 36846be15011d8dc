// From exact sums of codes to float32, for 4-bit weights: a scale for each group of K and column, one for each row of x.
//
//   y[m, n] = x_scale[m] sum_g scale[g, n] float(sum_{k in g} (x[m, k] - x_zero[m]) (w[n, k] - zero[g, n]))
//
// Groups are added in ascending order, one rounding each. A group's sum, exact in int32, is
//   acc - zero[g, n] row_sum[m, g] - x_zero[m] sums[g, n]        with sums[g, n] = sum_{k in g} (w[n, k] - zero[g, n]),
// and the row sums of x come from the tensor cores too: an MMA with ones puts them in the very lanes that need them.
#pragma once
#include "integer_tile.cuh"

namespace pyquant {

// What the codes mean. Rows of the arrays of [groups, columns] have columns = n rounded up to kGridColumns, so that nobody asks
// where they end. Weights that are multiplied as 16 times the code have scale / 16 here, and 16 times zero and sums.
struct Grids {
  const float* scale;    // [groups, columns]
  const int* zero;       // [groups, columns], or null if all are 0
  const int* sums;       // [groups, columns]; read only if x_zero is given
  const float* x_scale;  // [m]
  const int* x_zero;     // [m], or null if all are 0
  int groups;
};

constexpr int kGridColumns = 128;

// How many parts, of one MMA each, a group of K has, if not a number of them: one scale a row, or as the launch says.
constexpr int kWholeRow = 0, kSaidAtLaunch = -1;

template <class T, class Codes, int kGroup>
class ScaledCodes {
 public:
  // Writes the block's part of y, [m, n] float32. `parts`: of a group, if it is said at launch.
  DEVICE void run(const void* x, const void* w, const Grids& grids, float* y, int m, int n, int row_bytes,
                  int w_row_bytes, int parts) {
    if (T::first_column() >= n) return;
    grids_ = grids;
    columns_ = (n + kGridColumns - 1) / kGridColumns * kGridColumns;
    rows_ = m;
    group_ = 0;
    fill(tile_.acc, kSeed);
    clear_row_sums();
    if constexpr (kGrouped) {
      fill(total_, 0.0f);
      begin_group();
    }
    int left = parts;
    tile_.template run<!kGrouped>(x, w, m, n, row_bytes, w_row_bytes, [&](const auto& a, auto part, int at) {
      if (grids_.zero != nullptr) add_row_sums<decltype(part)::value>(a);
      if constexpr (kGroup > 0) {
        if ((at + 1) % kGroup == 0) end_group();
      } else if constexpr (kGroup == kSaidAtLaunch) {
        if (--left == 0) {
          end_group();
          left = parts;
        }
      }
    });
    if constexpr (kGrouped) {
      for_each_pair<T>(total_, [&](int row, int column, float v0, float v1) { store(y, n, row, column, v0, v1); });
    } else {
      centre();
      for_each_pair<T>(tile_.acc, [&](int row, int column, int d0, int d1) {
        const float2 scale = *reinterpret_cast<const float2*>(grids_.scale + T::first_column() + column);
        store(y, n, row, column, scaled(0.0f, d0, scale.x), scaled(0.0f, d1, scale.y));
      });
    }
  }

 private:
  static constexpr bool kGrouped = kGroup != kWholeRow;
  // Sums of groups of nibbles stay under 2^22, and in the last bits of 1.5 * 2^23 an integer is that float plus itself: where
  // sums begin there, a subtraction makes floats of them, at four times the rate of a conversion.
  static constexpr bool kSeeded = kGrouped && Codes::kSmallSums;
  static constexpr int kSeed = kSeeded ? 0x4B400000 : 0;

  // Where there are registers to keep them through the products.
  static constexpr bool kOffsetsAhead = kGroup > 0;

  static DEVICE float scaled(float total, int sum, float scale) {
    const float exact = kSeeded ? __fadd_rn(__int_as_float(sum), -12582912.0f) : __int2float_rn(sum);
    return __fadd_rn(total, __fmul_rn(exact, scale));
  }

  DEVICE void store(float* y, int n, int row, int column, float v0, float v1) const {
    row += T::first_row();
    if (row >= rows_) return;
    const float scale = grids_.x_scale[row];
    store_pair(y, rows_, n, row, T::first_column() + column, __fmul_rn(v0, scale), __fmul_rn(v1, scale));
  }

  // Asks for what the group that begins needs at its end.
  DEVICE void begin_group() {
    load(scale_, grids_.scale);
    if constexpr (kOffsetsAhead) {
      if (grids_.zero != nullptr) load(zero_, grids_.zero);
      if (grids_.x_zero != nullptr) load(sums_, grids_.sums);
    }
  }

  // The group's pair of columns for each tile; behind the last group, the last one's.
  template <class Pair, class Number>
  DEVICE void load(Pair (&pairs)[T::kNTiles], const Number* grid) const {
    static_assert(kGridColumns % T::kN == 0, "all columns of a block are there");
    const int row = group_ < grids_.groups ? group_ : grids_.groups - 1;
    const Number* from = grid + static_cast<int64_t>(row) * columns_ + T::first_column() + T::warp_column() +
                         static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int j = 0; j < T::kNTiles; ++j) pairs[j] = *reinterpret_cast<const Pair*>(from + 8 * j);
  }

  DEVICE void clear_row_sums() {
#pragma unroll
    for (int i = 0; i < T::kMTiles; ++i) row_sums_[i][0] = row_sums_[i][1] = row_sums_[i][2] = row_sums_[i][3] = 0;
  }

  template <int kPart>
  DEVICE void add_row_sums(const uint32_t (&a)[T::kMTiles][4]) {
    const uint32_t ones[2] = {Codes::kOnes, Codes::kOnes};
#pragma unroll
    for (int i = 0; i < T::kMTiles; ++i) Codes::template mma<kPart>(row_sums_[i], a[i], ones);
  }

  // From sums of codes to sums of what the codes stand for.
  DEVICE void centre() {
    if (grids_.zero != nullptr) {
      if constexpr (!kOffsetsAhead) load(zero_, grids_.zero);
      subtract(zero_, [&](int i, int half) { return row_sums_[i][2 * half]; });
      clear_row_sums();
    }
    if (grids_.x_zero != nullptr) {
      if constexpr (!kOffsetsAhead) load(sums_, grids_.sums);
      int x_zero[T::kMTiles][2];
#pragma unroll
      for (int i = 0; i < T::kMTiles; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = T::first_row() + T::warp_row() + 16 * i + half * 8 + static_cast<int>(threadIdx.x) % 32 / 4;
          x_zero[i][half] = grids_.x_zero[row < rows_ ? row : rows_ - 1];
        }
      }
      subtract(sums_, [&](int i, int half) { return x_zero[i][half]; });
    }
  }

  // acc -= of_column of_row, modulo 2^32: what comes out fits, what is on the way may not.
  template <class OfRow>
  DEVICE void subtract(const int2 (&of_column)[T::kNTiles], OfRow of_row) {
    const auto less = [](int acc, int a, int b) {
      return static_cast<int>(static_cast<uint32_t>(acc) - static_cast<uint32_t>(a) * static_cast<uint32_t>(b));
    };
#pragma unroll
    for (int j = 0; j < T::kNTiles; ++j) {
#pragma unroll
      for (int i = 0; i < T::kMTiles; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          int(&acc)[4] = tile_.acc[i][j];
          acc[2 * half] = less(acc[2 * half], of_column[j].x, of_row(i, half));
          acc[2 * half + 1] = less(acc[2 * half + 1], of_column[j].y, of_row(i, half));
        }
      }
    }
  }

  DEVICE void end_group() {
    // Where groups are shorter than a slab, zeros lie behind the last one.
    if (kGroup == kSteps * Codes::kParts || group_ < grids_.groups) {
      centre();
#pragma unroll
      for (int j = 0; j < T::kNTiles; ++j) {
#pragma unroll
        for (int i = 0; i < T::kMTiles; ++i) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            total_[i][j][e] = scaled(total_[i][j][e], tile_.acc[i][j][e], e % 2 == 0 ? scale_[j].x : scale_[j].y);
          }
        }
      }
      ++group_;
      begin_group();
    }
    fill(tile_.acc, kSeed);
  }

  IntegerTile<T, Codes> tile_;
  float total_[kGrouped ? T::kMTiles : 1][kGrouped ? T::kNTiles : 1][4];
  float2 scale_[T::kNTiles];
  int2 zero_[T::kNTiles], sums_[T::kNTiles];
  int row_sums_[T::kMTiles][4];
  Grids grids_;
  int columns_, rows_, group_;
};

}  // namespace pyquant
