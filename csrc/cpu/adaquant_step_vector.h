// AdaQuant's row kernels, written once over V as in fake_quantize_vector.h. Bound by its two divisions and its square root a step.
#pragma once
#include "cpu/adaquant_step_rows.h"
#include "cpu/fake_quantize_vector.h"

namespace pyquant {
namespace {

template <class V>
struct AdaquantVector {
  using F = typename V::F;
  using M = typename V::M;

  static double learn(const AdaquantRow& row, const AdamRates& rates) {
    const F start = V::set(row.start), scale = V::set(row.scale), zero = V::set(row.zero_point);
    const F qmin = V::set(row.range.qmin), qmax = V::set(row.range.qmax), tiny = V::set(1e-12f);
    const F first_share = V::set(rates.first_share), second_share = V::set(rates.second_share);
    const F debias = V::set(rates.debias), rate = V::set(rates.weight_rate);
    typename V::Sum slopes, outsides;
    const auto one = [&](F gradient, F& position, F& first, F& second) PQ_INLINE {
      const F ratio = V::div(V::mul(position, start), scale);
      const F u = V::add(V::round(ratio), zero);
      const F code = V::clamp(u, qmin, qmax);
      const M inside = V::same(u, code);
      V::add_terms(slopes, outsides, gradient, V::sub_where(inside, V::sub(code, zero), ratio), inside);
      const F d = V::mul(V::keep(inside, gradient), start);
      first = V::add(first, V::mul(V::sub(d, first), first_share));
      second = V::add(second, V::mul(V::sub(V::mul(d, d), second), second_share));
      const F spread = V::add(V::root(V::mul(second, debias)), tiny);
      position = V::sub(position, V::div(V::mul(first, rate), spread));
    };
    for_steps(row.n, [&](int64_t i, int lanes) PQ_INLINE {
      F ga, gb, pa, pb, fa, fb, sa, sb;
      V::load2(row.gradient + i, lanes, ga, gb);
      V::load2(row.position + i, lanes, pa, pb);
      V::load2(row.first + i, lanes, fa, fb);
      V::load2(row.second + i, lanes, sa, sb);
      one(ga, pa, fa, sa);
      one(gb, pb, fb, sb);
      V::template store2<false>(row.position + i, lanes, pa, pb);
      V::template store2<false>(row.first + i, lanes, fa, fb);
      V::template store2<false>(row.second + i, lanes, sa, sb);
    });
    double slope, outside;
    V::fold(slopes, outsides, &slope, &outside);
    return slope;
  }

  static void place(const AdaquantRow& row) {
    const F start = V::set(row.start), scale = V::set(row.scale), zero = V::set(row.zero_point);
    const F qmin = V::set(row.range.qmin), qmax = V::set(row.range.qmax);
    const auto one = [&](F position) PQ_INLINE {
      const F u = V::add(V::round(V::div(V::mul(position, start), scale)), zero);
      return V::mul(V::sub(V::clamp(u, qmin, qmax), zero), scale);
    };
    for_steps(row.n, [&](int64_t i, int lanes) PQ_INLINE {
      F a, b;
      V::load2(row.position + i, lanes, a, b);
      V::template store2<false>(row.weight + i, lanes, one(a), one(b));
    });
  }

  static constexpr AdaquantRowKernels kernels = {learn, place};
};

}  // namespace
}  // namespace pyquant
