// The row kernels, written once over V: 16 lanes of float in whatever registers an instruction set has. The formulas are those
// of grid.h, lane by lane. Everything sits in an unnamed namespace: each includer is compiled with flags of its own, and the linker
// must never merge one's code with another's.
#pragma once
#include "cpu/fake_quantize_rows.h"

// A row's step is called from three places; left alone, the compiler would make it a function and its sums would live in memory.
#define PQ_INLINE __attribute__((always_inline))

namespace pyquant {
namespace {

// Calls step(i, lanes) over a row of n: whole vectors where lanes == kLanes, at most one shorter step at each end.
template <class Step>
inline void for_lanes(int64_t first, int64_t n, Step step) {
  int64_t i = 0;
  if (first > 0) {
    i = first < n ? first : n;
    step(int64_t{0}, static_cast<int>(i));
  }
  for (; i + kLanes <= n; i += kLanes) step(i, kLanes);
  if (i < n) step(i, static_cast<int>(n - i));
}

// Elements before the first address that can be streamed to.
template <class T>
inline int64_t misaligned(const T* p) {
  constexpr uintptr_t bytes = kLanes * sizeof(T);
  return static_cast<int64_t>((bytes - reinterpret_cast<uintptr_t>(p) % bytes) % bytes / sizeof(T));
}

template <class V, class T>
inline typename V::F load(const T* p, int lanes) {
  return lanes == kLanes ? V::load(p) : V::load_part(p, lanes);
}

template <class V, class T>
inline void store(T* p, typename V::F v, int lanes, bool stream) {
  if (lanes < kLanes) {
    V::store_part(p, v, lanes);
  } else if (stream) {
    V::stream(p, v);
  } else {
    V::store(p, v);
  }
}

// The scale and zero point of the 16 elements at i.
template <class V, bool kSpread>
struct Params {
  const float* scale;
  const float* zero;
  typename V::F s, z;
  Params(const float* scale_, const float* zero_) : scale(scale_), zero(zero_), s(V::set(*scale_)), z(V::set(*zero_)) {}
  inline void at(int64_t i, int lanes) {
    if (kSpread) {
      // Lanes past the end hold 0 / 0; they are never stored nor summed.
      s = load<V>(scale + i, lanes);
      z = load<V>(zero + i, lanes);
    }
  }
};

template <class V>
struct VectorRows {
  static void fence() { V::fence(); }

  template <class T, bool kSpread>
  static void forward(const void* xv, void* yv, int64_t n, const float* scale, const float* zero, CodeRange range, bool stream) {
    const T* x = static_cast<const T*>(xv);
    T* y = static_cast<T*>(yv);
    const auto qmin = V::set(range.qmin), qmax = V::set(range.qmax);
    Params<V, kSpread> grid(scale, zero);
    for_lanes(stream ? misaligned(y) : 0, n, [&](int64_t i, int lanes) PQ_INLINE {
      grid.at(i, lanes);
      const auto u = V::add(V::round(V::div(load<V>(x + i, lanes), grid.s)), grid.z);
      store<V>(y + i, V::mul(V::sub(V::clamp(u, qmin, qmax), grid.z), grid.s), lanes, stream);
    });
  }

  template <class T, bool kSpread, bool kSums>
  static void backward(const void* dyv, const void* xv, void* dxv, int64_t n, const float* scale, const float* zero, CodeRange range,
                    double* slope_sum, double* outside_sum, bool stream) {
    const T* dy = static_cast<const T*>(dyv);
    const T* x = static_cast<const T*>(xv);
    T* dx = static_cast<T*>(dxv);
    const auto qmin = V::set(range.qmin), qmax = V::set(range.qmax);
    Params<V, kSpread> grid(scale, zero);
    typename V::Sum slopes, outsides;
    // No short first step here: it would tie the lanes of the sums to the address.
    stream = stream && misaligned(dx) == 0;
    for_lanes(0, n, [&](int64_t i, int lanes) PQ_INLINE {
      grid.at(i, lanes);
      const auto d = load<V>(dy + i, lanes);
      const auto ratio = V::div(load<V>(x + i, lanes), grid.s);
      const auto u = V::add(V::round(ratio), grid.z);
      const auto inside = V::both(V::at_least(u, qmin), V::at_most(u, qmax));
      store<V>(dx + i, V::keep(inside, d), lanes, stream);
      if (kSums) {
        // Inside, the clamp changes nothing; outside, the ratio drops out.
        const auto slope = V::sub(V::sub(V::clamp(u, qmin, qmax), grid.z), V::keep(inside, ratio));
        if (kSpread) {
          V::add_terms(slope_sum + i, d, slope, lanes);
          V::add_terms(outside_sum + i, V::drop(inside, d), V::set(1.0f), lanes);
        } else {
          // Past the end dy is 0 and the slope is finite, so the spare lanes add nothing.
          slopes.add_product(d, slope);
          outsides.add(V::drop(inside, d));
        }
      }
    });
    if (kSums && !kSpread) {
      double lanes[kLanes];
      slopes.store(lanes);
      *slope_sum = fold_lanes(lanes);
      outsides.store(lanes);
      *outside_sum = fold_lanes(lanes);
    }
  }

  template <class T, bool kSpread>
  static void quantize(const void* xv, uint8_t* codes, int64_t n, const float* scale, const float* zero, CodeRange range) {
    const T* x = static_cast<const T*>(xv);
    const auto qmin = V::set(range.qmin), qmax = V::set(range.qmax);
    Params<V, kSpread> grid(scale, zero);
    for_lanes(0, n, [&](int64_t i, int lanes) PQ_INLINE {
      grid.at(i, lanes);
      const auto u = V::add(V::round(V::div(load<V>(x + i, lanes), grid.s)), grid.z);
      V::store_codes(codes + i, V::number_or(V::clamp(u, qmin, qmax), grid.z), lanes);
    });
  }
};

}  // namespace
}  // namespace pyquant
