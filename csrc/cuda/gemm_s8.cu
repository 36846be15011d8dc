// gemm_s8: uint8 activations times int8 weights on int8 tensor cores (mma.m16n8k32), to requantised codes or to float32.
//
//   acc[m, n] = sum_k x[m, k] w[n, k] + correction[n]      exact, modulo 2^32; correction[n] = -x_zero sum_k w[n, k]
//   y[m, n]   = clamp(round(float(acc) * multiplier[n] + bias[n]) + y_zero, low, high), each operation rounded by itself
//
// The tensor cores multiply unsigned by signed bytes, so x needs no shift. Large M is bound by the products: 64 x 64 results
// a warp take 32 of them on 8 ldmatrix. Small M is bound by the bytes of w: then the tile is flat and w is read once.
#include "integer_tile.cuh"

namespace pyquant {

template <class T>
struct GemmS8 {
  IntegerTile<T, Bytes<false>> tile;

  // Sums the block's products. x: [m, k] uint8, w: [n, k] int8.
  DEVICE void run(const uint8_t* x, const int8_t* w, int m, int n, int k) {
    fill(tile.acc, 0);
    tile.template run<true>(x, w, m, n, k, k, [](const auto&, auto, int) {});
  }

  // float(acc + correction) * multiplier + bias of the pair at (row, column), column counted in y.
  template <class Visit>
  DEVICE void for_each_affine(const float* multiplier, const float* bias, const int* correction, int n, Visit visit) {
    const int first = T::first_column();
    for_each_pair<T>(tile.acc, [&](int row, int column, int d0, int d1) {
      const int left = first + column < n ? first + column : n - 1;
      const int right = left + 1 < n ? left + 1 : n - 1;
      visit(row, column, affine(d0, correction[left], multiplier[left], bias[left]),
            affine(d1, correction[right], multiplier[right], bias[right]));
    });
  }

 private:
  static DEVICE float affine(int sum, int correction, float multiplier, float bias) {
    const int exact = static_cast<int>(static_cast<uint32_t>(sum) + static_cast<uint32_t>(correction));
    return __fadd_rn(__fmul_rn(__int2float_rn(exact), multiplier), bias);
  }
};

// round(v) + y_zero in the low byte, once v is between `least` and `most`, the ends of the codes less y_zero: behind them is
// what no code can be, a NaN too. The sum with 1.5 * 2^23 rounds v half to even and has it in its last bits: two additions,
// where the conversions from float to float and from float to integer run at a quarter of their rate.
DEVICE uint32_t requantised(float v, float least, float most, uint32_t y_zero) {
  return __float_as_uint(__fadd_rn(fminf(fmaxf(v, least), most), 12582912.0f)) + y_zero;
}

// Results on their way through shared memory: lanes hold pairs of bytes, which there become rows. The rows' stride keeps
// the stores of a warp's eight rows in different banks.
template <class T>
constexpr int kResultStride = T::kN + 16;

// Stores the block's results, kBytes at a time, which divides n: neighbouring threads store neighbouring bytes.
template <class T, int kBytes>
DEVICE void store_codes(SharedAddress results, uint8_t* y, int m, int n) {
  constexpr int kAcross = T::kN / kBytes, kRowsAtOnce = T::kThreads / kAcross;
  static_assert(T::kThreads % kAcross == 0 && T::kM % kRowsAtOnce == 0, "every thread has its column");
  const int column = static_cast<int>(threadIdx.x) % kAcross * kBytes;
  const int y_column = T::first_column() + column;
  if (y_column >= n) return;
  const int first = static_cast<int>(threadIdx.x) / kAcross, first_row = T::first_row();
  for (int row = first; row < T::kM && first_row + row < m; row += kRowsAtOnce) {
    const SharedAddress from = results + row * kResultStride<T> + column;
    uint8_t* to = y + static_cast<int64_t>(first_row + row) * n + y_column;
    if constexpr (kBytes == 16) {
      uint32_t r[4];
      load_shared_16(r, from);
      *reinterpret_cast<uint4*>(to) = uint4{r[0], r[1], r[2], r[3]};
    } else if constexpr (kBytes == 4) {
      *reinterpret_cast<uint32_t*>(to) = load_shared_4(from);
    } else {
      *to = static_cast<uint8_t>(load_shared_1(from));
    }
  }
}

template <class T>
DEVICE void gemm_s8_codes(const uint8_t* x, const int8_t* w, const float* multiplier, const float* bias,
                          const int* correction, uint8_t* y, int m, int n, int k, int y_zero, int low, int high) {
  static_assert(T::kM * kResultStride<T> <= T::kStages * IntegerTile<T, Bytes<false>>::kStageBytes, "the results fit");
  if (T::first_column() >= n) return;
  GemmS8<T> gemm;
  gemm.run(x, w, m, n, k);
  cp_async_wait<0>();
  block_barrier();
  const SharedAddress shared = shared_memory();
  const float least = __int2float_rn(low - y_zero), most = __int2float_rn(high - y_zero);
  gemm.for_each_affine(multiplier, bias, correction, n, [&](int row, int column, float v0, float v1) {
    store_shared_2(shared + row * kResultStride<T> + column,
                   (requantised(v0, least, most, y_zero) & 0xFF) | requantised(v1, least, most, y_zero) << 8);
  });
  block_barrier();
  if (n % 16 == 0) {
    store_codes<T, 16>(shared, y, m, n);
  } else if (n % 4 == 0) {
    store_codes<T, 4>(shared, y, m, n);
  } else {
    store_codes<T, 1>(shared, y, m, n);
  }
}

template <class T>
DEVICE void gemm_s8_floats(const uint8_t* x, const int8_t* w, const float* multiplier, const float* bias,
                           const int* correction, float* y, int m, int n, int k) {
  if (T::first_column() >= n) return;
  GemmS8<T> gemm;
  gemm.run(x, w, m, n, k);
  gemm.for_each_affine(multiplier, bias, correction, n, [&](int row, int column, float v0, float v1) {
    store_pair(y, m, n, T::first_row() + row, T::first_column() + column, v0, v1);
  });
}

}  // namespace pyquant

// The entries. The grid: see pyquant::Tile.
//   x: [m, k] uint8, row-major        w: [n, k] int8, row-major       k: a multiple of 16, both aligned to 16 bytes
//   multiplier, bias: [n] float32     correction: [n] int32           y: [m, n] uint8 or float32, aligned to 16 bytes
#define PYQUANT_GEMM_S8(tile, ...)                                                                                    \
  extern "C" __global__ void __launch_bounds__(pyquant::Tile<__VA_ARGS__>::kThreads, 1) gemm_s8_codes_##tile(         \
      const uint8_t* __restrict__ x, const int8_t* __restrict__ w, const float* __restrict__ multiplier,              \
      const float* __restrict__ bias, const int* __restrict__ correction, uint8_t* __restrict__ y, int m, int n,      \
      int k, int y_zero, int low, int high) {                                                                         \
    pyquant::gemm_s8_codes<pyquant::Tile<__VA_ARGS__>>(x, w, multiplier, bias, correction, y, m, n, k, y_zero, low,   \
                                                       high);                                                         \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(pyquant::Tile<__VA_ARGS__>::kThreads, 1) gemm_s8_floats_##tile(        \
      const uint8_t* __restrict__ x, const int8_t* __restrict__ w, const float* __restrict__ multiplier,              \
      const float* __restrict__ bias, const int* __restrict__ correction, float* __restrict__ y, int m, int n,        \
      int k) {                                                                                                        \
    pyquant::gemm_s8_floats<pyquant::Tile<__VA_ARGS__>>(x, w, multiplier, bias, correction, y, m, n, k);              \
  }

PYQUANT_GEMM_S8(128x128, 2, 2, 4, 8, 3)
PYQUANT_GEMM_S8(64x64, 2, 2, 2, 4, 4)
PYQUANT_GEMM_S8(16x128, 1, 4, 1, 4, 4)
#undef PYQUANT_GEMM_S8
