#include "engine/convolution.h"

#include <algorithm>
#include <vector>

#include "cpu/threads.h"
#include "engine/layer_tensors.h"

namespace pyquant {
namespace {

// Pixels whose addresses are worked out at once; all panels of weights then pass over them while they are in the cache.
constexpr int64_t kBlock = 144;
// So many where they come in whole rows of a map.
constexpr int64_t kRowBlock = kMostPixels;

// A convolution as an implicit matrix product. The kernel's rows are runs of contiguous bytes, because a value has its
// padding around it; with groups or a horizontal dilation every tap is a run of its own.
class Convolution : public Step {
 public:
  Convolution(const ConvolutionSpec& spec, bool to_float, int64_t chunk_steps)
      : spec_(spec), to_float_(to_float), tensors_(spec, spec.groups) {
    const bool whole_rows = spec.groups == 1 && spec.dilation_width == 1;
    taps_a_run_ = whole_rows ? spec.kernel_width : 1;
    steps_ = (taps_a_run_ * spec.group_channels + 3) / 4;
    chunk_ = steps_;
    if (chunk_steps > 0) {
      chunks_ = (steps_ + chunk_steps - 1) / chunk_steps;
      chunk_ = (steps_ + chunks_ - 1) / chunks_;
      steps_ = chunks_ * chunk_;
    }
    panels_ = panels_of(spec.outputs / spec.groups);
    pack();
    spec_.weight = nullptr;
    inputs = {spec.x};
    if (spec.residual >= 0) inputs.push_back(spec.residual);
    output = spec.y;
  }

  int64_t scratch_bytes() const override {
    constexpr int64_t kGroup = 16;
    return (kMostPixels + kGroup - 1) / kGroup * static_cast<int64_t>(offsets_.size()) * chunks_ * 1024;
  }

  void prepare(const std::vector<Value>& values) override {
    const Value& x = values[spec_.x];
    offsets_.clear();
    for (int64_t h = 0; h < spec_.kernel_height; ++h) {
      for (int64_t w = 0; w < spec_.kernel_width; w += taps_a_run_) {
        offsets_.push_back(h * spec_.dilation_height * x.row_stride + w * spec_.dilation_width * x.pixel_stride);
      }
    }
  }

  bool reads_exactly(int value) const override {
    return value == spec_.x && value != spec_.residual && 4 * steps_ == taps_a_run_ * spec_.group_channels;
  }

  void run(const Frame& frame) const override {
    const int64_t pixels = frame.batch * frame.values[spec_.y].shape.pixels();
    const int64_t panels = spec_.groups * panels_;
    // Few pixels (a linear layer at batch 1) are shared out by channels instead.
    if (pixels >= 16 * frame.threads || panels == 1) {
      parallel_for(frame.threads, pixels, [&](int64_t begin, int64_t end) { part(frame, begin, end, 0, panels); });
    } else {
      parallel_for(frame.threads, panels, [&](int64_t begin, int64_t end) { part(frame, 0, pixels, begin, end); });
    }
  }

 private:
  // [group][panel][run * step][16][4]
  void pack() {
    const int64_t runs = spec_.kernel_height * spec_.kernel_width / taps_a_run_;
    const int64_t run_length = taps_a_run_ * spec_.group_channels;
    const int64_t outputs = spec_.outputs / spec_.groups;
    tensors_.weight.assign(spec_.groups * panels_ * runs * steps_ * kLanes * 4);
    for (int64_t n = 0; n < spec_.outputs; ++n) {
      const int64_t panel = n / outputs * panels_ + n % outputs / kLanes;
      for (int64_t run = 0; run < runs; ++run) {
        for (int64_t k = 0; k < run_length; ++k) {
          const int64_t step = (panel * runs + run) * steps_ + k / 4;
          tensors_.weight[(step * kLanes + n % outputs % kLanes) * 4 + k % 4] =
              spec_.weight[(n * runs + run) * run_length + k];
        }
      }
    }
  }

  // Kernels that like pixels in groups like them at equal distances. A map with a halo has them so in its rows only.
  bool takes_rows(const Kernels& kernels, int64_t width, int64_t row_stride, int64_t x_step) const {
    constexpr int64_t kLeastWidth = 10;
    return kernels.group_pixels > 1 && kLeastWidth <= width && width <= kRowBlock &&
           spec_.stride_height * row_stride != width * x_step;
  }

  // Output pixels [begin, end) counted over the batch, panels [panel_begin, panel_end) counted over the groups.
  void part(const Frame& frame, int64_t begin, int64_t end, int64_t panel_begin, int64_t panel_end) const {
    const Shape& shape = frame.values[spec_.y].shape;
    const Buffer& from = frame.buffers[spec_.x];
    const Buffer& to = frame.buffers[spec_.y];
    const Buffer* residual = spec_.residual >= 0 ? &frame.buffers[spec_.residual] : nullptr;
    const uint8_t* x[kMostPixels];
    void* y[kMostPixels];
    const uint8_t* r[kMostPixels];
    const int64_t x_step = spec_.stride_width * from.pixel_stride;
    const bool by_rows = takes_rows(frame.kernels, shape.width, from.row_stride, x_step);
    const int64_t group = by_rows ? shape.width : frame.kernels.group_pixels;
    const int64_t most = (by_rows ? kRowBlock : kBlock) / group;
    const int64_t groups = (end - begin + group - 1) / group;
    const int64_t blocks = (groups + most - 1) / most;
    const auto block_begin = [&](int64_t b) { return std::min(groups * b / blocks * group, end - begin); };
    int64_t column = begin % shape.width;
    int64_t row = begin / shape.width % shape.height;
    int64_t image = begin / shape.pixels();
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t count = block_begin(b + 1) - block_begin(b);
      // Along a row, addresses grow by constant steps.
      for (int64_t i = 0; i < count;) {
        const int64_t run = std::min(count - i, shape.width - column);
        const uint8_t* x0 =
            from.at(image, row * spec_.stride_height - spec_.top, column * spec_.stride_width - spec_.left);
        for (int64_t j = 0; j < run; ++j) x[i + j] = x0 + j * x_step;
        uint8_t* y0 = to.at(image, row, column);
        for (int64_t j = 0; j < run; ++j) y[i + j] = y0 + j * to.pixel_stride;
        if (residual != nullptr) {
          const uint8_t* r0 = residual->at(image, row, column);
          for (int64_t j = 0; j < run; ++j) r[i + j] = r0 + j * residual->pixel_stride;
        }
        i += run;
        column += run;
        if (column == shape.width) {
          column = 0;
          if (++row == shape.height) row = 0, ++image;
        }
      }
      block(frame, {x, y, residual != nullptr ? r : nullptr, count, to_float_, frame.scratch_of_part()}, panel_begin,
            panel_end);
    }
  }

  void block(const Frame& frame, ConvPixels pixels, int64_t panel_begin, int64_t panel_end) const {
    const uint8_t* x[kMostPixels];
    void* y[kMostPixels];
    const uint8_t* r[kMostPixels];
    const int64_t outputs = spec_.outputs / spec_.groups;
    for (int64_t group = panel_begin / panels_; group * panels_ < panel_end; ++group) {
      ConvPixels shifted = pixels;
      if (group > 0) {
        const int64_t y_bytes = group * outputs * (to_float_ ? 4 : 1);
        for (int64_t i = 0; i < pixels.count; ++i) {
          x[i] = pixels.x[i] + group * spec_.group_channels;
          y[i] = static_cast<uint8_t*>(pixels.y[i]) + y_bytes;
          if (pixels.residual != nullptr) r[i] = pixels.residual[i] + group * outputs;
        }
        shifted.x = x;
        shifted.y = y;
        if (pixels.residual != nullptr) shifted.residual = r;
      }
      frame.kernels.conv(layer(group), shifted, std::max<int64_t>(panel_begin - group * panels_, 0),
                         std::min(panel_end - group * panels_, panels_));
    }
  }

  ConvLayer layer(int64_t group) const {
    const int64_t first = group * panels_ * kLanes;
    const int64_t runs = static_cast<int64_t>(offsets_.size());
    return {tensors_.weight.data() + first * runs * steps_ * 4,
            tensors_.seed.data() + first,
            offsets_.data(),
            runs,
            steps_,
            chunk_,
            spec_.outputs / spec_.groups,
            tensors_.epilogue(spec_, first)};
  }

  ConvolutionSpec spec_;
  bool to_float_;
  LayerTensors tensors_;
  int64_t taps_a_run_, steps_, chunk_, panels_;
  int64_t chunks_ = 0;  // of a run, where the kernels want them
  std::vector<int64_t> offsets_;
};

}  // namespace

std::unique_ptr<Step> make_convolution(const ConvolutionSpec& spec, bool to_float, const Kernels& kernels) {
  return std::make_unique<Convolution>(spec, to_float, kernels.chunk_steps);
}

}  // namespace pyquant
