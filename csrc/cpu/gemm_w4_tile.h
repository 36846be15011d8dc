// Matrix product with 4-bit weights: nibbles are unpacked in registers beside the dot product, as codes times 16, so
// that no sign extension is needed; a group's sum is divided by 16 again, exactly.
#pragma once
#include "cpu/kernels.h"

namespace pyquant {
namespace {

template <int R, int P>
void gemm_w4_tile(const GemmW4& w4, const GemmW4Rows& rows, int64_t first, int64_t panel) {
  constexpr int64_t kBytes = kLanes * 4;
  const int64_t panel_bytes = w4.groups * w4.eights * kBytes;
  const uint8_t* w = w4.weight + panel * panel_bytes;
  const uint8_t* x[R];
  for (int r = 0; r < R; ++r) x[r] = rows.x + (first + r) * rows.stride;
  Lanes::Floats total[R][P];
  for (int r = 0; r < R; ++r) {
    for (int p = 0; p < P; ++p) total[r][p] = Lanes::set_float(0);
  }
  for (int64_t g = 0; g < w4.groups; ++g) {
    Lanes::Ints acc[R][P];
    for (int r = 0; r < R; ++r) {
      for (int p = 0; p < P; ++p) acc[r][p] = Lanes::set_int(0);
    }
    for (int64_t e = 0; e < w4.eights; ++e) {
      for (int half = 0; half < 2; ++half) {
        Lanes::Weights now[P];
        for (int p = 0; p < P; ++p) {
          now[p] = half == 0 ? Lanes::low_nibbles(w + p * panel_bytes) : Lanes::high_nibbles(w + p * panel_bytes);
        }
        for (int r = 0; r < R; ++r) {
          const Lanes::Broadcast four = Lanes::broadcast(x[r] + 4 * half);
          for (int p = 0; p < P; ++p) acc[r][p] = Lanes::dot(acc[r][p], four, now[p]);
        }
      }
      w += kBytes;
      for (int r = 0; r < R; ++r) x[r] += 8;
    }
    // sum (x - zx)(w - zw) = sum x w - zx sum w - zw sum (x - zx)
    for (int p = 0; p < P; ++p) {
      const int64_t at = ((panel + p) * w4.groups + g) * kLanes;
      const Lanes::Ints sum = Lanes::load_ints(w4.weight_sum + at), zero = Lanes::load_ints(w4.weight_zero + at);
      const Lanes::Floats scale = Lanes::load_floats(w4.scale + at);
      for (int r = 0; r < R; ++r) {
        const int64_t row = first + r;
        const Lanes::Ints from_x = Lanes::mul_ints(Lanes::set_int(rows.x_zero[row]), sum);
        const Lanes::Ints from_w = Lanes::mul_ints(Lanes::set_int(rows.x_sum[row * w4.groups + g]), zero);
        const Lanes::Ints exact = Lanes::sub_ints(Lanes::sub_ints(Lanes::divide_by_16(acc[r][p]), from_x), from_w);
        total[r][p] = Lanes::add(total[r][p], Lanes::mul(Lanes::to_float(exact), scale));
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    const int64_t row = first + r;
    const Lanes::Floats scale = Lanes::set_float(rows.x_scale[row]);
    for (int p = 0; p < P; ++p) {
      const int64_t channel = (panel + p) * kLanes;
      const int64_t n = w4.channels - channel < kLanes ? w4.channels - channel : kLanes;
      Lanes::store_floats(rows.y + row * rows.y_stride + channel, Lanes::mul(total[r][p], scale), n);
    }
  }
}

template <int P>
void gemm_w4_panels(const GemmW4& w4, const GemmW4Rows& rows, int64_t panel) {
  // Totals and accumulators both live in registers, so tiles are half as tall as int8's.
  int64_t first = 0;
  for (; first + 4 <= rows.count; first += 4) gemm_w4_tile<4, P>(w4, rows, first, panel);
  if (rows.count - first == 3) gemm_w4_tile<3, P>(w4, rows, first, panel);
  if (rows.count - first == 2) gemm_w4_tile<2, P>(w4, rows, first, panel);
  if (rows.count - first == 1) gemm_w4_tile<1, P>(w4, rows, first, panel);
}

void gemm_w4(const GemmW4& w4, const GemmW4Rows& rows, int64_t panel_begin, int64_t panel_end) {
  int64_t panel = panel_begin;
  for (; panel + Lanes::kPanels <= panel_end; panel += Lanes::kPanels) gemm_w4_panels<Lanes::kPanels>(w4, rows, panel);
  for (; panel < panel_end; ++panel) gemm_w4_panels<1>(w4, rows, panel);
}

}  // namespace
}  // namespace pyquant
