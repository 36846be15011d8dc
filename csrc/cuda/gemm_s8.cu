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
    tile.template run<true>(x, w, m, n, k, k, [](const auto&, auto) {});
  }

  // float(acc + correction) * multiplier + bias of the pair at (row, column), column counted in y.
  template <class Visit>
  DEVICE void for_each_affine(const float* multiplier, const float* bias, const int* correction, int n, Visit visit) {
    const int first = static_cast<int>(blockIdx.y) * T::kN;
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

// The clamp comes before the cast: what no uint8 holds, a NaN too, has no defined cast.
DEVICE uint32_t requantised(float v, float y_zero, float low, float high) {
  return static_cast<uint32_t>(fminf(fmaxf(__fadd_rn(rintf(v), y_zero), low), high));
}

template <class T>
DEVICE void gemm_s8_codes(const uint8_t* x, const int8_t* w, const float* multiplier, const float* bias,
                          const int* correction, uint8_t* y, int m, int n, int k, int y_zero, int low, int high) {
  GemmS8<T> gemm;
  gemm.run(x, w, m, n, k);
  // Lanes hold pairs of bytes; by way of shared memory they become whole 16-byte stores. The rows' stride keeps the
  // stores of a warp's eight rows in different banks.
  constexpr int kStride = T::kN + 16, kChunks = T::kN / 16;
  static_assert(T::kM * kStride <= T::kStages * IntegerTile<T, Bytes<false>>::kStageBytes, "the results fit");
  cp_async_wait<0>();
  block_barrier();
  const SharedAddress shared = shared_memory();
  const float zero = __int2float_rn(y_zero), least = __int2float_rn(low), most = __int2float_rn(high);
  gemm.for_each_affine(multiplier, bias, correction, n, [&](int row, int column, float v0, float v1) {
    store_shared_2(shared + row * kStride + column,
                   requantised(v0, zero, least, most) | requantised(v1, zero, least, most) << 8);
  });
  block_barrier();
  for (int i = static_cast<int>(threadIdx.x); i < T::kM * kChunks; i += T::kThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    const int y_row = static_cast<int>(blockIdx.x) * T::kM + row;
    const int y_column = static_cast<int>(blockIdx.y) * T::kN + chunk * 16;
    if (y_row >= m || y_column >= n) continue;
    const SharedAddress from = shared + row * kStride + chunk * 16;
    uint8_t* to = y + static_cast<int64_t>(y_row) * n + y_column;
    if (n % 16 == 0) {
      uint32_t r[4];
      load_shared_16(r, from);
      *reinterpret_cast<uint4*>(to) = uint4{r[0], r[1], r[2], r[3]};
    } else {
      const int bytes = n - y_column < 16 ? n - y_column : 16;
      for (int b = 0; b < bytes; ++b) to[b] = static_cast<uint8_t>(load_shared_1(from + b));
    }
  }
}

template <class T>
DEVICE void gemm_s8_floats(const uint8_t* x, const int8_t* w, const float* multiplier, const float* bias,
                           const int* correction, float* y, int m, int n, int k) {
  GemmS8<T> gemm;
  gemm.run(x, w, m, n, k);
  gemm.for_each_affine(multiplier, bias, correction, n, [&](int row, int column, float v0, float v1) {
    store_pair(y, m, n, static_cast<int>(blockIdx.x) * T::kM + row, static_cast<int>(blockIdx.y) * T::kN + column, v0,
               v1);
  });
}

}  // namespace pyquant

// The entries. Block (i, j) of the grid owns rows i kM.. and columns j kN.. of y.
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
