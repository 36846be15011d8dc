// The row kernels, written once over V: F is 16 lanes of float in whatever registers an instruction set has. The formulas are those
// of grid.h, lane by lane. Everything sits in an unnamed namespace: each includer is compiled with flags of its own, and the linker
// must never merge one's code with another's.
#pragma once
#include <cmath>
#include <cstring>

#include "cpu/fake_quantize_rows.h"

// A row's step is called from two places; left alone, the compiler would make it a function and its sums would live in memory.
#define PQ_INLINE __attribute__((always_inline))

namespace pyquant {
namespace {

// The hardware's own prefetcher stops at the end of a page; this many bytes ahead it is helped over.
constexpr int64_t kAhead = 4096;
// Words of a mask.
constexpr int64_t kMaskAhead = 64;

// Calls step(i, lanes) over a row of n: whole steps where lanes == kStep, and at most one shorter one at the end.
template <class Step>
PQ_INLINE inline void for_steps(int64_t n, Step step) {
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) step(i, kStep);
  if (i < n) step(i, static_cast<int>(n - i));
}

template <class T>
PQ_INLINE inline void prefetch(const T* p, int64_t ahead) {
  const char* at = reinterpret_cast<const char*>(p) + ahead;
  __builtin_prefetch(at);
  if (sizeof(T) == 4) __builtin_prefetch(at + 64);
}

template <class V>
struct VectorRows {
  using F = typename V::F;
  using M = typename V::M;

  static void fence() { V::fence(); }

  static void copy(void* to, const void* from, int64_t bytes) {
    char* t = static_cast<char*>(to);
    const char* f = static_cast<const char*>(from);
    const int64_t head = static_cast<int64_t>((64 - reinterpret_cast<uintptr_t>(t) % 64) % 64);
    if (head >= bytes) {
      std::memcpy(t, f, static_cast<size_t>(bytes));
      return;
    }
    std::memcpy(t, f, static_cast<size_t>(head));
    int64_t i = head;
    for (; i + 64 <= bytes; i += 64) {
      float line[kLanes];
      std::memcpy(line, f + i, sizeof line);
      V::stream(reinterpret_cast<float*>(t + i), V::load(line));
    }
    std::memcpy(t + i, f + i, static_cast<size_t>(bytes - i));
  }

  // The quick kernels need zero points that floats count exactly, and scales that keep all they compute far from over- and underflow.
  static bool prepare(const float* scale, const float* zero, int64_t n, CodeRange range, float* inverse, float* rest, float* first,
                      float* last) {
    bool quick = true;
    for (int64_t i = 0; i < n; i += kLanes) {
      const int lanes = static_cast<int>(n - i < kLanes ? n - i : kLanes);
      float s_end[kLanes], z_end[kLanes];
      for (int j = 0; j < kLanes && lanes < kLanes; ++j) {
        s_end[j] = j < lanes ? scale[i + j] : 1.0f;
        z_end[j] = j < lanes ? zero[i + j] : 0.0f;
      }
      const F one = V::set(1.0f), s = V::load(lanes < kLanes ? s_end : scale + i), z = V::load(lanes < kLanes ? z_end : zero + i);
      const F about = V::div(one, s);
      quick = quick && V::all(V::same(V::clamp(s, V::set(0x1p-60f), V::set(0x1p15f)), s)) &&
              V::all(V::same(V::clamp(z, V::set(-0x1p20f), V::set(0x1p20f)), z));
      V::store(inverse + i, about);
      V::store(rest + i, V::mul(V::fnma(s, about, one), about));
      V::store(first + i, V::sub(V::set(range.qmin), z));
      V::store(last + i, V::sub(V::set(range.qmax), z));
    }
    return quick;
  }

  // One entry of the grid for a whole row, or one an element. Kept in a register: a store to the result might else change it.
  template <bool kSpread>
  struct Entry {
    const float* p;
    F all;
    PQ_INLINE Entry(const float* entries, int64_t row) : p(entries), all(V::set(entries[kSpread ? 0 : row])) {}
    PQ_INLINE F at(int64_t i) const {
      if constexpr (kSpread) {
        return V::load(p + i);
      } else {
        return all;
      }
    }
  };

  // Rounds half to even below 2^22, past which no code lies, and gives a positive 0, as u - z does.
  static PQ_INLINE F whole(F ratio) {
    const F shift = V::set(0x1.8p23f);
    return V::sub(V::add(ratio, shift), shift);
  }

  // round(x / s) * s of x clamped beforehand to the real numbers that the end codes stand for, which changes no code; so tiny an x
  // as would underflow counts as 0. The quotient is the correctly rounded one: x * inverse + x * rest is one of the two floats around
  // x / s, its remainder is exact, and the remainder times the rounded inverse then takes it to the nearer of them (Markstein,
  // IBM J. Res. Dev. 34, 1990). A division would do as well, at the speed of the divider.
  static PQ_INLINE F quick(F x, F s, F inverse, F rest, F low, F high) { return V::mul(quick_code(x, s, inverse, rest, low, high), s); }
  static PQ_INLINE F quick_code(F x, F s, F inverse, F rest, F low, F high) {
    x = V::clamp(V::drop_tiny(x), low, high);
    const F about = V::fma(x, inverse, V::mul(x, rest));
    return whole(V::fma(V::fnma(about, s, x), inverse, about));
  }

  template <class T, bool kSpread, bool kStream>
  static void forward(const void* xv, void* yv, int64_t rows, int64_t n, int64_t stride, const RowGrid& grid) {
    if (grid.quick) {
      quick_rows<T, kSpread, kStream>(static_cast<const T*>(xv), static_cast<T*>(yv), rows, n, stride, grid);
    } else {
      divided_rows<T, kSpread, kStream>(static_cast<const T*>(xv), static_cast<T*>(yv), rows, n, stride, grid);
    }
  }

  // Entries of a row as plain values, not as an Entry: out of one, gcc 12 copies pairs of registers through the stack for each step.
  template <class T, bool kSpread, bool kStream>
  static PQ_INLINE void quick_rows(const T* x, T* y, int64_t rows, int64_t n, int64_t stride, const RowGrid& grid) {
    for (int64_t r = 0; r < rows; ++r, x += stride, y += stride) {
      if constexpr (kSpread) {
        row<T, kStream>(x, y, n, stride * static_cast<int64_t>(sizeof(T)), [&](F v, int64_t i) PQ_INLINE {
          const F s = V::load(grid.scale + i), low = V::mul(V::load(grid.first + i), s), high = V::mul(V::load(grid.last + i), s);
          return quick(v, s, V::load(grid.inverse + i), V::load(grid.rest + i), low, high);
        });
      } else {
        const F s = V::set(grid.scale[r]), inverse = V::set(grid.inverse[r]), rest = V::set(grid.rest[r]);
        const F low = V::mul(V::set(grid.first[r]), s), high = V::mul(V::set(grid.last[r]), s);
        row<T, kStream>(x, y, n, kAhead, [&](F v, int64_t) PQ_INLINE { return quick(v, s, inverse, rest, low, high); });
      }
    }
  }

  template <class T, bool kSpread, bool kStream>
  static PQ_INLINE void divided_rows(const T* x, T* y, int64_t rows, int64_t n, int64_t stride, const RowGrid& grid) {
    const F qmin = V::set(grid.range.qmin), qmax = V::set(grid.range.qmax);
    for (int64_t r = 0; r < rows; ++r, x += stride, y += stride) {
      const Entry<kSpread> scale(grid.scale, r), zero(grid.zero, r);
      row<T, kStream>(x, y, n, kSpread ? stride * static_cast<int64_t>(sizeof(T)) : kAhead, [&](F v, int64_t i) PQ_INLINE {
        const F s = scale.at(i), z = zero.at(i);
        return V::mul(V::sub(V::clamp(V::add(V::round(V::div(v, s)), z), qmin, qmax), z), s);
      });
    }
  }

  template <class T, bool kStream, class One>
  static PQ_INLINE void row(const T* x, T* y, int64_t n, int64_t ahead, One one) {
    for_steps(n, [&](int64_t i, int lanes) PQ_INLINE {
      F a, b;
      if (kStream) prefetch(x + i, ahead);
      V::load2(x + i, lanes, a, b);
      V::template store2<kStream>(y + i, lanes, one(a, i), one(b, i + kLanes));
    });
  }

  // Quick: x is clamped one code beyond the ends, so that what is out of range still shows.
  template <class T, bool kStream>
  static void forward_masked(const void* xv, void* yv, uint32_t* inside, int64_t rows, int64_t n, int64_t stride, const RowGrid& grid) {
    const T* x = static_cast<const T*>(xv);
    T* y = static_cast<T*>(yv);
    const F one = V::set(1.0f), qmin = V::set(grid.range.qmin), qmax = V::set(grid.range.qmax);
    for (int64_t r = 0; r < rows; ++r, x += stride, y += stride, inside += stride / kStep) {
      const F s = V::set(grid.scale[r]), z = V::set(grid.zero[r]);
      if (grid.quick) {
        const F inverse = V::set(grid.inverse[r]), rest = V::set(grid.rest[r]), first = V::set(grid.first[r]), last = V::set(grid.last[r]);
        const F low = V::mul(V::sub(first, one), s), high = V::mul(V::add(last, one), s);
        masked_row<T, kStream>(x, y, inside, n, [&](F v, M& in) PQ_INLINE {
          const F u = quick_code(v, s, inverse, rest, low, high), code = V::clamp(u, first, last);
          in = V::same(u, code);
          return V::mul(code, s);
        });
      } else {
        masked_row<T, kStream>(x, y, inside, n, [&](F v, M& in) PQ_INLINE {
          const F u = V::add(V::round(V::div(v, s)), z), code = V::clamp(u, qmin, qmax);
          in = V::same(u, code);
          return V::mul(V::sub(code, z), s);
        });
      }
    }
  }

  template <class T, bool kStream, class One>
  static PQ_INLINE void masked_row(const T* x, T* y, uint32_t* inside, int64_t n, One one) {
    for_steps(n, [&](int64_t i, int lanes) PQ_INLINE {
      F a, b;
      M in_a, in_b;
      if (kStream) prefetch(x + i, kAhead);
      if (kStream) __builtin_prefetch(inside + i / kStep + kMaskAhead, 1);
      V::load2(x + i, lanes, a, b);
      a = one(a, in_a);
      b = one(b, in_b);
      V::template store2<kStream>(y + i, lanes, a, b);
      inside[i / kStep] = (V::bits_of(in_a) | V::bits_of(in_b) << kLanes) & first_bits<T>(lanes);
    });
  }

  template <class T, bool kStream>
  static void keep_inside(const void* dyv, const uint32_t* inside, void* dxv, int64_t n) {
    const T* dy = static_cast<const T*>(dyv);
    T* dx = static_cast<T*>(dxv);
    for_steps(n, [&](int64_t i, int lanes) PQ_INLINE {
      F a, b;
      if (kStream) prefetch(dy + i, kAhead);
      if (kStream) __builtin_prefetch(inside + i / kStep + kMaskAhead);
      V::load2(dy + i, lanes, a, b);
      const uint32_t bits = inside[i / kStep];
      V::template keep2<kStream>(dx + i, lanes, dy + i, V::mask_of(bits & 0xffff), a, V::mask_of(bits >> kLanes), b);
    });
  }

  template <class T, bool kSpread, bool kSums, bool kStream>
  static void backward(const void* dyv, const void* xv, void* dxv, int64_t rows, int64_t n, int64_t stride, const RowGrid& grid,
                       double* slope_sum, double* outside_sum) {
    const T* dy = static_cast<const T*>(dyv);
    const T* x = static_cast<const T*>(xv);
    T* dx = static_cast<T*>(dxv);
    if (grid.quick) {
      backward_rows<T, kSpread, kSums, kStream, true>(dy, x, dx, rows, n, stride, grid, slope_sum, outside_sum);
    } else {
      backward_rows<T, kSpread, kSums, kStream, false>(dy, x, dx, rows, n, stride, grid, slope_sum, outside_sum);
    }
  }

  // Quick: codes less their zero point throughout, which saves adding it and taking it away again.
  template <class T, bool kSpread, bool kSums, bool kStream, bool kQuick>
  static PQ_INLINE void backward_rows(const T* dy, const T* x, T* dx, int64_t rows, int64_t n, int64_t stride, const RowGrid& grid,
                                      double* slope_sum, double* outside_sum) {
    const int64_t ahead = kSpread ? stride * static_cast<int64_t>(sizeof(T)) : kAhead;
    const F qmin = V::set(grid.range.qmin), qmax = V::set(grid.range.qmax);
    for (int64_t r = 0; r < rows; ++r, dy += stride, x += stride, dx += stride) {
      const Entry<kSpread> scale(grid.scale, r), zero(grid.zero, r), first(kQuick ? grid.first : grid.zero, r),
          last(kQuick ? grid.last : grid.zero, r);
      typename V::Sum slopes, outsides;
      const auto one = [&](F d, F v, int64_t i) PQ_INLINE {
        const F ratio = V::div(v, scale.at(i));
        const F u = kQuick ? whole(ratio) : V::add(V::round(ratio), zero.at(i));
        const F code = kQuick ? V::clamp(u, first.at(i), last.at(i)) : V::clamp(u, qmin, qmax);
        const M inside = V::same(u, code);
        if (kSums) {
          // Outside, the ratio drops out. Past the end of a row dy is 0 and the slope finite.
          const F slope = V::sub_where(inside, kQuick ? code : V::sub(code, zero.at(i)), ratio);
          if (kSpread) {
            slopes.load(slope_sum + i);
            outsides.load(outside_sum + i);
          }
          V::add_terms(slopes, outsides, d, slope, inside);
          if (kSpread) {
            slopes.store(slope_sum + i);
            outsides.store(outside_sum + i);
          }
        }
        return inside;
      };
      for_steps(n, [&](int64_t i, int lanes) PQ_INLINE {
        F da, db, xa, xb;
        if (kStream) prefetch(dy + i, ahead);
        if (kStream) prefetch(x + i, ahead);
        V::load2(dy + i, lanes, da, db);
        V::load2(x + i, lanes, xa, xb);
        const M a = one(da, xa, i);
        const M b = one(db, xb, i + kLanes);
        V::template keep2<kStream>(dx + i, lanes, dy + i, a, da, b, db);
      });
      if (kSums && !kSpread) V::fold(slopes, outsides, slope_sum + r, outside_sum + r);
    }
  }

  template <class T, bool kSpread>
  static void quantize(const void* xv, uint8_t* codes, int64_t rows, int64_t n, int64_t stride, const RowGrid& grid) {
    const T* x = static_cast<const T*>(xv);
    const F qmin = V::set(grid.range.qmin), qmax = V::set(grid.range.qmax);
    for (int64_t r = 0; r < rows; ++r, x += stride, codes += stride) {
      const Entry<kSpread> scale(grid.scale, r), zero(grid.zero, r);
      const auto step = [&](int64_t i, int lanes) PQ_INLINE {
        const F s = scale.at(i), z = zero.at(i);
        const F v = lanes == kLanes ? V::load(x + i) : V::load_part(x + i, lanes);
        V::store_codes(codes + i, V::number_or(V::clamp(V::add(V::round(V::div(v, s)), z), qmin, qmax), z), lanes);
      };
      int64_t i = 0;
      for (; i + kLanes <= n; i += kLanes) step(i, kLanes);
      if (i < n) step(i, static_cast<int>(n - i));
    }
  }
};

}  // namespace
}  // namespace pyquant
