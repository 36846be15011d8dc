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

// What the codes mean. Rows of the arrays of [groups, columns] have columns = n rounded up to 8. Weights that are multiplied as
// 16 times the code have scale / 16 here, and 16 times zero and sums.
struct Grids {
  const float* scale;    // [groups, columns]
  const int* zero;       // [groups, columns], or null if all are 0
  const int* sums;       // [groups, columns]; read only if x_zero is given
  const float* x_scale;  // [m]
  const int* x_zero;     // [m], or null if all are 0
  int groups;
};

template <class T, class Codes, bool kGrouped>
class ScaledCodes {
 public:
  // Writes the block's part of y, [m, n] float32. `parts`: of the MMAs in a group of K, Codes::kParts to a step.
  DEVICE void run(const void* x, const void* w, const Grids& grids, float* y, int m, int n, int row_bytes,
                  int w_row_bytes, int parts) {
    grids_ = grids;
    columns_ = (n + 7) / 8 * 8;
    rows_ = m;
    clear_row_sums();
    if constexpr (kGrouped) {
      clear(total_);
      load_scales(0);
    }
    int group = 0, left = parts;
    tile_.template run<!kGrouped>(x, w, m, n, row_bytes, w_row_bytes, [&](const uint32_t (&a)[T::kMTiles][4], auto part) {
      if (grids_.zero != nullptr) add_row_sums<decltype(part)::value>(a);
      if constexpr (kGrouped) {
        // What lies behind the last group is zeros up to the end of a slab.
        if (--left == 0 && group < grids_.groups) {
          if (is_centred()) centre(group);
          add_group();
          left = parts;
          load_scales(++group < grids_.groups ? group : group - 1);
        }
      }
    });
    if constexpr (kGrouped) {
      for_each_pair<T>(total_, [&](int row, int column, float v0, float v1) { store(y, n, row, column, v0, v1); });
    } else {
      if (is_centred()) centre(0);
      for_each_pair<T>(tile_.acc, [&](int row, int column, int d0, int d1) {
        const float2 scale = *reinterpret_cast<const float2*>(grids_.scale + clamped(first_column() + column));
        store(y, n, row, column, scaled(0.0f, d0, scale.x), scaled(0.0f, d1, scale.y));
      });
    }
  }

 private:
  static DEVICE float scaled(float total, int sum, float scale) {
    return __fadd_rn(total, __fmul_rn(__int2float_rn(sum), scale));
  }

  static DEVICE int first_row() { return static_cast<int>(blockIdx.x) * T::kM; }
  static DEVICE int first_column() { return static_cast<int>(blockIdx.y) * T::kN; }
  DEVICE bool is_centred() const { return grids_.zero != nullptr || grids_.x_zero != nullptr; }
  // The column of a pair that may be loaded: what is past the last one is never stored.
  DEVICE int clamped(int column) const { return column < columns_ ? column : columns_ - 2; }
  DEVICE int pair_column(int j) const {
    return clamped(first_column() + T::warp_column() + 8 * j + static_cast<int>(threadIdx.x) % 4 * 2);
  }

  DEVICE void store(float* y, int n, int row, int column, float v0, float v1) const {
    row += first_row();
    if (row >= rows_) return;
    const float scale = grids_.x_scale[row];
    store_pair(y, rows_, n, row, first_column() + column, __fmul_rn(v0, scale), __fmul_rn(v1, scale));
  }

  // The scales of a group, a pair of columns for each tile; loaded a group ahead of their use.
  DEVICE void load_scales(int group) {
    const float* from = grids_.scale + static_cast<int64_t>(group) * columns_;
#pragma unroll
    for (int j = 0; j < T::kNTiles; ++j) scale_[j] = *reinterpret_cast<const float2*>(from + pair_column(j));
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
  DEVICE void centre(int group) {
#pragma unroll
    for (int j = 0; j < T::kNTiles; ++j) {
      const int64_t at = static_cast<int64_t>(group) * columns_ + pair_column(j);
      int2 zero = {0, 0}, sums = {0, 0};
      if (grids_.zero != nullptr) zero = *reinterpret_cast<const int2*>(grids_.zero + at);
      if (grids_.x_zero != nullptr) sums = *reinterpret_cast<const int2*>(grids_.sums + at);
#pragma unroll
      for (int i = 0; i < T::kMTiles; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = first_row() + T::warp_row() + 16 * i + half * 8 + static_cast<int>(threadIdx.x) % 32 / 4;
          const int x_zero = grids_.x_zero != nullptr && row < rows_ ? grids_.x_zero[row] : 0;
          const int row_sum = row_sums_[i][2 * half];
          subtract(tile_.acc[i][j][2 * half], zero.x, row_sum, x_zero, sums.x);
          subtract(tile_.acc[i][j][2 * half + 1], zero.y, row_sum, x_zero, sums.y);
        }
      }
    }
    clear_row_sums();
  }

  // Modulo 2^32: what comes out fits, what is on the way may not.
  static DEVICE void subtract(int& acc, int zero, int row_sum, int x_zero, int sums) {
    acc = static_cast<int>(static_cast<uint32_t>(acc) - static_cast<uint32_t>(zero) * static_cast<uint32_t>(row_sum) -
                           static_cast<uint32_t>(x_zero) * static_cast<uint32_t>(sums));
  }

  DEVICE void add_group() {
#pragma unroll
    for (int j = 0; j < T::kNTiles; ++j) {
#pragma unroll
      for (int i = 0; i < T::kMTiles; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          total_[i][j][e] = scaled(total_[i][j][e], tile_.acc[i][j][e], e % 2 == 0 ? scale_[j].x : scale_[j].y);
          tile_.acc[i][j][e] = 0;
        }
      }
    }
  }

  IntegerTile<T, Codes> tile_;
  float total_[kGrouped ? T::kMTiles : 1][kGrouped ? T::kNTiles : 1][4];
  float2 scale_[T::kNTiles];
  int row_sums_[T::kMTiles][4];
  Grids grids_;
  int columns_, rows_;
};

}  // namespace pyquant
