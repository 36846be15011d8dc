// Memory on a 64-byte boundary: a load that crosses two cache lines costs twice.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace pyquant {

// Bytes that grow and are never cleared.
class AlignedBytes {
 public:
  void grow(int64_t bytes) {
    if (bytes <= size_) return;
    const int64_t whole = (bytes + 63) / 64 * 64;
    bytes_.reset(static_cast<uint8_t*>(std::aligned_alloc(64, static_cast<size_t>(whole))));
    if (!bytes_) throw std::bad_alloc();
    size_ = whole;
  }
  uint8_t* data() const { return bytes_.get(); }

 private:
  struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
  };
  std::unique_ptr<uint8_t, Free> bytes_;
  int64_t size_ = 0;
};

// A fixed number of elements, all zero at first.
template <typename T>
class AlignedArray {
 public:
  void assign(int64_t count) {
    bytes_.grow(count * static_cast<int64_t>(sizeof(T)));
    std::memset(bytes_.data(), 0, static_cast<size_t>(count) * sizeof(T));
  }
  T* data() { return reinterpret_cast<T*>(bytes_.data()); }
  const T* data() const { return reinterpret_cast<const T*>(bytes_.data()); }
  T& operator[](int64_t i) { return data()[i]; }

 private:
  AlignedBytes bytes_;
};

}  // namespace pyquant
