#include "engine/engine.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "cpu/threads.h"

namespace pyquant {
namespace {

// Kernels may read this far behind a value.
constexpr int64_t kSlack = 64;

int64_t round_up(int64_t bytes) { return (bytes + 63) / 64 * 64; }

void copy_rows(uint8_t* to, int64_t to_stride, const uint8_t* from, int64_t from_stride, int64_t rows, int64_t bytes) {
  if (to_stride == bytes && from_stride == bytes) {
    std::memcpy(to, from, static_cast<size_t>(rows * bytes));
    return;
  }
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(to + row * to_stride, from + row * from_stride, static_cast<size_t>(bytes));
  }
}

// [P][C] floats to [C][P].
void turn_planes(const float* from, float* to, int64_t pixels, int64_t channels, int threads) {
  // A block's reads are whole cache lines.
  constexpr int64_t kBlock = 16;
  parallel_for(threads, (channels + kBlock - 1) / kBlock, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin * kBlock; first < std::min(end * kBlock, channels); first += kBlock) {
      const int64_t last = std::min(first + kBlock, channels);
      for (int64_t p = 0; p < pixels; ++p) {
        for (int64_t c = first; c < last; ++c) to[c * pixels + p] = from[p * channels + c];
      }
    }
  });
}

// Whether the caller's planes lie otherwise than the engine's pixels.
bool turned(const Value& value) {
  return value.channels_first && value.shape.pixels() > 1 && value.shape.channels > 1;
}

}  // namespace

Engine::Engine(const std::string& isa) : isa_(isa_by_name(isa)) {}

Engine::~Engine() {
  for (auto& slot : workspaces_) delete slot.load();
}

int Engine::value(bool is_float, bool channels_first, const Shape& shape) {
  Value value;
  value.is_float = is_float;
  value.channels_first = channels_first;
  value.shape = shape;
  values_.push_back(value);
  return static_cast<int>(values_.size()) - 1;
}

void Engine::step(std::unique_ptr<Step> step) { steps_.push_back(std::move(step)); }

void Engine::convolution(const ConvolutionSpec& spec) {
  Value& x = values_[spec.x];
  const bool to_float = values_[spec.y].is_float;
  if (spec.top > 0 || spec.left > 0 || spec.bottom > 0 || spec.right > 0) {
    if (x.halo_code >= 0 && x.halo_code != spec.x_zero) {
      throw std::invalid_argument("a value is padded with two different zero points");
    }
    x.halo_code = spec.x_zero;
    x.top = std::max(x.top, spec.top);
    x.left = std::max(x.left, spec.left);
    x.bottom = std::max(x.bottom, spec.bottom);
    x.right = std::max(x.right, spec.right);
  }
  const bool depthwise = spec.groups > 1 && spec.group_channels == 1 && spec.outputs == spec.groups && !to_float;
  step(depthwise ? make_depthwise(spec) : make_convolution(spec, to_float, kernels_for(isa_)));
}

void Engine::flatten(int x, int y) { flattens_.emplace_back(x, y), step(make_copy(x, y)); }

void Engine::seal(const std::vector<int>& inputs, const std::vector<int>& outputs) {
  inputs_ = inputs;
  outputs_ = outputs;
  // A flatten of contiguous bytes needs no copy.
  for (auto [x, y] : flattens_) {
    if (values_[x].halo_code >= 0 || values_[y].halo_code >= 0) continue;
    values_[y].alias = x;
    steps_.erase(std::find_if(steps_.begin(), steps_.end(), [y = y](const auto& step) { return step->output == y; }));
  }
  for (Value& value : values_) {
    const int64_t size = value.is_float ? 4 : 1;
    value.pixel_stride = value.shape.channels * size;
    value.row_stride = (value.left + value.shape.width + value.right) * value.pixel_stride;
    value.origin = value.top * value.row_stride + value.left * value.pixel_stride;
    value.image_stride = round_up((value.top + value.shape.height + value.bottom) * value.row_stride + kSlack);
  }
  for (Value& value : values_) {
    if (value.alias >= 0) value.image_stride = values_[value.alias].image_stride;
  }
  find_outside();
  for (auto& step : steps_) {
    step->prepare(values_);
    scratch_bytes_ = std::max(scratch_bytes_, round_up(step->scratch_bytes()));
  }
  plan(outputs);
}

// Inputs are read, and outputs written, where the caller has them, unless a kernel wants a halo or slack around them.
void Engine::find_outside() {
  std::vector<bool> aliased(values_.size(), false), read(values_.size(), false), read_exactly(values_.size(), true);
  for (const Value& value : values_) {
    if (value.alias >= 0) aliased[value.alias] = true;
  }
  for (const auto& step : steps_) {
    for (int v : step->inputs) {
      read[v] = true;
      if (!step->reads_exactly(v)) read_exactly[v] = false;
    }
  }
  const auto plain = [&](int v) { return values_[v].halo_code < 0 && values_[v].alias < 0 && !aliased[v]; };
  std::vector<bool> is_input(values_.size(), false);
  for (int v : inputs_) {
    is_input[v] = true;
    const bool kept = std::find(outputs_.begin(), outputs_.end(), v) != outputs_.end();
    values_[v].outside = values_[v].is_float || (plain(v) && read_exactly[v] && !kept);
  }
  for (int v : outputs_) {
    const bool once = std::count(outputs_.begin(), outputs_.end(), v) == 1;
    if (!is_input[v]) values_[v].outside = plain(v) && !read[v] && once && !turned(values_[v]);
  }
  for (Value& value : values_) {
    if (value.outside) value.image_stride = value.shape.height * value.row_stride;
  }
}

// First fit by lifetime: a value takes the lowest gap that no living value overlaps.
void Engine::plan(const std::vector<int>& kept) {
  struct Life {
    int value;
    int64_t born, dies;
  };
  const int64_t end = static_cast<int64_t>(steps_.size());
  const auto root = [&](int v) {
    while (values_[v].alias >= 0) v = values_[v].alias;
    return v;
  };
  std::vector<Life> lives(values_.size());
  for (int v = 0; v < static_cast<int>(values_.size()); ++v) lives[v] = {v, end, -1};
  const auto use = [&](int v, int64_t when) {
    Life& life = lives[root(v)];
    life.born = std::min(life.born, when);
    life.dies = std::max(life.dies, when);
  };
  for (int v : inputs_) use(v, -1);
  for (int64_t s = 0; s < end; ++s) {
    for (int v : steps_[s]->inputs) use(v, s);
    use(steps_[s]->output, s);
  }
  for (int v : kept) use(v, end);
  std::sort(lives.begin(), lives.end(), [](const Life& a, const Life& b) { return a.born < b.born; });
  std::vector<Life> placed;  // lowest first
  for (const Life& life : lives) {
    if (life.dies < life.born || values_[life.value].outside) continue;
    int64_t offset = 0;
    for (const Life& other : placed) {
      if (other.dies < life.born || other.born > life.dies) continue;
      const Value& there = values_[other.value];
      if (offset + values_[life.value].image_stride <= there.arena_offset) break;
      offset = std::max(offset, there.arena_offset + there.image_stride);
    }
    values_[life.value].arena_offset = offset;
    arena_bytes_ = std::max(arena_bytes_, offset + values_[life.value].image_stride);
    const auto higher = [&](int64_t at, const Life& other) { return at < values_[other.value].arena_offset; };
    placed.insert(std::upper_bound(placed.begin(), placed.end(), offset, higher), life);
  }
  for (int v = 0; v < static_cast<int>(values_.size()); ++v) values_[v].arena_offset = values_[root(v)].arena_offset;
}

void Engine::fill_halo(const Value& value, const Buffer& buffer, int64_t batch, int threads) const {
  const size_t row = static_cast<size_t>(value.row_stride);
  const size_t gap = static_cast<size_t>((value.left + value.right) * value.pixel_stride);
  parallel_for(batch > 1 ? threads : 1, batch, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) {
      uint8_t* first = buffer.at(image, 0, 0) - value.origin;
      std::memset(first, value.halo_code, value.top * row);
      uint8_t* inner = first + value.top * value.row_stride;
      if (gap > 0) {
        // A row's right margin and the next row's left margin lie side by side.
        std::memset(inner, value.halo_code, static_cast<size_t>(value.left * value.pixel_stride));
        uint8_t* right = inner + (value.left + value.shape.width) * value.pixel_stride;
        for (int64_t h = 0; h + 1 < value.shape.height; ++h)
          std::memset(right + h * value.row_stride, value.halo_code, gap);
        std::memset(right + (value.shape.height - 1) * value.row_stride, value.halo_code,
                    static_cast<size_t>(value.right * value.pixel_stride));
      }
      std::memset(inner + value.shape.height * value.row_stride, value.halo_code, value.bottom * row);
    }
  });
}

int64_t Engine::memory(int64_t batch, int threads) const {
  return round_up(arena_bytes_ * batch + kSlack) + scratch_bytes_ * std::min(threads, kMostThreads);
}

std::unique_ptr<Engine::Workspace> Engine::take_workspace() const {
  for (auto& slot : workspaces_) {
    if (slot.load(std::memory_order_relaxed) == nullptr) continue;
    if (Workspace* kept = slot.exchange(nullptr)) return std::unique_ptr<Workspace>(kept);
  }
  auto fresh = std::make_unique<Workspace>();
  fresh->buffers.resize(values_.size());
  return fresh;
}

void Engine::keep_workspace(std::unique_ptr<Workspace> workspace) const {
  for (auto& slot : workspaces_) {
    Workspace* none = nullptr;
    if (slot.compare_exchange_strong(none, workspace.get())) {
      workspace.release();
      return;
    }
  }
}

void Engine::run(const void* const* inputs, void* const* outputs, int64_t batch, int threads) const {
  threads = std::min(threads, kMostThreads);
  std::unique_ptr<Workspace> workspace = take_workspace();
  AlignedBytes& arena = workspace->arena;
  std::vector<Buffer>& buffers = workspace->buffers;
  arena.grow(memory(batch, threads));
  const Team team(threads);

  for (size_t v = 0; v < values_.size(); ++v) {
    const Value& value = values_[v];
    buffers[v] = {arena.data() + value.arena_offset * batch + value.origin, value.image_stride, value.row_stride,
                  value.pixel_stride};
  }
  const auto tight_row = [&](const Value& value) { return value.shape.width * value.pixel_stride; };
  for (size_t i = 0; i < inputs_.size(); ++i) {
    const Value& value = values_[inputs_[i]];
    Buffer& buffer = buffers[inputs_[i]];
    const int64_t image_bytes = value.shape.height * tight_row(value);
    if (value.outside) {
      // Nothing writes to it.
      buffer.origin = static_cast<uint8_t*>(const_cast<void*>(inputs[i]));
      continue;
    }
    if (value.halo_code >= 0) fill_halo(value, buffer, batch, threads);
    for (int64_t image = 0; image < batch; ++image) {
      copy_rows(buffer.at(image, 0, 0), value.row_stride, static_cast<const uint8_t*>(inputs[i]) + image * image_bytes,
                tight_row(value), value.shape.height, tight_row(value));
    }
  }
  for (size_t i = 0; i < outputs_.size(); ++i) {
    if (values_[outputs_[i]].outside) buffers[outputs_[i]].origin = static_cast<uint8_t*>(outputs[i]);
  }
  uint8_t* scratch = arena.data() + round_up(arena_bytes_ * batch + kSlack);
  const Frame frame = {values_, buffers, kernels_for(isa_), batch, threads, scratch, scratch_bytes_};
  for (const auto& step : steps_) {
    const Value& value = values_[step->output];
    if (value.halo_code >= 0) fill_halo(value, buffers[step->output], batch, threads);
    step->run(frame);
  }
  for (size_t i = 0; i < outputs_.size(); ++i) {
    const Value& value = values_[outputs_[i]];
    const Buffer& buffer = buffers[outputs_[i]];
    if (value.outside) continue;
    for (int64_t image = 0; image < batch; ++image) {
      if (turned(value)) {
        turn_planes(reinterpret_cast<const float*>(buffer.at(image, 0, 0)),
                    static_cast<float*>(outputs[i]) + image * value.shape.elements(), value.shape.pixels(),
                    value.shape.channels, threads);
        continue;
      }
      copy_rows(static_cast<uint8_t*>(outputs[i]) + image * value.shape.height * tight_row(value), tight_row(value),
                buffer.at(image, 0, 0), buffer.row_stride, value.shape.height, tight_row(value));
    }
  }
  keep_workspace(std::move(workspace));
}

}  // namespace pyquant
