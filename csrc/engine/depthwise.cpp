#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/threads.h"
#include "engine/convolution.h"
#include "engine/layer_tensors.h"

namespace pyquant {
namespace {

// The quads of four input rows that output row `row` of a band needs.
struct Quads {
  int64_t begin, end;
};

Quads quads_of(const ConvolutionSpec& spec, int64_t row) {
  const int64_t first = row * spec.stride_height;
  return {first / 4, (first + (spec.kernel_height - 1) * spec.dilation_height) / 4 + 1};
}

// Tall bands share the interleaving of their input rows among more outputs, but may need more dot products for each.
int64_t best_band(const ConvolutionSpec& spec) {
  constexpr int64_t kInterleaveCost = 6;  // dot products that take as long as interleaving one column of a quad
  int64_t best = 1;
  double least = 1e30;
  for (int64_t band = 1; band <= 8; ++band) {
    int64_t cost = quads_of(spec, band - 1).end * spec.stride_width * kInterleaveCost;
    for (int64_t row = 0; row < band; ++row) {
      const Quads quads = quads_of(spec, row);
      cost += (quads.end - quads.begin) * spec.kernel_width;
    }
    const double each = static_cast<double>(cost) / static_cast<double>(band);
    if (each < least) least = each, best = band;
  }
  return best;
}

class Depthwise : public Step {
 public:
  explicit Depthwise(const ConvolutionSpec& spec)
      : spec_(spec), tensors_(spec, 1), band_(best_band(spec)), quads_(quads_of(spec, band_ - 1).end) {
    for (int64_t row = 0; row < band_; ++row) {
      quad_begin_.push_back(static_cast<int32_t>(quads_of(spec, row).begin));
      quad_end_.push_back(static_cast<int32_t>(quads_of(spec, row).end));
    }
    pack();
    spec_.weight = nullptr;
    inputs = {spec.x};
    if (spec.residual >= 0) inputs.push_back(spec.residual);
    output = spec.y;
  }

  void prepare(const std::vector<Value>& values) override {
    const int64_t columns = (values[spec_.y].shape.width - 1) * spec_.stride_width +
                            (spec_.kernel_width - 1) * spec_.dilation_width + 1;
    scratch_bytes_ = quads_ * columns * kLanes * 4;
  }

  int64_t scratch_bytes() const override { return scratch_bytes_; }

  void run(const Frame& frame) const override {
    const int64_t bands = (frame.values[spec_.y].shape.height + band_ - 1) / band_;
    const int64_t count = frame.batch * bands;
    if (count >= 4 * frame.threads) {
      parallel_for(frame.threads, count, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) band(frame, i / bands, i % bands * band_, 0, panels());
      });
    } else {
      parallel_for(frame.threads, panels(), [&](int64_t begin, int64_t end) {
        for (int64_t i = 0; i < count; ++i) band(frame, i / bands, i % bands * band_, begin, end);
      });
    }
  }

 private:
  int64_t panels() const { return panels_of(spec_.outputs); }

  // [panel][row of the band][quad][kernel column][16][4]: each row's taps, moved down to where its window begins.
  void pack() {
    tensors_.weight.assign(panels() * band_ * quads_ * spec_.kernel_width * kLanes * 4);
    for (int64_t n = 0; n < spec_.outputs; ++n) {
      for (int64_t row = 0; row < band_; ++row) {
        for (int64_t h = 0; h < spec_.kernel_height; ++h) {
          const int64_t x_row = row * spec_.stride_height + h * spec_.dilation_height;
          for (int64_t w = 0; w < spec_.kernel_width; ++w) {
            const int64_t column = ((n / kLanes * band_ + row) * quads_ + x_row / 4) * spec_.kernel_width + w;
            tensors_.weight[(column * kLanes + n % kLanes) * 4 + x_row % 4] =
                spec_.weight[(n * spec_.kernel_height + h) * spec_.kernel_width + w];
          }
        }
      }
    }
  }

  void band(const Frame& frame, int64_t image, int64_t row, int64_t panel_begin, int64_t panel_end) const {
    const Value& x = frame.values[spec_.x];
    const Shape& shape = frame.values[spec_.y].shape;
    const Buffer& from = frame.buffers[spec_.x];
    const Buffer& to = frame.buffers[spec_.y];
    const DepthwiseLayer layer = {tensors_.weight.data(),
                                  tensors_.seed.data(),
                                  quad_begin_.data(),
                                  quad_end_.data(),
                                  band_,
                                  quads_,
                                  spec_.kernel_width,
                                  spec_.stride_width,
                                  spec_.dilation_width,
                                  spec_.outputs,
                                  tensors_.epilogue(spec_, 0)};
    const int64_t x_row = row * spec_.stride_height - spec_.top;
    DepthwiseBand band{};
    band.x = from.at(image, x_row, -spec_.left);
    band.x_row_stride = from.row_stride;
    band.x_rows = x.shape.height + x.bottom - x_row;
    band.x_pixel_stride = from.pixel_stride;
    band.y = to.at(image, row, 0);
    band.y_row_stride = to.row_stride;
    band.y_pixel_stride = to.pixel_stride;
    if (spec_.residual >= 0) {
      const Buffer& residual = frame.buffers[spec_.residual];
      band.residual = residual.at(image, row, 0);
      band.residual_row_stride = residual.row_stride;
      band.residual_pixel_stride = residual.pixel_stride;
    }
    band.rows = std::min(band_, shape.height - row);
    band.columns = shape.width;
    band.scratch = frame.scratch_of_part();
    for (band.panel = panel_begin; band.panel < panel_end; ++band.panel) frame.kernels.depthwise(layer, band);
  }

  ConvolutionSpec spec_;
  LayerTensors tensors_;
  int64_t band_, quads_;
  int64_t scratch_bytes_ = 0;
  std::vector<int32_t> quad_begin_, quad_end_;
};

}  // namespace

std::unique_ptr<Step> make_depthwise(const ConvolutionSpec& spec) { return std::make_unique<Depthwise>(spec); }

}  // namespace pyquant
