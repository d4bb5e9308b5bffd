// Tensor: a view. It copies freely and owns nothing; arenas and buffers own.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "src/core/check.hpp"
#include "src/core/device.hpp"
#include "src/tensor/dtype.hpp"

namespace weft {

/// Up to five dims with strides in elements; the innermost stride is 1. On the meta device the data
/// pointer is null and everything else is as on a real one.
struct Tensor {
  static constexpr int kMaxDims = 5;

  std::byte* data = nullptr;
  DType dtype = DType::f32;
  Device device = Device::cpu;
  int ndim = 0;
  std::array<int64_t, kMaxDims> shape{};
  std::array<int64_t, kMaxDims> stride{};

  /// A contiguous view of `data` with the given shape.
  static Tensor view(void* data, DType dtype, Device device, std::span<const int64_t> dims) {
    WEFT_CHECK(std::ssize(dims) <= kMaxDims, dims.size(), " dims");
    Tensor t{.data = static_cast<std::byte*>(data),
             .dtype = dtype,
             .device = device,
             .ndim = static_cast<int>(dims.size())};
    int64_t step = 1;
    for (int d = t.ndim - 1; d >= 0; --d) {
      WEFT_CHECK(dims[d] >= 0, "dim ", d, " is ", dims[d]);
      t.shape[d] = dims[d];
      t.stride[d] = step;
      step *= dims[d];
    }
    return t;
  }

  explicit operator bool() const { return ndim > 0; }  // an absent tensor has no dims

  int64_t dim(int d) const { return shape[d < 0 ? d + ndim : d]; }
  int64_t numel() const {
    int64_t n = 1;
    for (int d = 0; d < ndim; ++d) n *= shape[d];
    return n;
  }
  int64_t nbytes() const { return numel() * size_of(dtype); }

  bool contiguous() const {
    int64_t step = 1;
    for (int d = ndim - 1; d >= 0; --d) {
      if (shape[d] != 1 && stride[d] != step) return false;
      step *= shape[d];
    }
    return true;
  }

  bool has_shape(std::initializer_list<int64_t> dims) const {
    if (std::ssize(dims) != ndim) return false;
    int d = 0;
    for (const int64_t n : dims) {
      if (shape[d++] != n) return false;
    }
    return true;
  }

  /// The elements, typed. The type must be the dtype's.
  template <class T>
  T* as() const {
    WEFT_CHECK(dtype == dtype_of<T>(), "a ", name(dtype), " tensor read as ", name(dtype_of<T>()));
    return reinterpret_cast<T*>(data);
  }

  /// Items [begin, end) of dim d, the others whole.
  Tensor slice(int d, int64_t begin, int64_t end) const {
    WEFT_CHECK(begin >= 0 && begin <= end && end <= dim(d), "[", begin, ", ", end, ") of ", dim(d));
    Tensor t = *this;
    t.shape[d] = end - begin;
    if (t.data != nullptr) t.data += begin * stride[d] * size_of(dtype);
    return t;
  }

  /// The same elements in other dims; needs a contiguous view.
  Tensor reshape(std::initializer_list<int64_t> dims) const {
    WEFT_CHECK(contiguous(), "reshape of a strided view ", text());
    const Tensor t = view(data, dtype, device, {dims.begin(), dims.size()});
    WEFT_CHECK(t.numel() == numel(), text(), " has ", numel(), " elements, not ", t.numel());
    return t;
  }

  /// [a, b, ..., last] seen as [a b ..., last]: the rows of a matrix.
  Tensor rows() const { return reshape({dim(-1) == 0 ? 0 : numel() / dim(-1), dim(-1)}); }

  /// "f32[2, 16, 64]", for messages.
  std::string text() const {
    std::string out = std::string(name(dtype)) + "[";
    for (int d = 0; d < ndim; ++d) out += (d ? ", " : "") + std::to_string(shape[d]);
    return out + "]";
  }
};

inline bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.ndim != b.ndim) return false;
  for (int d = 0; d < a.ndim; ++d) {
    if (a.shape[d] != b.shape[d]) return false;
  }
  return true;
}

}  // namespace weft
