// Replays calls of the kernels that pyquant.h does not show: `replay_calls CALLS RESULTS`. A call is a word of eight bytes, the
// count of its numbers and they, int64 each, the count of its arrays and they, each behind its size in bytes. A result is the
// array alone. Portable kernels only.
#include <string>

#include "check.h"
#include "cpu/adaquant_step.h"
#include "engine/linear_w4.h"

namespace {

using namespace pyquant;

constexpr FakeQuantizeIsa kIsa = FakeQuantizeIsa::portable;

class Calls {
 public:
  Calls(const char* from, const char* to) : bytes_(read_file(from)), results_(std::fopen(to, "wb")) {
    CHECK(results_ != nullptr);
  }
  ~Calls() { CHECK(std::fclose(results_) == 0); }

  bool next() {
    if (at_ == bytes_.size()) return false;
    name = std::string(reinterpret_cast<const char*>(bytes_.data()) + at_, 8);
    at_ += 8;
    numbers.resize(static_cast<size_t>(take()));
    for (int64_t& number : numbers) number = take();
    arrays.resize(static_cast<size_t>(take()));
    for (Buffer& array : arrays) {
      array.resize(static_cast<size_t>(take()));
      CHECK(at_ + array.size() <= bytes_.size());
      if (!array.empty()) std::memcpy(array.data(), bytes_.data() + at_, array.size());
      at_ += array.size();
    }
    return true;
  }
  void give(const Buffer& result) { CHECK(std::fwrite(result.data(), 1, result.size(), results_) == result.size()); }

  template <class T>
  T* array(size_t i) {
    return reinterpret_cast<T*>(arrays.at(i).data());
  }
  int number(size_t i) const { return static_cast<int>(numbers.at(i)); }

  std::string name;
  std::vector<int64_t> numbers;
  std::vector<Buffer> arrays;

 private:
  int64_t take() {
    int64_t value;
    CHECK(at_ + sizeof value <= bytes_.size());
    std::memcpy(&value, bytes_.data() + at_, sizeof value);
    at_ += sizeof value;
    return value;
  }

  Buffer bytes_;
  size_t at_ = 0;
  std::FILE* results_;
};

template <class T>
Buffer room(int64_t count) {
  return Buffer(static_cast<size_t>(count) * sizeof(T), 77);
}

template <class T>
T* in(Buffer& buffer) {
  return reinterpret_cast<T*>(buffer.data());
}

// Numbers: outputs, K, group, bits, signed; then rows, threads, and of codes: bits, signed. Arrays: words, zeros, scales, x; of
// codes also the rows' zeros and scales.
void low_bit(Calls& call, bool codes) {
  const LowBitWeights weights = {call.array<const uint32_t>(0), call.array<const int32_t>(1), call.array<const float>(2),
                                 call.numbers[0], call.numbers[1], call.numbers[2], call.number(3), call.number(4) != 0};
  const LinearW4 layer(weights, "portable");
  const int64_t rows = call.numbers[5], results = rows * weights.outputs;
  if (codes) {
    Buffer y = room<float>(results);
    const ActivationCodes x = {call.array<const void>(3), call.array<const int32_t>(4), call.array<const float>(5),
                               call.number(7), call.number(8) != 0};
    layer.run(x, in<float>(y), rows, call.number(6));
    return call.give(y);
  }
  const auto type = static_cast<FloatType>(call.number(7));
  Buffer y = type == FloatType::f32 ? room<float>(results) : room<uint16_t>(results);
  layer.run(type, call.array<const void>(3), y.data(), rows, call.number(6));
  call.give(y);
}

// Numbers: type, rows, K, threads. Arrays: x.
void row_codes(Calls& call) {
  const int64_t rows = call.numbers[1], length = call.numbers[2];
  Buffer codes = room<int8_t>(rows * length), scale = room<float>(rows);
  quantize_rows(static_cast<FloatType>(call.number(0)), call.array<const void>(0), in<int8_t>(codes), in<float>(scale), rows,
                length, "portable", call.number(3));
  call.give(codes), call.give(scale);
}

// Numbers: type, outer, channels, inner, qmin, qmax, threads. Arrays: scales, zero points, x, dy.
void grid(Calls& call) {
  const auto type = static_cast<FloatType>(call.number(0));
  const GridLayout layout = {call.array<const float>(0),           call.array<const float>(1),
                             call.numbers[1],                      call.numbers[2],
                             call.numbers[3],                      static_cast<float>(call.numbers[4]),
                             static_cast<float>(call.numbers[5])};
  const int threads = call.number(6);
  const int64_t count = layout.outer * layout.channels * layout.inner;
  const void *x = call.array<const void>(2), *dy = call.array<const void>(3);
  Buffer y(call.arrays[2].size(), 77), dx = y, codes = room<uint8_t>(count);
  Buffer dscale = room<float>(layout.channels), dzero = dscale;
  fake_quantize_forward(type, x, y.data(), layout, kIsa, threads);
  fake_quantize_backward(type, dy, x, dx.data(), in<float>(dscale), in<float>(dzero), layout, kIsa, threads);
  quantize_codes(type, x, codes.data(), layout, kIsa, threads);
  for (const Buffer* result : {&y, &dx, &dscale, &dzero, &codes}) call.give(*result);
}

// Numbers: rows, n, qmin, qmax, threads. Arrays: gradient, the state in the order of LearnedRows, and the five rates.
void learn(Calls& call) {
  const auto state = [&](size_t i) { return call.array<float>(1 + i); };
  const LearnedRows learned = {state(0), state(1), state(2), state(3), state(4), state(5), state(6), state(7),
                               call.numbers[0], call.numbers[1], static_cast<float>(call.numbers[2]),
                               static_cast<float>(call.numbers[3])};
  const float* rate = state(8);
  Buffer weight = room<float>(learned.rows * learned.n);
  adaquant_step(learned, call.array<const float>(0), in<float>(weight), {rate[0], rate[1], rate[2], rate[3], rate[4]}, kIsa,
                call.number(4));
  for (size_t i = 0; i < 6; ++i) call.give(call.arrays[1 + i]);
  call.give(weight);
}

}  // namespace

int main(int count, char** paths) {
  CHECK(count == 3);
  Calls calls(paths[1], paths[2]);
  long made = 0;
  for (; calls.next(); ++made) {
    if (calls.name == "w4 codes") low_bit(calls, true);
    else if (calls.name == "w4 float") low_bit(calls, false);
    else if (calls.name == "row code") row_codes(calls);
    else if (calls.name == "the grid") grid(calls);
    else if (calls.name == "adaquant") learn(calls);
    else CHECK(!"a call of that name");
  }
  std::printf("%ld calls\n", made);
}
