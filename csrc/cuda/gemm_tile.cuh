// What the matrix products here share: a block's tile, the slabs of K that travel to it, and where they lie.
//
//   y[m, n] = sum_k x[m, k] w[n, k]        x: M rows, w: N rows, both with K contiguous
//
// A block owns kM x kN results. It walks K in slabs of a few dozen bytes a row; the next kStages - 1 slabs are on their way
// from global memory, by asynchronous copies of 16 bytes, while the tensor cores work on the oldest. A warp owns kMTiles
// tiles of 16 rows times kNTiles tiles of 8 columns and keeps their sums in registers.
#pragma once
#include "ptx.cuh"

namespace pyquant {

template <int kWarpsM_, int kWarpsN_, int kMTiles_, int kNTiles_, int kStages_>
struct Tile {
  static constexpr int kWarpsM = kWarpsM_, kWarpsN = kWarpsN_, kMTiles = kMTiles_, kNTiles = kNTiles_;
  static constexpr int kStages = kStages_;
  // Kernels say that one block a multiprocessor will do (__launch_bounds__(kThreads, 1)): left to aim for more, ptxas spills
  // on sm_100 and sm_120 for want of registers that are there.
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
  static constexpr int kM = 16 * kMTiles * kWarpsM, kN = 8 * kNTiles * kWarpsN;
  // The first row and column of this warp, counted from the block's.
  static DEVICE int warp_row() { return static_cast<int>(threadIdx.x) / 32 % kWarpsM * (16 * kMTiles); }
  static DEVICE int warp_column() { return static_cast<int>(threadIdx.x) / 32 / kWarpsM * (8 * kNTiles); }

  // The block's first row and column of the result. Blocks start in the order x, y, z of the grid, and those that run at one
  // time should read the same rows of x and of w, which then come from the L2 cache: so x counts the tiles of a band of
  // some columns, y all tiles of rows, and z the bands.
  static DEVICE int first_row() { return static_cast<int>(blockIdx.y) * kM; }
  static DEVICE int first_column() { return static_cast<int>(blockIdx.z * gridDim.x + blockIdx.x) * kN; }
};

// Where the 16-byte chunk `chunk` of row `row` lies in a slab in shared memory, of kBytes a row (32, 64 or 128).
//
// The 32 banks hold 128 bytes: 8 / kChunks rows. ldmatrix reads one chunk of 8 rows at a time, and in straight order they
// would meet in few banks; XOR with the row's number among those of one chunk's worth spreads them over all.
template <int kBytes>
DEVICE int swizzled(int row, int chunk) {
  constexpr int kChunks = kBytes / 16;
  return row * kBytes + (chunk ^ (row / (8 / kChunks) % kChunks)) * 16;
}

// Copies slabs of one operand: kRows rows, kBytes a slab and row. Rows past the last one repeat it, and nobody stores what
// comes of them; past the end of K come zeros, which add nothing.
template <int kRows, int kBytes, int kThreads>
class SlabCopy {
 public:
  static constexpr int kSize = kRows * kBytes;

  // matrix: [rows, row_bytes] bytes, aligned to 16, row_bytes a multiple of 16. The slabs begin at row `first` and hold
  // the bytes [begin, end) of each row.
  DEVICE void open(const void* matrix, int rows, int row_bytes, int first, int begin, int end) {
    const int chunk = static_cast<int>(threadIdx.x) % kChunks;
    row_ = static_cast<int>(threadIdx.x) / kChunks;
    to_ = swizzled<kBytes>(row_, chunk);
    left_ = end - begin - chunk * 16;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int row = first + row_ + i * kRowsAtOnce;
      from_[i] = static_cast<const uint8_t*>(matrix) + static_cast<int64_t>(row < rows ? row : rows - 1) * row_bytes +
                 begin + chunk * 16;
    }
  }

  // Begins to copy the next slab to `to`.
  DEVICE void next(SharedAddress to) {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      if (kRows % kRowsAtOnce == 0 || row_ + i * kRowsAtOnce < kRows) {
        cp_async_16(to + to_ + i * kRowsAtOnce * kBytes, from_[i], left_ > 0);
      }
      from_[i] += kBytes;
    }
    left_ -= kBytes;
  }

 private:
  static constexpr int kChunks = kBytes / 16;
  static constexpr int kRowsAtOnce = kThreads / kChunks;
  static constexpr int kCopies = (kRows + kRowsAtOnce - 1) / kRowsAtOnce;
  static_assert(kRowsAtOnce % 8 == 0, "rows that one thread copies share their swizzle");

  const uint8_t* from_[kCopies];  // this thread's chunk of each of its rows
  int to_, row_, left_;
};

// Where a lane's rows lie in a slab, for ldmatrix. Rows 16 apart share their swizzle: from one tile of 16 rows to the next is
// a constant, and from one step of 32 bytes of K to the next is an XOR.
template <int kBytes>
struct LaneRows {
  int at[kBytes / 32];

  // Fragments of A: matrices 0 and 1 are rows 0..7 and 8..15 of the first 16 bytes, 2 and 3 of the second.
  DEVICE void begin_a(int first) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    begin(first + lane % 16, lane / 16);
  }

  // Fragments of B: matrices 0 and 1 are the first and second 16 bytes of columns 0..7, 2 and 3 of columns 8..15.
  DEVICE void begin_b(int first) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    begin(first + lane % 8 + lane / 16 * 8, lane / 8 % 2);
  }

 private:
  DEVICE void begin(int row, int half) {
#pragma unroll
    for (int step = 0; step < kBytes / 32; ++step) at[step] = swizzled<kBytes>(row, 2 * step + half);
  }
};

// Runs `copy(stage)` and `multiply(stage)` for each slab, copies kStages - 1 slabs ahead. `copy` is also called for slabs
// behind the last one, where it copies zeros or nothing.
//
// kUnrolled: a turn of the loop is kStages slabs, so that every address of shared memory is a constant away from a register
// and the pointers into x and w move once a turn. Else a turn is one slab, for those whose slab is long code as it is.
template <int kStages, bool kUnrolled, class Copy, class Multiply>
DEVICE void pipeline(int slabs, int stage_bytes, Copy copy, Multiply multiply) {
  const SharedAddress shared = shared_memory();
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) {
    copy(shared + stage * stage_bytes);
    cp_async_commit();
  }
  // This thread's part of the oldest slab has come; behind the barrier, everybody's. The barrier also says that all are done
  // with the slab before it, whose place the new copy takes.
  const auto step = [&](int read, int write) {
    cp_async_wait<kStages - 2>();
    block_barrier();
    copy(shared + write);
    cp_async_commit();
    multiply(shared + read);
  };
  if constexpr (kUnrolled) {
    for (;;) {
#pragma unroll
      for (int stage = 0; stage < kStages; ++stage) {
        if (slabs-- == 0) return;
        step(stage * stage_bytes, (stage + kStages - 1) % kStages * stage_bytes);
      }
    }
  } else {
    int read = 0, write = (kStages - 1) * stage_bytes;
#pragma unroll 1
    for (int slab = 0; slab < slabs; ++slab) {
      step(read, write);
      write = read;
      read = read + stage_bytes == kStages * stage_bytes ? 0 : read + stage_bytes;
    }
  }
}

// Calls visit(row, column, d0, d1) for each pair of neighbours in a row that this lane has, counted from the block's corner.
template <class T, class Number, class Visit>
DEVICE void for_each_pair(const Number (&d)[T::kMTiles][T::kNTiles][4], Visit visit) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int j = 0; j < T::kNTiles; ++j) {
#pragma unroll
    for (int i = 0; i < T::kMTiles; ++i) {
      const int row = T::warp_row() + 16 * i + lane / 4, column = T::warp_column() + 8 * j + lane % 4 * 2;
      visit(row, column, d[i][j][0], d[i][j][1]);
      visit(row + 8, column, d[i][j][2], d[i][j][3]);
    }
  }
}

template <int kM, int kN, class Number>
DEVICE void fill(Number (&d)[kM][kN][4], Number value) {
#pragma unroll
  for (int i = 0; i < kM; ++i) {
#pragma unroll
    for (int j = 0; j < kN; ++j) d[i][j][0] = d[i][j][1] = d[i][j][2] = d[i][j][3] = value;
  }
}

// y[row, column .. column + 1] = a, b where they are inside [rows, columns].
DEVICE void store_pair(float* y, int rows, int columns, int row, int column, float a, float b) {
  if (row >= rows || column >= columns) return;
  float* to = y + static_cast<int64_t>(row) * columns + column;
  if (columns % 2 == 0) {
    *reinterpret_cast<float2*>(to) = float2{a, b};
  } else {
    to[0] = a;
    if (column + 1 < columns) to[1] = b;
  }
}

}  // namespace pyquant
