// The instructions of csrc/cuda/ptx.cuh on a CPU: the same names, doing what the PTX ISA documents, on the fibers of fibers.h.
#pragma once
#include <cmath>

#include "cpu/float_types.h"
#include "fibers.h"

#define DEVICE inline
#define __global__
#define __restrict__
#define __launch_bounds__(...)

struct alignas(8) int2 {
  int x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

// One rounding each: the build says -ffp-contract=off.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __int2float_rn(int v) { return static_cast<float>(v); }
inline float __int_as_float(int bits) {
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}
inline uint32_t __float_as_uint(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return bits;
}

namespace pyquant {

using SharedAddress = uint8_t*;

DEVICE SharedAddress shared_memory() { return executor::shared_base; }

DEVICE void ldmatrix_x4(uint32_t (&r)[4], SharedAddress row) {
  executor::check_shared(row, 16, "ldmatrix");
  executor::current->in[0] = row;
  executor::current->out = r;
  executor::with_warp([](executor::Thread* lanes) {
    const auto row_of = [&](unsigned lane) { return static_cast<const uint8_t*>(lanes[lane].in[0]); };
    for (unsigned i = 0; i < 4; ++i) {
      const uint8_t* rows[8];
      for (unsigned j = 0; j < 8; ++j) rows[j] = row_of(8 * i + j);
      executor::note_conflicts(rows);
      for (unsigned l = 0; l < 32; ++l) {
        std::memcpy(static_cast<uint32_t*>(lanes[l].out) + i, row_of(8 * i + l / 4) + l % 4 * 4, 4);
      }
    }
  });
}

DEVICE void load_shared_16(uint32_t (&r)[4], SharedAddress from) {
  executor::check_shared(from, 16, "ld.shared.v4");
  std::memcpy(r, from, 16);
}

DEVICE uint32_t load_shared_4(SharedAddress from) {
  executor::check_shared(from, 4, "ld.shared.u32");
  uint32_t word;
  std::memcpy(&word, from, 4);
  return word;
}

DEVICE uint32_t load_shared_1(SharedAddress from) {
  executor::check_shared(from, 1, "ld.shared.u8");
  return *from;
}

DEVICE void store_shared_2(SharedAddress to, uint32_t pair) {
  executor::check_shared(to, 2, "st.shared.u16");
  const uint16_t low = static_cast<uint16_t>(pair);
  std::memcpy(to, &low, 2);
}

DEVICE void cp_async_16(SharedAddress to, const void* from, bool valid) {
  executor::check_shared(to, 16, "cp.async");
  executor::Copy copy{to, {}};
  if (valid) {
    executor::check_global(static_cast<const uint8_t*>(from), 16, "cp.async");
    std::memcpy(copy.bytes, from, 16);
  }
  std::memset(to, executor::kGarbage, 16);
  ++executor::under_way[(to - executor::shared_base) / 16];
  executor::current->open.push_back(copy);
}

DEVICE void cp_async_commit() {
  executor::current->groups.push_back(std::move(executor::current->open));
  executor::current->open.clear();
}

template <int N>
DEVICE void cp_async_wait() {
  auto& groups = executor::current->groups;
  while (groups.size() > N) {
    for (const executor::Copy& copy : groups.front()) {
      std::memcpy(copy.to, copy.bytes, 16);
      --executor::under_way[(copy.to - executor::shared_base) / 16];
    }
    groups.erase(groups.begin());
  }
}

DEVICE void block_barrier() {
  executor::Thread* me = executor::current;
  me->state = executor::State::kAtBarrier;
  while (me->state == executor::State::kAtBarrier) executor::yield();
}

// The operands of one warp's product. `kBits` wide codes, `kHalf` registers of A to a row: K codes in all.
template <int kBits, bool kSignedA, int kHalves>
DEVICE void multiply_codes(executor::Thread* lanes) {
  constexpr int kCodes = 32 / kBits, kHalfK = 4 * kCodes, kLength = kHalves * kHalfK;
  const auto code = [](uint32_t word, int i, bool is_signed) {
    const uint32_t top = word << (32 - kBits * (i + 1));
    return is_signed ? static_cast<int>(top) >> (32 - kBits) : static_cast<int>(top >> (32 - kBits));
  };
  int a[16][kLength], b[8][kLength];
  for (int l = 0; l < 32; ++l) {
    const auto* from_a = static_cast<const uint32_t*>(lanes[l].in[0]);
    const auto* from_b = static_cast<const uint32_t*>(lanes[l].in[1]);
    for (int half = 0; half < kHalves; ++half) {
      for (int i = 0; i < kCodes; ++i) {
        const int k = half * kHalfK + l % 4 * kCodes + i;
        a[l / 4][k] = code(from_a[2 * half], i, kSignedA);
        a[l / 4 + 8][k] = code(from_a[2 * half + 1], i, kSignedA);
        b[l / 4][k] = code(from_b[half], i, true);
      }
    }
  }
  for (int l = 0; l < 32; ++l) {
    auto* d = static_cast<int*>(lanes[l].out);
    for (int i = 0; i < 4; ++i) {
      int sum = 0;  // of at most 64 products: small
      for (int k = 0; k < kLength; ++k) sum += a[l / 4 + i / 2 * 8][k] * b[l % 4 * 2 + i % 2][k];
      d[i] = static_cast<int>(static_cast<uint32_t>(d[i]) + static_cast<uint32_t>(sum));
    }
  }
}

template <int kBits, bool kSignedA, int kHalves>
DEVICE void mma_codes(int (&d)[4], const uint32_t* a, const uint32_t* b) {
  executor::current->in[0] = a;
  executor::current->in[1] = b;
  executor::current->out = d;
  executor::with_warp(multiply_codes<kBits, kSignedA, kHalves>);
}

template <bool kSigned>
DEVICE void mma_s8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t b[] = {b0, b1};
  mma_codes<8, kSigned, 2>(d, a, b);
}

template <bool kSigned>
DEVICE void mma_s4(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t b[] = {b0, b1};
  mma_codes<4, kSigned, 2>(d, a, b);
}

template <bool kSigned>
DEVICE void mma_s4_half(int (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
  const uint32_t a[] = {a0, a1};
  mma_codes<4, kSigned, 1>(d, a, &b0);
}

template <bool kBf16>
DEVICE float half_of(uint32_t pair, int i) {
  const uint16_t bits = static_cast<uint16_t>(pair >> (16 * i));
  if constexpr (kBf16) return widen(Bf16{bits});
  return widen(Fp16{bits});
}

template <bool kBf16>
DEVICE void mma_16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t b[] = {b0, b1};
  executor::current->in[0] = a;
  executor::current->in[1] = b;
  executor::current->out = d;
  executor::with_warp([](executor::Thread* lanes) {
    float rows[16][16], columns[8][16];
    for (int l = 0; l < 32; ++l) {
      const auto* from_a = static_cast<const uint32_t*>(lanes[l].in[0]);
      const auto* from_b = static_cast<const uint32_t*>(lanes[l].in[1]);
      for (int half = 0; half < 2; ++half) {
        for (int i = 0; i < 2; ++i) {
          const int k = half * 8 + l % 4 * 2 + i;
          rows[l / 4][k] = half_of<kBf16>(from_a[2 * half], i);
          rows[l / 4 + 8][k] = half_of<kBf16>(from_a[2 * half + 1], i);
          columns[l / 4][k] = half_of<kBf16>(from_b[half], i);
        }
      }
    }
    for (int l = 0; l < 32; ++l) {
      auto* sums = static_cast<float*>(lanes[l].out);
      for (int i = 0; i < 4; ++i) {
        for (int k = 0; k < 16; ++k) sums[i] += rows[l / 4 + i / 2 * 8][k] * columns[l % 4 * 2 + i % 2][k];
      }
    }
  });
}

template <bool kBf16>
DEVICE uint16_t narrow(float v) {
  if constexpr (kBf16) {
    Bf16 bits;
    narrow(v, &bits);
    return bits.bits;
  }
  Fp16 bits;
  narrow(v, &bits);
  return bits.bits;
}

DEVICE uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) { return (a & b) | c; }

template <bool kBf16>
DEVICE uint32_t fma_pair(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t pair = 0;
  for (int i = 0; i < 2; ++i) {
    // The product of two such floats is exact in double, and so is the sum for the kernels' small whole numbers.
    const double sum = double{half_of<kBf16>(a, i)} * half_of<kBf16>(b, i) + half_of<kBf16>(c, i);
    pair |= static_cast<uint32_t>(narrow<kBf16>(static_cast<float>(sum))) << (16 * i);
  }
  return pair;
}

}  // namespace pyquant
