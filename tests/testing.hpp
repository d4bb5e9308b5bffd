// What tests are made of: tensors that own their bytes, comparisons that NaN cannot pass, finite
// differences, and the masks of documents.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <string_view>
#include <utility>
#include <vector>

#include "src/core/device.hpp"
#include "src/core/random.hpp"
#include "src/core/segment_map.hpp"
#include "src/tensor/arena.hpp"
#include "src/tensor/tensor.hpp"

namespace weft {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

inline Stream& cpu_stream() {
  static const std::unique_ptr<Stream> stream = make_inline_stream();
  return *stream;
}

/// A tensor with its own bytes, aligned like an arena's and no longer than the shape, so that the
/// address sanitizer sees an overrun. New ones hold bytes that read as NaN.
class Owned {
 public:
  Owned() = default;
  Owned(DType dtype, const std::vector<int64_t>& shape) {
    view_ = Tensor::view(nullptr, dtype, Device::cpu, shape);
    bytes_.reset(static_cast<std::byte*>(::operator new(view_.nbytes(), kAlignment)));
    view_.data = bytes_.get();
    poison_fill(view_);
  }

  const Tensor& view() const { return view_; }
  operator const Tensor&() const { return view_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(std::byte* bytes) const { ::operator delete(bytes, kAlignment); }
  };

  std::unique_ptr<std::byte, Free> bytes_;
  Tensor view_;
};

/// Offsets of the elements in row-major order, strides respected.
inline std::vector<int64_t> offsets_of(const Tensor& t) {
  std::vector<int64_t> offsets(t.numel());
  for (int64_t i = 0; i < t.numel(); ++i) {
    int64_t rest = i;
    for (int d = t.ndim - 1; d >= 0; --d) {
      offsets[i] += rest % t.shape[d] * t.stride[d];
      rest /= t.shape[d];
    }
  }
  return offsets;
}

/// Calls f with a typed pointer to the elements of any dtype the CPU knows.
template <class F>
auto visit_elements(const Tensor& t, F&& f) {
  switch (t.dtype) {
    case DType::f64:
      return f(t.as<double>());
    case DType::f32:
      return f(t.as<float>());
    case DType::i64:
      return f(t.as<int64_t>());
    case DType::i32:
      return f(t.as<int32_t>());
    default:
      break;
  }
  detail::throw_internal(__FILE__, __LINE__, concat("no test values in ", name(t.dtype)));
}

/// The elements in row-major order. f32 and integers below 2^53 come through unchanged.
inline std::vector<double> values(const Tensor& t) {
  const std::vector<int64_t> offsets = offsets_of(t);
  std::vector<double> out(offsets.size());
  visit_elements(t, [&](auto* data) {
    for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<double>(data[offsets[i]]);
  });
  return out;
}

inline void assign(const Tensor& t, const std::vector<double>& source) {
  const std::vector<int64_t> offsets = offsets_of(t);
  WEFT_CHECK(offsets.size() == source.size(), t.text(), " from ", source.size(), " values");
  visit_elements(t, [&](auto* data) {
    using T = std::remove_pointer_t<decltype(data)>;
    for (size_t i = 0; i < source.size(); ++i) data[offsets[i]] = static_cast<T>(source[i]);
  });
}

inline Owned filled(DType dtype, const std::vector<int64_t>& shape, double value) {
  Owned t(dtype, shape);
  assign(t, std::vector<double>(t.view().numel(), value));
  return t;
}

inline Owned zeros(DType dtype, const std::vector<int64_t>& shape) {
  return filled(dtype, shape, 0.0);
}

inline Owned from_values(DType dtype, const std::vector<int64_t>& shape,
                         const std::vector<double>& source) {
  Owned t(dtype, shape);
  assign(t, source);
  return t;
}

/// A contiguous copy of a view.
inline Owned copy_of(const Tensor& t) {
  return from_values(t.dtype, {t.shape.begin(), t.shape.begin() + t.ndim}, values(t));
}

/// `n` normals rounded to f32: f64 and f32 kernels get the same inputs, and one reference in f64
/// serves both.
inline std::vector<double> normal_values(int64_t n, std::string_view name, double scale = 1.0) {
  const RandomStream random(7, name);
  std::vector<double> out(n);
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(scale * random.normal(i));
  return out;
}

inline Owned normals(DType dtype, const std::vector<int64_t>& shape, std::string_view name,
                     double scale = 1.0) {
  Owned t(dtype, shape);
  assign(t, normal_values(t.view().numel(), name, scale));
  return t;
}

inline bool all_nan(const Tensor& t) {
  const std::vector<double> v = values(t);
  return std::all_of(v.begin(), v.end(), [](double x) { return std::isnan(x); });
}

/// The same bits in every element, NaN and signed zeros included.
inline bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0);
}

inline double dot(const std::vector<double>& a, const std::vector<double>& b) {
  WEFT_CHECK(a.size() == b.size(), a.size(), " and ", b.size());
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

inline double rms(const std::vector<double>& a) {
  return a.empty() ? 0.0 : std::sqrt(dot(a, a) / static_cast<double>(a.size()));
}

inline std::vector<double> minus(std::vector<double> a, const std::vector<double>& b) {
  WEFT_CHECK(a.size() == b.size(), a.size(), " and ", b.size());
  for (size_t i = 0; i < a.size(); ++i) a[i] -= b[i];
  return a;
}

/// RMS(got - reference) / max(RMS(reference), floor). Infinite where sizes differ or anything is
/// not finite, so that no bound admits it. A floor is for references that cancel to nothing.
inline double relative_rms(const std::vector<double>& got, const std::vector<double>& reference,
                           double floor = 0) {
  if (got.size() != reference.size()) return kInfinity;
  for (size_t i = 0; i < got.size(); ++i) {
    if (!std::isfinite(got[i]) || !std::isfinite(reference[i])) return kInfinity;
  }
  const double difference = rms(minus(got, reference));
  return difference == 0 ? 0.0 : difference / std::max(rms(reference), floor);
}

/// For log-sum-exps: -inf must stand at the same places, the rest compares by relative_rms.
inline double relative_rms_of_logs(std::vector<double> got, std::vector<double> reference) {
  if (got.size() != reference.size()) return kInfinity;
  for (size_t i = 0; i < got.size(); ++i) {
    if (got[i] == -kInfinity && reference[i] == -kInfinity) got[i] = reference[i] = 0;
  }
  return relative_rms(got, reference);
}

/// How far `gradient`, in x's row-major order, is from central differences of `loss` in x (f64,
/// perturbed in place): the relative RMS over all elements, or over `samples` random ones.
/// With a step of 1e-5 truncation and cancellation both stay below 1e-9 for values of order one, so
/// 1e-7 separates a right gradient from a wrong one.
inline double finite_difference(const std::function<double()>& loss, const Tensor& x,
                                const std::vector<double>& gradient, int64_t samples = 60) {
  constexpr double kStep = 1e-5;
  const std::vector<int64_t> offsets = offsets_of(x);
  const int64_t n = x.numel();
  WEFT_CHECK(std::ssize(gradient) == n, x.text(), " has a gradient of ", gradient.size());
  double* data = x.as<double>();
  std::vector<double> expected, numeric;
  for (int64_t s = 0; s < std::min(n, samples); ++s) {
    const int64_t i = n <= samples ? s : RandomStream(3, "samples").below(s, n);
    const double before = std::exchange(data[offsets[i]], data[offsets[i]] + kStep);
    const double above = loss();
    data[offsets[i]] = before - kStep;
    const double below = loss();
    data[offsets[i]] = before;
    numeric.push_back((above - below) / (2 * kStep));
    expected.push_back(gradient[i]);
  }
  return relative_rms(expected, numeric);
}

/// Which keys of its own document a query sees.
struct Mask {
  bool causal = true;
  int64_t window = 0;  // keys nearer than this, the query's own included; 0: all
};

struct KeyIntervals {
  Owned begin, end;  // [B, end - begin] i64
};

/// The intervals of queries [begin, end) of every sample, in global key indices.
inline KeyIntervals key_intervals(const std::vector<SegmentMap>& samples, int64_t begin,
                                  int64_t end, Mask mask = {}) {
  std::vector<double> first, last;
  for (const SegmentMap& documents : samples) {
    for (int64_t t = begin; t < end; ++t) {
      int64_t from = documents.document_begin(t);
      int64_t to = mask.causal ? t + 1 : documents.document_end(t);
      if (mask.window > 0) {
        from = std::max(from, t - mask.window + 1);
        to = std::min(to, t + mask.window);
      }
      first.push_back(static_cast<double>(from));
      last.push_back(static_cast<double>(to));
    }
  }
  const std::vector<int64_t> shape = {std::ssize(samples), end - begin};
  return {from_values(DType::i64, shape, first), from_values(DType::i64, shape, last)};
}

}  // namespace weft
