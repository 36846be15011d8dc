#include "engine/section.h"

#include <algorithm>
#include <cstring>

#include "engine/checksum.h"
#include "engine/stored_weights.h"

namespace pyquant {
namespace {

constexpr char kMagic[] = "pq\0prog\n";
constexpr size_t kFootBytes = 16;
constexpr uint32_t kVersion = 1;
// Beyond these no size is meant, and products of sizes could leave 64 bits.
constexpr int64_t kLargestSize = 1 << 16, kLargestValue = INT32_MAX, kMostOps = 1 << 14;
constexpr int64_t kLargestArena = int64_t{1} << 32;
// What packed weights may take for each byte of data, beyond a start: a small file must not fill the memory.
constexpr int64_t kLargestGrowth = 64, kFreeWeights = 64 << 20;

enum Kind : int64_t { aten, quantize, dequantize, conv, add, avg_pool, max_pool, lookup, flatten };

struct Clamp {
  int zero, low, high;
};

class Loader {
 public:
  Loader(SectionReader in, Bytes data, const std::string& isa)
      : in_(in), data_(data), program_(std::make_unique<Program>(isa)), engine_(program_->engine) {}

  std::unique_ptr<Program> load() {
    if (const uint32_t version = in_.word(); version != kVersion) {
      in_.fail("has format version " + std::to_string(version) + " and this library reads version " +
               std::to_string(kVersion));
    }
    const int64_t inputs = in_.whole("number of inputs", 0, kMostOps);
    const int64_t ops = in_.whole("number of ops", 1, kMostOps);
    const int64_t outputs = in_.whole("number of outputs", 0, kMostOps);
    if (in_.long_word() != data_.size) in_.fail("belongs to data of another size");
    if (in_.word() != crc32(data_.data, data_.size)) in_.fail("has altered data: their checksum does not match; copy the file again");
    std::vector<int> ends(static_cast<size_t>(inputs));
    for (int64_t i = 0; i < inputs; ++i) {
      const std::string name = in_.name();
      in_.enter("input '" + name + "'");
      ends[static_cast<size_t>(i)] = value();
      program_->inputs.push_back(port(name, ends[static_cast<size_t>(i)]));
    }
    for (int64_t i = 0; i < ops; ++i) op();
    in_.enter("the program");
    std::vector<int> results;
    for (int64_t i = 0; i < outputs; ++i) {
      const std::string name = in_.name();
      results.push_back(static_cast<int>(in_.whole("output", inputs, inputs + ops - 1)));
      program_->outputs.push_back(port(name, results.back()));
    }
    if (!in_.at_end()) in_.fail("goes on behind its last output");
    engine_.seal(ends, results);
    if (engine_.memory(1, 1) > kLargestArena) in_.fail("needs more than 4 GiB an image; use smaller inputs");
    return std::move(program_);
  }

 private:
  // A value as its makers and readers have to agree on it.
  struct Made {
    bool is_float;
    std::vector<int64_t> sizes;  // in torch's order
    Shape rows;
    int64_t top = 0, left = 0, bottom = 0, right = 0;
  };

  int value() {
    Made made{};
    made.is_float = in_.whole("kind of value", 0, 1) == 1;
    const int64_t rank = in_.whole("rank", made.is_float ? 0 : 3, 3);
    int64_t elements = 1;
    for (int64_t i = 0; i < rank; ++i) {
      made.sizes.push_back(in_.whole("size", 1, kLargestValue));
      if (made.sizes.back() > kLargestValue / elements) in_.fail("is too large a value; use smaller inputs");
      elements *= made.sizes.back();
    }
    int64_t rows[3] = {1, 1, 1};
    std::copy(made.sizes.begin(), made.sizes.end(), rows + 3 - rank);
    const bool channels_first = made.is_float && rank == 3;
    made.rows = channels_first ? Shape{rows[1], rows[2], rows[0]} : Shape{rows[0], rows[1], rows[2]};
    values_.push_back(made);
    return engine_.value(made.is_float, channels_first, made.rows);
  }

  Port port(const std::string& name, int index) const {
    const Made& made = values_[static_cast<size_t>(index)];
    return {name, made.is_float, made.sizes};
  }

  void op() {
    in_.enter("an op");
    const int64_t kind = in_.whole("kind", aten, flatten);
    const std::string name = in_.name();
    in_.enter("op '" + name + "'");
    if (kind == aten) in_.fail("runs in floating point, which takes Python; leave that layer out or quantise it");
    const size_t before = values_.size();
    const int y = value();
    const int64_t least = kind == add ? 2 : 1, most = kind == add || kind == conv ? 2 : 1;
    std::vector<int> x(static_cast<size_t>(in_.whole("number of inputs", least, most)));
    for (int& index : x) index = static_cast<int>(in_.whole("input", 0, static_cast<int64_t>(before) - 1));
    for (int index : x) expect(of(index).is_float == (kind == quantize), "takes a value of the wrong kind");
    expect(of(y).is_float == (kind == dequantize) || (kind == conv && x.size() == 1), "gives the wrong kind of value");
    switch (kind) {
      case quantize: {
        const float scale = in_.scale("scale", true);
        const Clamp to = clamp();
        engine_.step(make_quantize(x[0], y, scale, to.zero, to.low, to.high));
        return same(x[0], y);
      }
      case dequantize: {
        const float scale = in_.scale("scale", true);
        engine_.step(make_dequantize(x[0], y, scale, code("zero_point")));
        return same(x[0], y);
      }
      case conv:
        return convolution(x, y);
      case add: {
        const int a_zero = code("a_zero");
        const float a_scale = in_.scale("a_scale", false);
        const int b_zero = code("b_zero");
        const float b_scale = in_.scale("b_scale", false);
        const Clamp to = clamp();
        engine_.step(make_add(x[0], x[1], y, a_zero, a_scale, b_zero, b_scale, to.zero, to.low, to.high));
        same(x[0], y);
        return same(x[1], y);
      }
      case avg_pool: {
        const WindowSpec window = pool_window(x[0], y, false);
        const int x_zero = code("x_zero");
        const float multiplier = in_.scale("multiplier", false);
        const Clamp to = clamp();
        expect(window.height * window.width <= INT32_MAX / 255, "sums more codes than int32 holds");
        engine_.step(make_average_pool(x[0], y, window, x_zero, multiplier, to.zero, to.low, to.high));
        return;
      }
      case max_pool:
        engine_.step(make_max_pool(x[0], y, pool_window(x[0], y, true)));
        return;
      case lookup:
        engine_.step(make_lookup(x[0], y, tensor("table", 256)));
        return same(x[0], y);
      default:
        expect(of(y).rows.pixels() == 1 && of(y).rows.channels == of(x[0]).rows.elements(), "gives another shape");
        engine_.flatten(x[0], y);
    }
  }

  // ------------------------------------------------------------------------------------------- windows
  struct Window {
    int64_t height, width;
  };
  Window pair(const char* what) {
    const int64_t height = in_.whole(what, 1, kLargestSize);
    return {height, in_.whole(what, 1, kLargestSize)};
  }

  // How often a window of `reach` steps of `stride` fits.
  static int64_t fits(int64_t size, int64_t reach, int64_t stride) {
    return size < reach ? 0 : (size - reach) / stride + 1;
  }

  WindowSpec pool_window(int x, int y, bool padded) {
    const Window window = pair("window"), stride = pair("stride");
    int64_t pads[4] = {0, 0, 0, 0};  // top, left, bottom, right
    for (int64_t& pad : pads) pad = padded ? in_.whole("padding", 0, kLargestSize) : 0;
    const Shape& in = of(x).rows;
    const Shape out = {fits(in.height + pads[0] + pads[2], window.height, stride.height),
                       fits(in.width + pads[1] + pads[3], window.width, stride.width), in.channels};
    gives(y, out);
    const bool sees = pads[0] < window.height && pads[1] < window.width &&
                      (out.height - 1) * stride.height - pads[0] < in.height &&
                      (out.width - 1) * stride.width - pads[1] < in.width;
    expect(sees, "has a window that sees padding only");
    return {window.height, window.width, stride.height, stride.width, pads[0], pads[1]};
  }

  void convolution(const std::vector<int>& x, int y) {
    ConvolutionSpec spec{};
    const Window kernel = pair("kernel"), stride = pair("stride");
    for (int64_t* pad : {&spec.top, &spec.left, &spec.bottom, &spec.right}) {
      *pad = in_.whole("padding", 0, kLargestSize);
    }
    const Window dilation = pair("dilation");
    Made& from = of(x[0]);
    const Made& to = of(y);
    spec.x = x[0];
    spec.y = y;
    spec.kernel_height = kernel.height, spec.kernel_width = kernel.width;
    spec.stride_height = stride.height, spec.stride_width = stride.width;
    spec.dilation_height = dilation.height, spec.dilation_width = dilation.width;
    spec.outputs = to.rows.channels;
    spec.groups = in_.whole("groups", 1, kLargestSize);
    expect(from.rows.channels % spec.groups == 0 && spec.outputs % spec.groups == 0,
           "has groups that do not divide its channels");
    spec.group_channels = from.rows.channels / spec.groups;
    spec.x_zero = code("x_zero");
    const int bits = static_cast<int>(in_.whole("weight_bits", 2, 8));
    const bool is_signed = in_.whole("weight_signed", 0, 1) == 1;
    if (to.is_float) {
      for (int unused = 0; unused < 3; ++unused) in_.whole("clamp of a float", 0, 0);
      spec.high = 255;
    } else {
      const Clamp codes = clamp();
      spec.y_zero = codes.zero, spec.low = codes.low, spec.high = codes.high;
    }
    spec.residual = x.size() == 2 ? x[1] : -1;
    spec.residual_zero = code("residual_zero");
    spec.residual_scale = 0.0f;
    if (spec.residual >= 0) {
      spec.residual_scale = in_.scale("residual_scale", false);
      same(spec.residual, y);
    } else {
      in_.whole("scale of no residual", 0, 0);
    }
    pad(from, spec);
    gives(y, {fits(from.rows.height + spec.top + spec.bottom, dilation.height * (kernel.height - 1) + 1, stride.height),
              fits(from.rows.width + spec.left + spec.right, dilation.width * (kernel.width - 1) + 1, stride.width),
              spec.outputs});
    // A kernel fits into its padded input, so none of these products is beyond 62 bits.
    const int64_t taps = kernel.height * kernel.width * spec.group_channels;
    const uint8_t* words = tensor("weight", spec.outputs * words_of(taps, bits) * 4);
    const uint8_t* zero = optional_tensor("weight_zero", spec.outputs * 4);
    const std::vector<float> multiplier = floats("multiplier", spec.outputs);
    const std::vector<float> bias = floats("bias", spec.outputs);
    packed_ += packed_bytes(spec);
    expect(packed_ <= kFreeWeights + kLargestGrowth * static_cast<int64_t>(data_.size),
           "has weights that would grow beyond measure");
    try {
      const std::vector<int8_t> weight = centred_codes(words, zero, spec.outputs, taps, bits, is_signed);
      check_accumulator(weight, taps, spec.x_zero);
      spec.weight = weight.data();
      spec.multiplier = multiplier.data();
      spec.bias = bias.data();
      engine_.convolution(spec);
    } catch (const std::invalid_argument& error) {
      in_.fail(error.what());
    }
  }

  // A value takes the widest padding of its readers; with it, it has to stay a value.
  void pad(Made& made, const ConvolutionSpec& spec) const {
    made.top = std::max(made.top, spec.top), made.bottom = std::max(made.bottom, spec.bottom);
    made.left = std::max(made.left, spec.left), made.right = std::max(made.right, spec.right);
    const int64_t row = (made.left + made.rows.width + made.right) * made.rows.channels;
    expect(row <= kLargestValue && (made.top + made.rows.height + made.bottom) * row <= kLargestValue,
           "pads its input beyond measure");
  }

  // No less than the steps take. Panels have 16 channels and quads 4 taps; depthwise bands of up to 8 rows have each
  // their own copy of the taps; chunks of equal size make a run of AMX longer by a sixteenth at most.
  static int64_t packed_bytes(const ConvolutionSpec& spec) {
    const auto up = [](int64_t count, int64_t to) { return (count + to - 1) / to * to; };
    if (spec.groups > 1 && spec.group_channels == 1 && spec.outputs == spec.groups) {
      const int64_t reach = spec.dilation_height * (spec.kernel_height - 1) + 1;
      const int64_t rows = reach + 7 * std::min(spec.stride_height, 2 * (reach + 3)) + 8;
      return up(spec.outputs, 16) * 8 * rows * spec.kernel_width;
    }
    const int64_t bytes = spec.groups * up(spec.outputs / spec.groups, 16) * spec.kernel_height * spec.kernel_width *
                          up(spec.group_channels, 4);
    return bytes + bytes / 16;
  }

  // ------------------------------------------------------------------------------------------- fields
  int code(const char* what) { return static_cast<int>(in_.whole(what, 0, 255)); }

  Clamp clamp() {
    const int zero = code("zero point");
    const int low = code("low");
    return {zero, low, static_cast<int>(in_.whole("high", low, 255))};
  }

  const uint8_t* optional_tensor(const char* what, int64_t bytes) {
    const uint64_t begin = in_.long_word(), size = in_.long_word();
    if (size == 0) return nullptr;
    if (size != static_cast<uint64_t>(bytes)) {
      in_.fail(std::string("has a ") + what + " of " + std::to_string(size) + " bytes; its shapes ask for " +
               std::to_string(bytes));
    }
    if (begin > data_.size || size > data_.size - begin) {
      in_.fail(std::string("has a ") + what + " outside the data");
    }
    return data_.data + begin;
  }

  const uint8_t* tensor(const char* what, int64_t bytes) {
    const uint8_t* at = optional_tensor(what, bytes);
    if (at == nullptr) in_.fail(std::string("has no ") + what);
    return at;
  }

  std::vector<float> floats(const char* what, int64_t count) {
    const uint8_t* at = tensor(what, count * 4);
    std::vector<float> numbers(static_cast<size_t>(count));
    for (float& number : numbers) {
      number = little_endian_float(at);
      if (!std::isfinite(number)) in_.fail(std::string("has a ") + what + " that is not finite");
      at += 4;
    }
    return numbers;
  }

  // ------------------------------------------------------------------------------------------- shapes
  Made& of(int index) { return values_[static_cast<size_t>(index)]; }

  void expect(bool holds, const char* otherwise) const {
    if (!holds) in_.fail(otherwise);
  }

  void gives(int y, const Shape& shape) {
    const Shape& declared = of(y).rows;
    expect(shape.height > 0 && shape.width > 0, "has a window that does not fit its input");
    expect(shape.height == declared.height && shape.width == declared.width && shape.channels == declared.channels,
           "gives another shape than its value is declared with");
  }

  void same(int x, int y) { gives(y, of(x).rows); }

  SectionReader in_;
  Bytes data_;
  std::unique_ptr<Program> program_;
  Engine& engine_;
  std::vector<Made> values_;
  int64_t packed_ = 0;
};

}  // namespace

bool ends_a_section(Bytes bytes) { return std::memcmp(bytes.data + bytes.size - 8, kMagic, 8) == 0; }

std::unique_ptr<Program> load_section(Bytes section, Bytes data, const std::string& isa) {
  if (section.size < kFootBytes || section.size % 4 != 0 || !ends_a_section(section)) {
    throw ProgramError("the program is no section of pyquant's");
  }
  const uint8_t* foot = section.data + section.size - kFootBytes;
  if (little_endian_32(foot) != section.size || little_endian_32(foot + 4) != crc32(section.data, section.size - 12)) {
    throw ProgramError("the program is altered: its checksum does not match; copy the file again");
  }
  return Loader(SectionReader({section.data, section.size - kFootBytes}), data, isa).load();
}

}  // namespace pyquant
