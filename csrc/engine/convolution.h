// Convolution steps: packed weights, and the walk over output pixels.
#pragma once
#include <memory>

#include "engine/frame.h"

namespace pyquant {

// weight: [N][KH][KW][C / groups] codes less their zero points. Multiplier and bias: [N].
struct ConvolutionSpec {
  int x, y;
  int residual = -1;
  int64_t outputs, kernel_height, kernel_width, group_channels, groups;
  int64_t stride_height, stride_width, dilation_height, dilation_width;
  int64_t top, left, bottom, right;
  const int8_t* weight;
  const float* multiplier;
  const float* bias;
  int x_zero, y_zero, low, high, residual_zero;
  float residual_scale;
};

std::unique_ptr<Step> make_convolution(const ConvolutionSpec& spec, bool to_float, const Kernels& kernels);
std::unique_ptr<Step> make_depthwise(const ConvolutionSpec& spec, const Kernels& kernels);

}  // namespace pyquant
