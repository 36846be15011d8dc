// Fused fake-quantize, its backward, and quantize to codes, over any layout (outer, channels, inner): element i belongs to
// channel (i / inner) % channels. Bound by memory: 8 bytes an element forward in fp32, 12 backward.
#pragma once
#include <cstdint>

namespace pyquant {

enum class FloatType { f32, bf16, f16 };
enum class FakeQuantizeIsa { portable, avx2, avx512 };

// The grid of a whole tensor. `scale` and `zero_point` hold `channels` floats; zero points are whole numbers.
struct GridLayout {
  const float* scale;
  const float* zero_point;
  int64_t outer, channels, inner;
  float qmin, qmax;
};

// Whether this binary and this machine have the instruction set.
bool fake_quantize_has(FakeQuantizeIsa isa);

// y = dequantize(quantize(x)), in the type of x. `y` may be `x` itself.
void fake_quantize_forward(FloatType type, const void* x, void* y, const GridLayout& grid, FakeQuantizeIsa isa, int threads);

// dx = dy inside the range, else 0. Unless null, `dscale` and `dzero` get one sum a channel: float64 over fixed blocks, combined
// in ascending order, so neither the thread count nor the instruction set changes a bit. `dx` may be `dy` or `x`.
void fake_quantize_backward(FloatType type, const void* dy, const void* x, void* dx, float* dscale, float* dzero,
                            const GridLayout& grid, FakeQuantizeIsa isa, int threads);

// The same with a mask in place of x, where a gradient of the scale is not wanted: forward writes one bit an element, whether it
// was in range, and backward then reads dy and that bit, 8.125 bytes an element. The bits lie
// as they fall out of the registers, alike on every instruction set.
// Serves a lone channel, and rows of whole words.
bool fake_quantize_masks(const GridLayout& grid);
void fake_quantize_forward_masked(FloatType type, const void* x, void* y, uint32_t* inside, const GridLayout& grid,
                                  FakeQuantizeIsa isa, int threads);
void keep_inside(FloatType type, const void* dy, const uint32_t* inside, void* dx, int64_t count, FakeQuantizeIsa isa, int threads);

// One byte a code, two's complement for signed grids.
void quantize_codes(FloatType type, const void* x, uint8_t* codes, const GridLayout& grid, FakeQuantizeIsa isa, int threads);

}  // namespace pyquant
