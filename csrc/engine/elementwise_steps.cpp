#include "engine/elementwise_steps.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/threads.h"

namespace pyquant {
namespace {

// Calls body(image, row) for all rows of a value, shared out over the threads.
template <typename Body>
void for_rows(const Frame& frame, const Shape& shape, const Body& body) {
  // Short work is not worth waking anybody for.
  constexpr int64_t kWorthSharing = 8192;
  const bool small = frame.batch * shape.elements() < kWorthSharing;
  parallel_for(small ? 1 : frame.threads, frame.batch * shape.height, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i / shape.height, i % shape.height);
  });
}

int64_t row_length(const Shape& shape) { return shape.width * shape.channels; }

class Quantize : public Step {
 public:
  Quantize(int x, int y, float scale, int zero, int low, int high)
      : layer_{scale, static_cast<float>(low - zero), static_cast<float>(high - zero), zero} {
    inputs = {x};
    output = y;
  }

  // A line of codes, before they are dealt out.
  void prepare(const std::vector<Value>& values) override { line_bytes_ = values[inputs[0]].shape.width; }
  int64_t scratch_bytes() const override { return line_bytes_; }

  void run(const Frame& frame) const override {
    const Value& x = frame.values[inputs[0]];
    const Buffer& from = frame.buffers[inputs[0]];
    const Buffer& to = frame.buffers[output];
    for_rows(frame, x.shape, [&](int64_t image, int64_t row) {
      uint8_t* y = to.at(image, row, 0);
      if (x.channels_first && x.outside) {
        planes(frame, x.shape, from.origin + image * from.image_stride, row, y);
      } else {
        frame.kernels.quantize(layer_, reinterpret_cast<const float*>(from.at(image, row, 0)), y, row_length(x.shape));
      }
    });
  }

 private:
  // [C][H][W] floats: three planes have a kernel; of others each row is quantised into a line of codes, then dealt out
  // to its channel.
  void planes(const Frame& frame, const Shape& shape, const uint8_t* image, int64_t row, uint8_t* y) const {
    const float* first = reinterpret_cast<const float*>(image) + row * shape.width;
    if (shape.channels == 3) {
      const float* const x[3] = {first, first + shape.pixels(), first + 2 * shape.pixels()};
      frame.kernels.quantize_three(layer_, x, y, shape.width);
      return;
    }
    for (int64_t c = 0; c < shape.channels; ++c) {
      const float* x = first + c * shape.pixels();
      uint8_t* codes = shape.channels == 1 ? y : frame.scratch_of_part();
      frame.kernels.quantize(layer_, x, codes, shape.width);
      if (shape.channels == 1) continue;
      for (int64_t w = 0; w < shape.width; ++w) y[w * shape.channels + c] = codes[w];
    }
  }

  QuantizeLayer layer_;
  int64_t line_bytes_ = 0;
};

class Dequantize : public Step {
 public:
  Dequantize(int x, int y, float scale, int zero) : scale_(scale), zero_(static_cast<float>(zero)) {
    inputs = {x};
    output = y;
  }

  void run(const Frame& frame) const override {
    const Shape& shape = frame.values[output].shape;
    for_rows(frame, shape, [&](int64_t image, int64_t row) {
      frame.kernels.dequantize(scale_, zero_, frame.buffers[inputs[0]].at(image, row, 0),
                               reinterpret_cast<float*>(frame.buffers[output].at(image, row, 0)), row_length(shape));
    });
  }

 private:
  float scale_, zero_;
};

class Add : public Step {
 public:
  Add(int a, int b, int y, const AddLayer& layer) : layer_(layer) {
    inputs = {a, b};
    output = y;
  }

  void run(const Frame& frame) const override {
    const Shape& shape = frame.values[output].shape;
    for_rows(frame, shape, [&](int64_t image, int64_t row) {
      frame.kernels.add(layer_, frame.buffers[inputs[0]].at(image, row, 0), frame.buffers[inputs[1]].at(image, row, 0),
                        frame.buffers[output].at(image, row, 0), row_length(shape));
    });
  }

 private:
  AddLayer layer_;
};

// Both pools walk output pixels; a window is clipped to the image, so max pooling never sees its padding.
class Pool : public Step {
 public:
  Pool(int x, int y, const WindowSpec& window) : window_(window) {
    inputs = {x};
    output = y;
  }

  void run(const Frame& frame) const override {
    const Shape& in = frame.values[inputs[0]].shape;
    const Shape& out = frame.values[output].shape;
    const Buffer& from = frame.buffers[inputs[0]];
    const Buffer& to = frame.buffers[output];
    for_rows(frame, out, [&](int64_t image, int64_t row) {
      const int64_t top = row * window_.stride_height - window_.top;
      const int64_t y0 = std::max<int64_t>(top, 0), y1 = std::min(top + window_.height, in.height);
      for (int64_t column = 0; column < out.width; ++column) {
        const int64_t left = column * window_.stride_width - window_.left;
        const int64_t x0 = std::max<int64_t>(left, 0), x1 = std::min(left + window_.width, in.width);
        const PoolWindow window = {
            from.at(image, y0, x0), from.row_stride, from.pixel_stride, y1 - y0, x1 - x0, in.channels};
        pixel(frame.kernels, window, to.at(image, row, column));
      }
    });
  }

 private:
  virtual void pixel(const Kernels& kernels, const PoolWindow& window, uint8_t* y) const = 0;
  WindowSpec window_;
};

class AverageStep : public Pool {
 public:
  AverageStep(int x, int y, const WindowSpec& window, const AveragePool& layer) : Pool(x, y, window), layer_(layer) {}

 private:
  void pixel(const Kernels& kernels, const PoolWindow& window, uint8_t* y) const override {
    kernels.average_pool(layer_, window, y);
  }
  AveragePool layer_;
};

class MaxStep : public Pool {
 public:
  using Pool::Pool;

 private:
  void pixel(const Kernels& kernels, const PoolWindow& window, uint8_t* y) const override {
    kernels.max_pool(window, y);
  }
};

class Lookup : public Step {
 public:
  Lookup(int x, int y, const uint8_t* table) : table_(table, table + 256) {
    inputs = {x};
    output = y;
  }

  void run(const Frame& frame) const override {
    const Shape& shape = frame.values[output].shape;
    for_rows(frame, shape, [&](int64_t image, int64_t row) {
      frame.kernels.lookup(table_.data(), frame.buffers[inputs[0]].at(image, row, 0),
                           frame.buffers[output].at(image, row, 0), row_length(shape));
    });
  }

 private:
  std::vector<uint8_t> table_;
};

class Copy : public Step {
 public:
  Copy(int x, int y) {
    inputs = {x};
    output = y;
  }

  void run(const Frame& frame) const override {
    const Shape& shape = frame.values[inputs[0]].shape;
    for (int64_t image = 0; image < frame.batch; ++image) {
      uint8_t* to = frame.buffers[output].at(image, 0, 0);
      for (int64_t row = 0; row < shape.height; ++row, to += row_length(shape)) {
        std::memcpy(to, frame.buffers[inputs[0]].at(image, row, 0), static_cast<size_t>(row_length(shape)));
      }
    }
  }
};

}  // namespace

std::unique_ptr<Step> make_quantize(int x, int y, float scale, int zero, int low, int high) {
  return std::make_unique<Quantize>(x, y, scale, zero, low, high);
}

std::unique_ptr<Step> make_dequantize(int x, int y, float scale, int zero) {
  return std::make_unique<Dequantize>(x, y, scale, zero);
}

std::unique_ptr<Step> make_add(int a, int b, int y, int a_zero, float a_scale, int b_zero, float b_scale, int y_zero,
                               int low, int high) {
  return std::make_unique<Add>(a, b, y,
                               AddLayer{static_cast<float>(a_zero), a_scale, static_cast<float>(b_zero), b_scale,
                                        static_cast<float>(low - y_zero), static_cast<float>(high - y_zero), y_zero});
}

std::unique_ptr<Step> make_average_pool(int x, int y, const WindowSpec& window, int x_zero, float multiplier,
                                        int y_zero, int low, int high) {
  const int32_t zero_sum = static_cast<int32_t>(x_zero * window.height * window.width);
  return std::make_unique<AverageStep>(
      x, y, window,
      AveragePool{zero_sum, multiplier, static_cast<float>(low - y_zero), static_cast<float>(high - y_zero), y_zero});
}

std::unique_ptr<Step> make_max_pool(int x, int y, const WindowSpec& window) {
  return std::make_unique<MaxStep>(x, y, window);
}

std::unique_ptr<Step> make_lookup(int x, int y, const uint8_t* table) { return std::make_unique<Lookup>(x, y, table); }

std::unique_ptr<Step> make_copy(int x, int y) { return std::make_unique<Copy>(x, y); }

}  // namespace pyquant
