// The copy between views: every stride, every type, and nothing beside the target.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

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

TEST(Convert, RoundsToTheNearestEvenBf16) {
  // 8 bits of significand: 1 + 2^-8 and 1 + 3 2^-8 lie between two, the even one is below and
  // above.
  const std::vector<double> exact = {0, -0.0, 1, -2.5, 1 + 0x1p-7, 0x1p-133, 3e38, INFINITY};
  const std::vector<double> between = {1 + 0x1p-8, 1 + 3 * 0x1p-8, 1 + 0x1p-8 + 0x1p-20,
                                       -1 - 0x1p-8};
  const std::vector<double> nearest = {1, 1 + 0x1p-6, 1 + 0x1p-7, -1};
  for (const DType dtype : {DType::f32, DType::f64}) {
    for (const auto& [given, expected] : {std::pair{exact, exact}, std::pair{between, nearest}}) {
      const int64_t n = std::ssize(given);
      const Owned x = from_values(dtype, {n}, given), bf16(DType::bf16, {n}), back(dtype, {n});
      convert({.y = bf16, .x = x}, cpu_stream());
      convert({.y = back, .x = bf16}, cpu_stream());
      const auto got = values(back);
      for (int64_t i = 0; i < n; ++i) {
        const double bound = expected[i] == 3e38 ? 3e38 * 0x1p-8 : 0;  // no bf16 is 3e38
        EXPECT_TRUE(got[i] == expected[i] || std::abs(got[i] - expected[i]) <= bound) << given[i];
      }
    }
  }
}

TEST(Convert, KeepsNanAndOtherTypes) {
  const Owned x = from_values(DType::f32, {2}, {NAN, 0.1f}), bf16(DType::bf16, {2});
  const Owned back(DType::f64, {2}), wide(DType::f64, {2});
  convert({.y = bf16, .x = x}, cpu_stream());
  convert({.y = back, .x = bf16}, cpu_stream());
  EXPECT_TRUE(std::isnan(values(back)[0]));
  convert({.y = wide, .x = x}, cpu_stream());
  EXPECT_EQ(values(wide)[1], static_cast<double>(0.1f));
}

}  // namespace
}  // namespace weft
