// Every step that is not a convolution.
#pragma once
#include <memory>

#include "engine/frame.h"

namespace pyquant {

struct WindowSpec {
  int64_t height, width, stride_height, stride_width, top, left;
};

std::unique_ptr<Step> make_quantize(int x, int y, float scale, int zero, int low, int high);
std::unique_ptr<Step> make_dequantize(int x, int y, float scale, int zero);
std::unique_ptr<Step> make_add(int a, int b, int y, int a_zero, float a_scale, int b_zero, float b_scale, int y_zero,
                               int low, int high);
std::unique_ptr<Step> make_average_pool(int x, int y, const WindowSpec& window, int x_zero, float multiplier,
                                        int y_zero, int low, int high);
std::unique_ptr<Step> make_max_pool(int x, int y, const WindowSpec& window);
std::unique_ptr<Step> make_lookup(int x, int y, const uint8_t* table);
// The same bytes under another shape, copied: only for values that have a halo.
std::unique_ptr<Step> make_copy(int x, int y);

}  // namespace pyquant
