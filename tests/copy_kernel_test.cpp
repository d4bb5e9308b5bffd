// The copy between views: every stride, every type, and nothing beside the target.
#include <gtest/gtest.h>

#include <algorithm>

#include "src/kernels/pointwise.hpp"
#include "tests/testing.hpp"

namespace weft {
namespace {

Tensor swapped(Tensor t, int a, int b) {
  std::swap(t.shape[a], t.shape[b]);
  std::swap(t.stride[a], t.stride[b]);
  return t;
}

Owned numbered(DType dtype, const std::vector<int64_t>& shape) {
  Owned t(dtype, shape);
  std::vector<double> numbers(t.view().numel());
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<double>(i + 1);
  assign(t, numbers);
  return t;
}

void expect_copied(const Tensor& y, const Tensor& x) {
  copy({.y = y, .x = x}, cpu_stream());
  EXPECT_EQ(values(y), values(x)) << y.text();
}

class Copy : public testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(Dtypes, Copy,
                         testing::Values(DType::f64, DType::f32, DType::i64, DType::i32),
                         [](const auto& param) { return std::string(name(param.param)); });

TEST_P(Copy, TakesAnyStridesOnEitherSide) {
  const Owned x = numbered(GetParam(), {3, 5, 2, 4});
  const Tensor last = x.view().slice(1, 2, 5);               // tokens of every sequence
  const Tensor corner = last.slice(0, 1, 3).slice(3, 1, 3);  // gaps in every dim
  const Owned packed(GetParam(), {3, 3, 2, 4}), small(GetParam(), {2, 3, 2, 2});
  expect_copied(packed, last);
  expect_copied(swapped(packed, 0, 1), swapped(last, 1, 0));
  expect_copied(small, corner);
  const Owned turned(GetParam(), {5, 3, 2, 4});
  expect_copied(turned, swapped(x, 0, 1));
  expect_copied(swapped(turned, 0, 1), x);
  expect_copied(Owned(GetParam(), {3, 5, 2, 4}), x);
}

TEST_P(Copy, WritesNothingBesideTheTarget) {
  const Owned x = numbered(GetParam(), {2, 3, 4}), y = zeros(GetParam(), {2, 7, 6});
  expect_copied(y.view().slice(1, 2, 5).slice(2, 1, 5), x);
  const std::vector<double> all = values(y);
  EXPECT_EQ(std::count(all.begin(), all.end(), 0.0), 2 * 7 * 6 - 2 * 3 * 4);
}

TEST_P(Copy, OfNothingAndOfOne) {
  const Owned x = numbered(GetParam(), {2, 3, 4}), y(GetParam(), {2, 0, 4});
  expect_copied(y, x.view().slice(1, 3, 3));
  expect_copied(Owned(GetParam(), {1, 1, 1}),
                x.view().slice(0, 1, 2).slice(1, 1, 2).slice(2, 1, 2));
}

TEST(CopyCost, IsAReadAndAWrite) {
  const Owned x = zeros(DType::f32, {3, 4});
  EXPECT_EQ(cost(CopyArgs{.y = x, .x = x}).bytes, 2 * 3 * 4 * 4);
  EXPECT_EQ(cost(CopyArgs{.y = x, .x = x}).flops, 0);
}

}  // namespace
}  // namespace weft
