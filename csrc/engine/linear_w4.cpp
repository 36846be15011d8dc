#include "engine/linear_w4.h"

#include <algorithm>
#include <cstring>

#include "cpu/threads.h"
#include "engine/aligned.h"

namespace pyquant {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Code k of a row of dense words.
uint32_t code_at(const uint32_t* row, int64_t k, int bits) {
  const int64_t bit = k * bits, word = bit / 32, shift = bit % 32;
  uint64_t two = row[word];
  if (shift + bits > 32) two |= static_cast<uint64_t>(row[word + 1]) << 32;
  return static_cast<uint32_t>(two >> shift) & ((1u << bits) - 1);
}

// Puts code k of a block of 32 where gemm_w4.h says; `block` points to the bytes of the channel's k % 4.
void place(uint8_t* block, int64_t k, uint32_t code, int bits) {
  const int64_t quad = k / 4;
  if (bits == 4) {
    block[quad / 2 * 64] |= static_cast<uint8_t>(code << (quad % 2 * 4));
    return;
  }
  block[quad / 4 * 64] |= static_cast<uint8_t>((code & 3) << (quad % 4 * 2));
  if (bits == 3) block[2 * 64] |= static_cast<uint8_t>((code >> 2) << quad);
}

// Kernels may read, and do not use, up to so many bytes behind the last row's codes.
constexpr int64_t kSlack = 1024;

// Bytes from one 64 k of the rows to the next. A power of two would put the chunks that a tile takes one after another
// into the same few sets of the first-level cache, where they would push each other and the weights out.
int64_t chunk_stride(int64_t count) { return (count % 32 == 0 ? count + 16 : count) * kChunk; }

bool fits_16_bits(int32_t v) { return v == static_cast<int16_t>(v); }

int32_t in_halves(int32_t low, int32_t high) {
  return static_cast<int32_t>((static_cast<uint32_t>(low) & 0xFFFF) | static_cast<uint32_t>(high) << 16);
}

}  // namespace

// What the rows of one call need, kept by each thread from call to call.
struct LinearW4::Scratch {
  AlignedBytes codes;                             // [K' / 64] chunks of [count][64]
  std::vector<int32_t> block_sum, sum, seed, pair;  // [count][K' / 32], then [groups][count]
  std::vector<int32_t> zero;
  std::vector<float> scale;

  static Scratch& of_this_thread() {
    thread_local Scratch scratch;
    return scratch;
  }
};

LinearW4::LinearW4(const LowBitWeights& from, const std::string& isa)
    : kernels_(&gemm_w4_for(isa_by_name(isa))),
      outputs_(from.outputs),
      length_(from.length),
      group_size_(from.group_size) {
  const int64_t groups = length_ / group_size_, blocks = ceil_div(group_size_, kBlock);
  const int64_t together = kernels_->panels_together;
  const int64_t panels = ceil_div(ceil_div(outputs_, kPanel), together) * together;
  const int64_t record = kPanel * static_cast<int64_t>(sizeof(float)) + blocks * 64 * from.bits;
  records_.allocate(panels * groups * record);
  const size_t constants = static_cast<size_t>(panels * groups * kPanel);
  // Codes become unsigned: a signed grid moves up by half its range.
  const int32_t move = from.is_signed ? 1 << (from.bits - 1) : 0;
  const int64_t words = ceil_div(length_ * from.bits, 32);
  first_zero_ = from.zero[0] + move;
  one_zero_ = true;
  zero_.assign(constants, 0);
  sum_.assign(constants, 0);
  for (int64_t n = 0; n < outputs_; ++n) {
    const uint32_t* row = from.words + n * words;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t at = n / kPanel * groups + g, lane = n % kPanel;
      uint8_t* const to = records_.data() + at * record;
      std::memcpy(to + lane * 4, from.scale + n * groups + g, sizeof(float));
      uint8_t* const codes = to + kPanel * sizeof(float) + lane * 4;
      int32_t sum = 0;
      for (int64_t k = 0; k < group_size_; ++k) {
        // Two's complement with the top bit flipped is the code plus half the range.
        const uint32_t code = code_at(row, g * group_size_ + k, from.bits) ^ static_cast<uint32_t>(move);
        sum += static_cast<int32_t>(code);
        place(codes + k / kBlock * 64 * from.bits + k % 4, k % kBlock, code, from.bits);
      }
      const int32_t zero = from.zero[n * groups + g] + move;
      zero_[static_cast<size_t>(at * kPanel + lane)] = zero;
      sum_[static_cast<size_t>(at * kPanel + lane)] = sum;
      one_zero_ = one_zero_ && zero == first_zero_;
    }
  }
  const bool fit = std::all_of(zero_.begin(), zero_.end(), fits_16_bits) &&
                   std::all_of(sum_.begin(), sum_.end(), fits_16_bits);
  if (fit) {
    pair_.resize(constants);
    for (size_t i = 0; i < constants; ++i) pair_[i] = in_halves(zero_[i], sum_[i]);
  }
  weights_ = {records_.data(), zero_.data(), sum_.data(), pair_.empty() ? nullptr : pair_.data(),
              groups,          blocks,       outputs_,    record,
              from.bits};
}

void LinearW4::multiply(Scratch& scratch, const int32_t* zero, const float* scale, void* y, FloatType type,
                        int64_t count, int threads) const {
  const int64_t groups = weights_.groups, blocks = weights_.blocks;
  const size_t entries = static_cast<size_t>(groups * count);
  const bool all_zero = zero == nullptr || std::all_of(zero, zero + count, [](int32_t z) { return z == 0; });
  const bool seeded = one_zero_ && all_zero;
  scratch.sum.resize(entries);
  scratch.seed.resize(entries);
  scratch.pair.resize(entries);
  bool pairs = weights_.pair != nullptr;
  if (zero == nullptr) {
    scratch.zero.assign(static_cast<size_t>(count), 0);
    zero = scratch.zero.data();
  }
  for (int64_t row = 0; row < count; ++row) {
    const int32_t* from = scratch.block_sum.data() + row * groups * blocks;
    for (int64_t g = 0; g < groups; ++g) {
      int32_t sum = 0;
      for (int64_t b = 0; b < blocks; ++b) sum += from[g * blocks + b];
      sum -= static_cast<int32_t>(group_size_) * zero[row];
      const size_t at = static_cast<size_t>(g * count + row);
      scratch.sum[at] = sum;
      scratch.seed[at] = -first_zero_ * sum;
      scratch.pair[at] = in_halves(-sum, -zero[row]);
      pairs = pairs && fits_16_bits(-sum) && fits_16_bits(-zero[row]);
    }
  }
  const RowCodes rows = {reinterpret_cast<const int8_t*>(scratch.codes.data()),
                         chunk_stride(count),
                         seeded ? scratch.seed.data() : nullptr,
                         scratch.pair.data(),
                         scratch.sum.data(),
                         zero,
                         scale,
                         y,
                         outputs_,
                         count,
                         type};
  GemmW4 weights = weights_;
  if (!pairs) weights.pair = nullptr;
  // Threads share out panels, so that each reads its own weights.
  const int64_t together = kernels_->panels_together;
  const int64_t shares = ceil_div(ceil_div(outputs_, kPanel), together);
  parallel_for(threads, shares, [&](int64_t begin, int64_t end) {
    kernels_->gemm(weights, rows, begin * together, end * together);
  });
}

void LinearW4::run(const ActivationCodes& x, float* y, int64_t rows, int threads) const {
  Scratch& scratch = Scratch::of_this_thread();
  const int64_t blocks = weights_.groups * weights_.blocks, chunks = ceil_div(blocks, 2);
  // Codes become signed: an unsigned grid moves down by half its range.
  const int32_t move = x.is_signed ? 0 : 1 << (x.bits - 1);
  const int64_t row_words = ceil_div(length_ * x.bits, 32);
  std::vector<int32_t> zero(static_cast<size_t>(std::min(rows, kRowBlock)));
  for (int64_t first = 0; first < rows; first += kRowBlock) {
    const int64_t count = std::min(kRowBlock, rows - first), stride = chunk_stride(count);
    scratch.codes.grow(chunks * stride + kSlack);
    scratch.block_sum.resize(static_cast<size_t>(count * blocks));
    for (int64_t i = 0; i < count; ++i) zero[static_cast<size_t>(i)] = x.zero[first + i] - move;
    parallel_for(threads, count, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const uint8_t* bytes = static_cast<const uint8_t*>(x.x) + (first + i) * length_;
        const uint32_t* words = static_cast<const uint32_t*>(x.x) + (first + i) * row_words;
        for (int64_t b = 0; b < chunks * 2; ++b) {
          int8_t* to = reinterpret_cast<int8_t*>(scratch.codes.data()) + b / 2 * stride + i * kChunk + b % 2 * kBlock;
          const int64_t n = std::max<int64_t>(0, std::min<int64_t>(kBlock, length_ - b * kBlock));
          if (x.bits == 8) {
            for (int64_t k = 0; k < n; ++k) to[k] = static_cast<int8_t>(bytes[b * kBlock + k] ^ move);
          } else {
            // Four bits with the top one flipped or not, less half the range: two's complement either way.
            for (int64_t k = 0; k < n; ++k) {
              const uint32_t code = code_at(words, b * kBlock + k, 4) ^ static_cast<uint32_t>(8 - move);
              to[k] = static_cast<int8_t>(static_cast<int32_t>(code) - 8);
            }
          }
          std::memset(to + n, 0, static_cast<size_t>(kBlock - n));
          int32_t sum = 0;
          for (int64_t k = 0; k < kBlock; ++k) sum += to[k];
          if (b < blocks) scratch.block_sum[static_cast<size_t>(i * blocks + b)] = sum;
        }
      }
    });
    multiply(scratch, zero.data(), x.scale + first, y + first * outputs_, FloatType::f32, count, threads);
  }
}

void LinearW4::run(FloatType type, const void* x, void* y, int64_t rows, int threads) const {
  Scratch& scratch = Scratch::of_this_thread();
  const int64_t blocks = weights_.groups * weights_.blocks, chunks = ceil_div(blocks, 2);
  const int64_t size = type == FloatType::f32 ? 4 : 2;
  for (int64_t first = 0; first < rows; first += kRowBlock) {
    const int64_t count = std::min(kRowBlock, rows - first), stride = chunk_stride(count);
    scratch.codes.grow(chunks * stride + kSlack);
    scratch.block_sum.resize(static_cast<size_t>(count * blocks));
    scratch.scale.resize(static_cast<size_t>(count));
    parallel_for(threads, count, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        kernels_->quantize_row(type, static_cast<const char*>(x) + (first + i) * length_ * size, length_,
                               reinterpret_cast<int8_t*>(scratch.codes.data()) + i * kChunk, stride,
                               scratch.block_sum.data() + i * blocks, scratch.scale.data() + i);
      }
    });
    multiply(scratch, nullptr, scratch.scale.data(), static_cast<char*>(y) + first * outputs_ * size, type, count,
             threads);
  }
}

void quantize_rows(FloatType type, const void* x, int8_t* codes, float* scale, int64_t rows, int64_t length,
                   const std::string& isa, int threads) {
  const GemmW4Kernels& kernels = gemm_w4_for(isa_by_name(isa));
  const int64_t size = type == FloatType::f32 ? 4 : 2;
  parallel_for(threads, rows, [&](int64_t begin, int64_t end) {
    // The kernel writes whole blocks.
    std::vector<int8_t> whole(static_cast<size_t>(ceil_div(length, kChunk) * kChunk));
    std::vector<int32_t> block_sum(static_cast<size_t>(ceil_div(length, kBlock)));
    for (int64_t i = begin; i < end; ++i) {
      kernels.quantize_row(type, static_cast<const char*>(x) + i * length * size, length, whole.data(), kChunk,
                           block_sum.data(), scale + i);
      std::memcpy(codes + i * length, whole.data(), static_cast<size_t>(length));
    }
  });
}

}  // namespace pyquant
