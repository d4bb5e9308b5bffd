// What tests of the CUDA twins are made of: values rounded to a dtype, tensors that own device
// memory, and runs that are repeated and compared bit for bit.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "src/core/cuda/memory.hpp"
#include "src/core/cuda/stream.hpp"
#include "src/tensor/bf16.hpp"
#include "tests/testing.hpp"

namespace weft {

using Values = std::vector<double>;

/// Numbers are fresh in every run; WEFT_TEST_SEED repeats one.
inline uint64_t test_seed() {
  static const uint64_t seed = [] {
    const char* given = std::getenv("WEFT_TEST_SEED");
    const uint64_t value = given != nullptr ? std::stoull(given) : std::random_device{}();
    std::printf("WEFT_TEST_SEED=%llu\n", static_cast<unsigned long long>(value));
    return value;
  }();
  return seed;
}

inline Stream& cuda_test_stream() {
  static const std::unique_ptr<Stream> stream = cuda::make_stream(0);
  return *stream;
}

/// Skips, visibly, where there is no GPU.
class CudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda::device_count() == 0) GTEST_SKIP() << "no GPU";
  }
};

class CudaDtypeTest : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    if (cuda::device_count() == 0) GTEST_SKIP() << "no GPU";
  }
  DType dtype() const { return GetParam(); }
};
inline std::string dtype_name(const testing::TestParamInfo<DType>& info) {
  return name(info.param);
}

/// f32: sums of thousands of terms in f32. bf16: an output's own rounding is 2^-9, and twice that
/// where a kernel adds to what was rounded before.
inline double tolerance_of(DType dtype) {
  return dtype == DType::bf16 ? 8e-3 : 1e-5;
}

/// `values` as a tensor of `dtype` holds them.
inline Values rounded(DType dtype, Values values) {
  for (double& v : values) {
    if (dtype == DType::bf16) v = from_bf16(to_bf16(v));
    if (dtype == DType::f32) v = static_cast<float>(v);
  }
  return values;
}

/// Normals that `dtype` can hold.
inline Values random_values(DType dtype, int64_t n, std::string_view name, double scale = 1.0) {
  const RandomStream random(test_seed(), name);
  Values out(n);
  for (int64_t i = 0; i < n; ++i) out[i] = scale * random.normal(i);
  return rounded(dtype, std::move(out));
}

inline Values random_integers(int64_t n, std::string_view name, int64_t below) {
  const RandomStream random(test_seed(), name);
  Values out(n);
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<double>(random.below(i, below));
  return out;
}

/// The elements of a device tensor in row-major order, once its stream has done its work.
inline Values device_values(const Tensor& t) {
  const std::vector<int64_t> offsets = offsets_of(t);
  if (offsets.empty()) return {};
  const int64_t bytes = (*std::max_element(offsets.begin(), offsets.end()) + 1) * size_of(t.dtype);
  std::vector<std::byte> host(bytes);
  cuda::copy_bytes(host.data(), t.data, bytes, cuda_test_stream());
  cuda_test_stream().record().wait();
  Tensor view = t;
  view.device = Device::cpu;
  view.data = host.data();
  if (t.dtype != DType::bf16) return values(view);
  Values out;
  for (const int64_t at : offsets)
    out.push_back(from_bf16(view.data ? reinterpret_cast<uint16_t*>(view.data)[at] : 0));
  return out;
}

/// A tensor with its own device memory, poisoned or with given values.
class OnDevice {
 public:
  OnDevice(DType dtype, const std::vector<int64_t>& shape) {
    view_ = Tensor::view(nullptr, dtype, Device::cuda, shape);
    memory_ = cuda::allocate_device("a test", view_.nbytes());
    view_.data = memory_.get();
    poison_fill(view_, &cuda_test_stream());
  }
  OnDevice(DType dtype, const std::vector<int64_t>& shape, const Values& values)
      : OnDevice(dtype, shape) {
    assign_values(values);
  }

  void assign_values(const Values& source) {
    WEFT_CHECK(std::ssize(source) == view_.numel(), view_.text());
    std::vector<std::byte> host(view_.nbytes());
    Tensor staged = view_;
    staged.device = Device::cpu;
    staged.data = host.data();
    if (view_.dtype == DType::bf16) {
      auto* out = reinterpret_cast<uint16_t*>(host.data());
      for (size_t i = 0; i < source.size(); ++i) out[i] = to_bf16(source[i]);
    } else {
      assign(staged, source);
    }
    cuda::copy_bytes(view_.data, host.data(), view_.nbytes(), cuda_test_stream());
    cuda_test_stream().record().wait();
  }

  const Tensor& view() const { return view_; }
  operator const Tensor&() const { return view_; }

 private:
  cuda::DeviceMemory memory_;
  Tensor view_;
};

inline OnDevice device_zeros(DType dtype, const std::vector<int64_t>& shape) {
  OnDevice t(dtype, shape);
  t.assign_values(Values(t.view().numel(), 0.0));
  return t;
}

inline Owned f64(const std::vector<int64_t>& shape, const Values& source) {
  return from_values(DType::f64, shape, source);
}

/// Runs a case twice, from fresh tensors each time, and wants the same bits in every output.
inline std::vector<Values> twice(const std::function<std::vector<Values>()>& run) {
  const std::vector<Values> first = run(), second = run();
  for (size_t i = 0; i < first.size(); ++i) {
    EXPECT_TRUE(same_bits(first[i], second[i])) << "output " << i << " differs on a second run";
  }
  return first;
}

inline void expect_near(const Values& got, const Tensor& reference, double tolerance,
                        const char* what, double floor = 0) {
  EXPECT_LE(relative_rms(got, values(reference), floor), tolerance) << what;
}

}  // namespace weft
