// Handle: the one owner of something that a C library hands out.
#pragma once

#include <utility>

namespace weft {

/// Owns a `T` (a pointer, or what converts from {} to "nothing") and gives it to `Destroy` once.
/// Move-only. Errors of Destroy are not reported: a destructor has nowhere to send them.
///   using EventHandle = Handle<cudaEvent_t, cudaEventDestroy>;
template <class T, auto Destroy>
class Handle {
 public:
  Handle() = default;
  explicit Handle(T value) : value_(value) {}
  ~Handle() { reset(); }
  Handle(Handle&& other) noexcept : value_(std::exchange(other.value_, T{})) {}
  Handle& operator=(Handle&& other) noexcept {
    if (this != &other) {
      reset();
      value_ = std::exchange(other.value_, T{});
    }
    return *this;
  }

  T get() const { return value_; }
  explicit operator bool() const { return value_ != T{}; }

  /// Gives up ownership.
  T release() { return std::exchange(value_, T{}); }

  /// Where a creating function writes; what was owned before is destroyed first.
  T* out() {
    reset();
    return &value_;
  }

 private:
  void reset() noexcept {
    if (value_ != T{}) static_cast<void>(Destroy(std::exchange(value_, T{})));
  }

  T value_{};
};

}  // namespace weft
