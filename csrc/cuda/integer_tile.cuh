// The main loop of the integer products: a block's exact sums of codes times codes, for every width that they are stored in.
//
// `Codes` says how: the MMA, how many bytes of w a slab takes, and how its fragments come out of shared memory. A slab is 64
// bytes of x: 64 bytes or 128 nibbles of K. A step is what one ldmatrix brings, 32 bytes of x, and one MMA multiplies, or
// kParts of them in turn.
#pragma once
#include <type_traits>

#include "gemm_tile.cuh"

namespace pyquant {

constexpr int kSlab = 64;
constexpr int kSteps = kSlab / 32;  // of one MMA each

// Fragments of B that lie in shared memory as the MMA wants them: one ldmatrix brings two tiles of 8 columns.
template <class T>
DEVICE void load_b(uint32_t (&b)[T::kNTiles][2], SharedAddress slab, const LaneRows<kSlab>& rows, int step) {
#pragma unroll
  for (int j = 0; j < T::kNTiles; j += 2) {
    uint32_t r[4];
    ldmatrix_x4(r, slab + rows.at[step] + j * 8 * kSlab);
    b[j][0] = r[0], b[j][1] = r[1], b[j + 1][0] = r[2], b[j + 1][1] = r[3];
  }
}

// x: uint8 or int8, w: int8.
template <bool kSigned>
struct Bytes {
  static constexpr int kSlabOfW = kSlab;
  static constexpr uint32_t kOnes = 0x01010101;
  static constexpr int kParts = 1;
  static constexpr bool kSmallSums = false;
  LaneRows<kSlab> rows;
  DEVICE void begin(int column) { rows.begin_b(column); }
  template <class T>
  DEVICE void load(uint32_t (&b)[T::kNTiles][2], SharedAddress slab, int step) const {
    load_b<T>(b, slab, rows, step);
  }
  template <int>
  static DEVICE void mma(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_s8<kSigned>(d, a, b[0], b[1]);
  }
};

// x: unsigned or signed nibbles, w: signed nibbles. kHalves: 32 codes at a time, for groups of 32.
template <bool kSigned, bool kHalves>
struct Nibbles {
  static constexpr int kSlabOfW = kSlab;
  static constexpr uint32_t kOnes = 0x11111111;
  static constexpr int kParts = kHalves ? 2 : 1;
  static constexpr bool kSmallSums = true;  // of a group: 128 products of two numbers of at most 15
  LaneRows<kSlab> rows;
  DEVICE void begin(int column) { rows.begin_b(column); }
  template <class T>
  DEVICE void load(uint32_t (&b)[T::kNTiles][2], SharedAddress slab, int step) const {
    load_b<T>(b, slab, rows, step);
  }
  template <int kPart>
  static DEVICE void mma(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    if constexpr (kHalves) {
      mma_s4_half<kSigned>(d, a[2 * kPart], a[2 * kPart + 1], b[kPart]);
    } else {
      mma_s4<kSigned>(d, a, b[0], b[1]);
    }
  }
};

// x: uint8 or int8, w: signed nibbles, multiplied as 16 times the code. A chunk of 16 bytes holds 32 codes of a row of w:
// byte i has code i in its low nibble and code i + 16 in its high one, so a lane's four bytes are the two registers of its
// fragment, at the cost of a shift and two ANDs for eight codes: the high nibble of a byte is 16 times a code as it stands.
template <bool kSigned>
struct NibblesOfW {
  static constexpr int kSlabOfW = kSlab / 2;
  static constexpr uint32_t kOnes = 0x01010101;
  static constexpr int kParts = 1;
  static constexpr bool kSmallSums = false;
  int at[kSteps];
  DEVICE void begin(int column) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      at[step] = swizzled<kSlabOfW>(column + static_cast<int>(threadIdx.x) % 32, step);
    }
  }
  template <class T>
  DEVICE void load(uint32_t (&b)[T::kNTiles][2], SharedAddress slab, int step) const {
    static_assert(T::kNTiles % 4 == 0, "one ldmatrix brings four tiles of 8 columns");
#pragma unroll
    for (int j = 0; j < T::kNTiles; j += 4) {
      uint32_t r[4];
      ldmatrix_x4(r, slab + at[step] + j * 8 * kSlabOfW);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        b[j + i][0] = (r[i] << 4) & 0xF0F0F0F0;
        b[j + i][1] = r[i] & 0xF0F0F0F0;
      }
    }
  }
  template <int>
  static DEVICE void mma(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    mma_s8<kSigned>(d, a, b[0], b[1]);
  }
};

// A block's copies and fragments; `acc` gathers the sums of codes.
template <class T, class Codes>
struct IntegerTile {
  using X = SlabCopy<T::kM, kSlab, T::kThreads>;
  using W = SlabCopy<T::kN, Codes::kSlabOfW, T::kThreads>;
  static constexpr int kStageBytes = X::kSize + W::kSize;

  int acc[T::kMTiles][T::kNTiles][4];

  // Walks K, adds to `acc`, and calls done(a, part, at) once the products of a part were added: a are the fragments of x, `at`
  // counts the parts of a slab.
  // x: [m, row_bytes] bytes of codes; w: [n, row_bytes * kSlabOfW / kSlab]; row_bytes a multiple of 16, w's rows too.
  template <bool kUnrolled, class Done>
  DEVICE void run(const void* x, const void* w, int m, int n, int row_bytes, int w_row_bytes, Done done) {
    X x_copy;
    W w_copy;
    x_copy.open(x, m, row_bytes, T::first_row(), 0, row_bytes);
    w_copy.open(w, n, w_row_bytes, T::first_column(), 0, w_row_bytes);
    LaneRows<kSlab> a_rows;
    a_rows.begin_a(T::warp_row());
    Codes codes;
    codes.begin(T::warp_column());
    pipeline<T::kStages, kUnrolled>(
        (row_bytes + kSlab - 1) / kSlab, kStageBytes,
        [&](SharedAddress stage) {
          x_copy.next(stage);
          w_copy.next(stage + X::kSize);
        },
        [&](SharedAddress stage) {
#pragma unroll
          for (int step = 0; step < kSteps; ++step) {
            uint32_t a[T::kMTiles][4], b[T::kNTiles][2];
#pragma unroll
            for (int i = 0; i < T::kMTiles; ++i) ldmatrix_x4(a[i], stage + a_rows.at[step] + i * 16 * kSlab);
            codes.template load<T>(b, stage + X::kSize, step);
            multiply<0>(a, b);
            done(a, std::integral_constant<int, 0>(), step * Codes::kParts);
            if constexpr (Codes::kParts == 2) {
              multiply<1>(a, b);
              done(a, std::integral_constant<int, 1>(), step * Codes::kParts + 1);
            }
          }
        });
  }

 private:
  template <int kPart>
  DEVICE void multiply(const uint32_t (&a)[T::kMTiles][4], const uint32_t (&b)[T::kNTiles][2]) {
#pragma unroll
    for (int i = 0; i < T::kMTiles; ++i) {
#pragma unroll
      for (int j = 0; j < T::kNTiles; ++j) Codes::template mma<kPart>(acc[i][j], a[i], b[j]);
    }
  }
};

}  // namespace pyquant
