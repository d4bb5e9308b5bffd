// Scratch as the arrays that a kernel needs.
#pragma once

#include <cstddef>
#include <cstdint>

namespace weft {

/// Cuts scratch into arrays. Without memory it only adds up, so that what a workspace takes and
/// what it asks for are one list.
class Slab {
 public:
  explicit Slab(std::byte* memory) : memory_(memory) {}

  template <class T>
  T* take(int64_t count) {
    constexpr int64_t kAlignment = 64;
    const int64_t at = used_;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    return memory_ ? reinterpret_cast<T*>(memory_ + at) : nullptr;
  }
  int64_t used() const { return used_; }

 private:
  std::byte* memory_;
  int64_t used_ = 0;
};

}  // namespace weft
