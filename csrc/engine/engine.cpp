#include "engine/engine.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>

#include "cpu/threads.h"

namespace pyquant {
namespace {

void copy_rows(uint8_t* to, int64_t to_stride, const uint8_t* from, int64_t from_stride, int64_t rows, int64_t bytes) {
  if (to_stride == bytes && from_stride == bytes) {
    std::memcpy(to, from, static_cast<size_t>(rows * bytes));
    return;
  }
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(to + row * to_stride, from + row * from_stride, static_cast<size_t>(bytes));
  }
}

// [P][C] floats to [C][P], a cache line of a plane at a time: planes may lie so that all their lines fall into one set.
void turn_planes(const float* from, float* to, int64_t pixels, int64_t channels, int threads) {
  constexpr int64_t kLine = 16;
  parallel_for(threads, (pixels + kLine - 1) / kLine, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin * kLine; first < std::min(end * kLine, pixels); first += kLine) {
      const int64_t last = std::min(first + kLine, pixels);
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t p = first; p < last; ++p) to[c * pixels + p] = from[p * channels + c];
      }
    }
  });
}

// Whether the caller's planes lie otherwise than the engine's pixels.
bool turned(const Value& value) {
  return value.channels_first && value.shape.pixels() > 1 && value.shape.channels > 1;
}

int64_t tight_row(const Value& value) { return value.shape.width * value.pixel_stride; }

int64_t now() {
  const auto time = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(time).count();
}

int64_t image_bytes(const Value& value) { return value.shape.height * tight_row(value); }

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
  const Kernels& kernels = kernels_for(isa_);
  step(depthwise ? make_depthwise(spec, kernels) : make_convolution(spec, to_float, kernels));
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
  plan_ = plan(values_, steps_, inputs, outputs);
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
  threads = std::min(threads, kMostThreads);
  const int64_t alone = batch / threads;
  return std::max(alone > 0 ? threads * plan_.bytes(alone) : 0, plan_.bytes(batch - alone * threads)) +
         scratch_bytes_ * threads;
}

std::unique_ptr<Engine::Workspace> Engine::take_workspace() const {
  for (auto& slot : workspaces_) {
    if (slot.load(std::memory_order_relaxed) == nullptr) continue;
    if (Workspace* kept = slot.exchange(nullptr)) return std::unique_ptr<Workspace>(kept);
  }
  return std::make_unique<Workspace>();
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

// Each thread takes images of its own through the whole program, so that none waits for another; what is left over, or a
// batch smaller than the threads, they share step by step.
void Engine::run(const void* const* inputs, void* const* outputs, int64_t batch, int threads,
                 int64_t* nanoseconds) const {
  threads = std::min(threads, kMostThreads);
  if (nanoseconds != nullptr && threads > 1 && batch > 1) {
    throw std::invalid_argument("only a run of one image, or in one thread, can be timed step by step");
  }
  std::unique_ptr<Workspace> workspace = take_workspace();
  workspace->arena.grow(memory(batch, threads));
  if (workspace->buffers.size() < values_.size() * threads) workspace->buffers.resize(values_.size() * threads);
  uint8_t* const scratch = workspace->arena.data();
  uint8_t* const arena = scratch + scratch_bytes_ * threads;
  Buffer* const buffers = workspace->buffers.data();
  const Team team(threads);
  const int64_t alone = batch / threads;
  if (alone > 0) {
    parallel_for(threads, threads, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        run_part({inputs, outputs, t * alone, alone, 1, arena + t * plan_.bytes(alone), scratch,
                  buffers + t * static_cast<int64_t>(values_.size()), nanoseconds});
      }
    });
  }
  const int64_t done = alone * threads;
  if (done < batch) run_part({inputs, outputs, done, batch - done, threads, arena, scratch, buffers, nanoseconds});
  keep_workspace(std::move(workspace));
}

// Buffers of the part's images from `done` on.
void Engine::place(const Part& part, int64_t done) const {
  uint8_t* const stage = part.arena + plan_.batch_bytes * part.images;
  for (size_t v = 0; v < values_.size(); ++v) {
    const Value& value = values_[v];
    uint8_t* const first = value.in_stage ? stage + value.arena_offset
                                          : part.arena + value.arena_offset * part.images + done * value.image_stride;
    part.buffers[v] = {first + value.origin, value.image_stride, value.row_stride, value.pixel_stride};
  }
  const auto put_outside = [&](int v, uint8_t* first) {
    if (values_[v].outside) part.buffers[v].origin = first + (part.first + done) * values_[v].image_stride;
  };
  for (size_t i = 0; i < inputs_.size(); ++i) {
    // Nothing writes to it.
    put_outside(inputs_[i], static_cast<uint8_t*>(const_cast<void*>(part.inputs[i])));
  }
  for (size_t i = 0; i < outputs_.size(); ++i) put_outside(outputs_[i], static_cast<uint8_t*>(part.outputs[i]));
}

void Engine::run_part(const Part& part) const {
  place(part, 0);
  take_inputs(part);
  for (const Stage& stage : plan_.stages) {
    for (int64_t done = 0; done < part.images; done += stage.images) {
      const int64_t images = std::min(stage.images, part.images - done);
      place(part, done);
      const Frame frame = {values_,      part.buffers, kernels_for(isa_), images,
                           part.threads, part.scratch, scratch_bytes_};
      for (int64_t s = stage.begin; s < stage.end; ++s) {
        const Step& step = *steps_[s];
        const Value& value = values_[step.output];
        const int64_t begin = part.nanoseconds == nullptr ? 0 : now();
        if (value.halo_code >= 0) fill_halo(value, part.buffers[step.output], images, part.threads);
        step.run(frame);
        if (part.nanoseconds != nullptr) part.nanoseconds[step.output] += now() - begin;
      }
    }
  }
  place(part, 0);
  give_outputs(part);
}

void Engine::take_inputs(const Part& part) const {
  for (size_t i = 0; i < inputs_.size(); ++i) {
    const Value& value = values_[inputs_[i]];
    if (value.outside) continue;
    const Buffer& buffer = part.buffers[inputs_[i]];
    if (value.halo_code >= 0) fill_halo(value, buffer, part.images, part.threads);
    for (int64_t image = 0; image < part.images; ++image) {
      copy_rows(buffer.at(image, 0, 0), value.row_stride,
                static_cast<const uint8_t*>(part.inputs[i]) + (part.first + image) * image_bytes(value),
                tight_row(value), value.shape.height, tight_row(value));
    }
  }
}

void Engine::give_outputs(const Part& part) const {
  for (size_t i = 0; i < outputs_.size(); ++i) {
    const Value& value = values_[outputs_[i]];
    if (value.outside) continue;
    const Buffer& buffer = part.buffers[outputs_[i]];
    for (int64_t image = 0; image < part.images; ++image) {
      uint8_t* const to = static_cast<uint8_t*>(part.outputs[i]) + (part.first + image) * image_bytes(value);
      if (turned(value)) {
        turn_planes(reinterpret_cast<const float*>(buffer.at(image, 0, 0)), reinterpret_cast<float*>(to),
                    value.shape.pixels(), value.shape.channels, part.threads);
      } else {
        copy_rows(to, tight_row(value), buffer.at(image, 0, 0), buffer.row_stride, value.shape.height,
                  tight_row(value));
      }
    }
  }
}

}  // namespace pyquant
