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
  constexpr int64_t kInterleaveCost = 2;  // dot products that take as long as interleaving one column of a quad
  constexpr int64_t kMostQuads = 2;       // with more, few columns at once fit into the cache
  int64_t best = 1;
  double least = 1e30;
  for (int64_t band = 1; band <= 8; ++band) {
    if (band > 1 && quads_of(spec, band - 1).end > kMostQuads) break;
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
  Depthwise(const ConvolutionSpec& spec, const Kernels& kernels)
      : spec_(spec),
        pieces_(kernels.depthwise_pieces),
        column_bytes_(kernels.depthwise_column_bytes),
        groups_((panels_of(spec.outputs) + pieces_ - 1) / pieces_),
        band_(best_band(spec)),
        quads_(quads_of(spec, band_ - 1).end) {
    for (int64_t row = 0; row < band_; ++row) {
      quad_begin_.push_back(static_cast<int32_t>(quads_of(spec, row).begin));
      quad_end_.push_back(static_cast<int32_t>(quads_of(spec, row).end));
    }
    const int64_t left = panels_of(spec.outputs) - (groups_ - 1) * pieces_;
    while (left * last_streams_ * 2 <= pieces_) last_streams_ *= 2;
    const int64_t column = quads_ * column_bytes_;
    chunk_ = std::max<int64_t>((kChunkBytes / column - columns_of(0)) / spec.stride_width, 1);
    pack();
    spec_.weight = nullptr;
    inputs = {spec.x};
    if (spec.residual >= 0) inputs.push_back(spec.residual);
    output = spec.y;
  }

  int64_t scratch_bytes() const override { return quads_ * columns_of(chunk_) * column_bytes_; }

  void run(const Frame& frame) const override {
    const int64_t bands = (frame.values[spec_.y].shape.height + band_ - 1) / band_;
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
                                  chunk_,
                                  tensors_.epilogue(spec_, 0)};
    parallel_for(frame.threads, frame.batch * bands * groups_, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t at = i / groups_;
        group(frame, layer, at / bands, at % bands * band_, i % groups_);
      }
    });
  }

 private:
  // Interleaved columns should stay in the first-level cache.
  static constexpr int64_t kChunkBytes = 10 << 10;

  // Input columns that so many outputs of a row need.
  int64_t columns_of(int64_t outputs) const {
    return (outputs - 1) * spec_.stride_width + (spec_.kernel_width - 1) * spec_.dilation_width + 1;
  }

  // The channel in `lane` of a group's vectors.
  int64_t channel_of(int64_t group, int64_t lane) const {
    const int64_t vector = lane / (4 * pieces_), piece = lane / 4 % pieces_;
    const int64_t panels = group + 1 < groups_ ? pieces_ : pieces_ / last_streams_;
    return (group * pieces_ + piece % panels) * kLanes + 4 * vector + lane % 4;
  }

  // Puts the tensors into the order of the vectors, with each row's taps moved down to where its window begins.
  void pack() {
    LayerTensors plain(spec_, 1);
    tensors_.most = plain.most;
    const int64_t lanes = pieces_ * kLanes;
    tensors_.seed.assign(groups_ * lanes);
    tensors_.multiplier.assign(groups_ * lanes);
    tensors_.bias.assign(groups_ * lanes);
    tensors_.weight.assign(groups_ * band_ * quads_ * spec_.kernel_width * lanes * 4);
    for (int64_t i = 0; i < groups_ * lanes; ++i) {
      const int64_t n = channel_of(i / lanes, i % lanes);
      if (n >= spec_.outputs) continue;
      tensors_.seed[i] = plain.seed[n];
      tensors_.multiplier[i] = plain.multiplier[n];
      tensors_.bias[i] = plain.bias[n];
      for (int64_t row = 0; row < band_; ++row) {
        for (int64_t h = 0; h < spec_.kernel_height; ++h) {
          const int64_t x_row = row * spec_.stride_height + h * spec_.dilation_height;
          for (int64_t w = 0; w < spec_.kernel_width; ++w) {
            const int64_t column = ((i / lanes * band_ + row) * quads_ + x_row / 4) * spec_.kernel_width + w;
            tensors_.weight[(column * lanes + i % lanes) * 4 + x_row % 4] =
                spec_.weight[(n * spec_.kernel_height + h) * spec_.kernel_width + w];
          }
        }
      }
    }
  }

  void group(const Frame& frame, const DepthwiseLayer& layer, int64_t image, int64_t row, int64_t index) const {
    const Value& x = frame.values[spec_.x];
    const Shape& shape = frame.values[spec_.y].shape;
    const Buffer& from = frame.buffers[spec_.x];
    const Buffer& to = frame.buffers[spec_.y];
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
    band.group = index;
    band.streams = index + 1 < groups_ ? 1 : last_streams_;
    band.scratch = frame.scratch_of_part();
    frame.kernels.depthwise(layer, band);
  }

  ConvolutionSpec spec_;
  int64_t pieces_, column_bytes_, groups_, band_, quads_;
  int64_t last_streams_ = 1;  // of the last group
  int64_t chunk_ = 0;
  LayerTensors tensors_;
  std::vector<int32_t> quad_begin_, quad_end_;
};

}  // namespace

std::unique_ptr<Step> make_depthwise(const ConvolutionSpec& spec, const Kernels& kernels) {
  return std::make_unique<Depthwise>(spec, kernels);
}

}  // namespace pyquant
