// The arithmetic of the grid: quantize, dequantize, in_range. One of its three homes (with pyquant/reference.py and
// kernels/grid.py), bit-equal to both in fp32. Host and device.
#pragma once
#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define PQ_HD __host__ __device__ __forceinline__
#else
#define PQ_HD inline
#endif

namespace pyquant {

// u = round_half_even(x / s) + z, before the clamp. True division: a reciprocal would round twice.
PQ_HD float grid_position(float x, float scale, float zero_point) { return nearbyintf(x / scale) + zero_point; }

// A NaN fails every comparison, so it is not in range and its gradient is 0.
PQ_HD bool in_range(float u, float qmin, float qmax) { return u >= qmin && u <= qmax; }

// Comparisons, not fmin/fmax: a NaN passes through, as it does in torch.clamp.
PQ_HD float clamp_code(float u, float qmin, float qmax) { return u < qmin ? qmin : (u > qmax ? qmax : u); }

// A NaN has no code of its own; it becomes the zero point, the code of real 0.
PQ_HD int32_t quantize(float x, float scale, float zero_point, float qmin, float qmax) {
  float u = clamp_code(grid_position(x, scale, zero_point), qmin, qmax);
  return static_cast<int32_t>(u == u ? u : zero_point);
}

PQ_HD float dequantize(float code, float scale, float zero_point) { return (code - zero_point) * scale; }

PQ_HD float fake_quantize(float x, float scale, float zero_point, float qmin, float qmax) {
  return dequantize(clamp_code(grid_position(x, scale, zero_point), qmin, qmax), scale, zero_point);
}

}  // namespace pyquant
