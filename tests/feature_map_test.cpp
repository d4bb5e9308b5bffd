// Silu, feature maps and rows of length 1 against their equations in f64, finite differences, and
// arguments far from 0.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "src/kernels/feature_map.hpp"
#include "tests/testing.hpp"

namespace weft {
namespace {

using Values = std::vector<double>;
using Shape = std::vector<int64_t>;

class FeatureMaps : public ::testing::TestWithParam<DType> {
 protected:
  DType dtype() const { return GetParam(); }
  double tolerance() const { return dtype() == DType::f64 ? 1e-12 : 1e-6; }
};
INSTANTIATE_TEST_SUITE_P(Dtypes, FeatureMaps, ::testing::Values(DType::f64, DType::f32),
                         [](const auto& param) { return std::string(name(param.param)); });

void expect_near(const Tensor& got, const Values& expected, double tolerance) {
  const Values v = values(got);
  ASSERT_EQ(v.size(), expected.size());
  for (size_t i = 0; i < v.size(); ++i) EXPECT_NEAR(v[i], expected[i], tolerance) << i;
}

TEST_P(FeatureMaps, Silu) {
  for (const int64_t n : {0, 1, 7, 300}) {
    const Owned x = normals(dtype(), {n}, "x", 3), dy = normals(dtype(), {n}, "dy");
    const Owned y(dtype(), {n}), dx(dtype(), {n}), in_place = copy_of(dy);
    const Values xs = values(x), dys = values(dy);
    Values expected(n), slope(n);
    for (int64_t i = 0; i < n; ++i) {
      const double t = std::tanh(xs[i] / 2);
      expected[i] = xs[i] * (1 + t) / 2;
      slope[i] = dys[i] * ((1 + t) / 2 + xs[i] * (1 - t * t) / 4);
    }
    silu_forward({y, x}, cpu_stream());
    silu_backward({dx, dy, x}, cpu_stream());
    silu_backward({in_place, in_place, x}, cpu_stream());
    EXPECT_LE(relative_rms(values(y), expected), tolerance());
    EXPECT_LE(relative_rms(values(dx), slope), tolerance());
    EXPECT_TRUE(same_bits(values(in_place), values(dx)));
  }
}

TEST_P(FeatureMaps, SiluSaturates) {
  const Owned x = from_values(dtype(), {4}, {-1e4, -800, 800, 1e4}), y(dtype(), {4});
  const Owned dx(dtype(), {4}), dy = filled(dtype(), {4}, 3);
  silu_forward({y, x}, cpu_stream());
  silu_backward({dx, dy, x}, cpu_stream());
  expect_near(y, {0, 0, 800, 1e4}, 1e-30);
  expect_near(dx, {0, 0, 3, 3}, 1e-30);
}

TEST_P(FeatureMaps, OfQueriesAndKeys) {
  for (const int64_t n : {0, 1, 7, 300}) {
    for (const FeatureMap map : {FeatureMap::identity, FeatureMap::elu, FeatureMap::relu}) {
      const Owned x = normals(dtype(), {n}, "x", 3), dy = normals(dtype(), {n}, "dy");
      const Values xs = values(x), dys = values(dy);
      Values y(n), dx(n);
      for (int64_t i = 0; i < n; ++i) {
        const double below = map == FeatureMap::elu ? std::exp(xs[i]) : 0;
        const bool linear = xs[i] > 0 || map == FeatureMap::identity;
        y[i] = linear ? xs[i] + (map == FeatureMap::elu) : below;
        dx[i] = dys[i] * (linear ? 1 : below);
      }
      feature_map_forward({x, map}, cpu_stream());
      feature_map_backward({dy, x, map}, cpu_stream());
      EXPECT_LE(relative_rms(values(x), y), tolerance()) << int(map);
      EXPECT_LE(relative_rms(values(dy), dx), tolerance()) << int(map);
    }
  }
}

TEST_P(FeatureMaps, FarFromZeroAndAtIt) {
  const Values far = {-800, -0.0, 0, 800, 1e-30};
  const Owned elu = from_values(dtype(), {5}, far), relu = from_values(dtype(), {5}, far);
  const Owned delu = filled(dtype(), {5}, 2), drelu = filled(dtype(), {5}, 2);
  feature_map_forward({elu, FeatureMap::elu}, cpu_stream());
  feature_map_backward({delu, elu, FeatureMap::elu}, cpu_stream());
  feature_map_forward({relu, FeatureMap::relu}, cpu_stream());
  feature_map_backward({drelu, relu, FeatureMap::relu}, cpu_stream());
  EXPECT_EQ(values(elu), Values({0, 1, 1, 801, 1}));
  EXPECT_EQ(values(delu), Values({0, 2, 2, 2, 2}));
  expect_near(relu, {0, 0, 0, 800, 1e-30}, 1e-36);
  EXPECT_EQ(values(drelu), Values({0, 0, 0, 2, 2}));
}

TEST_P(FeatureMaps, UnitNorm) {
  for (const Shape& shape : std::vector<Shape>{{0, 4}, {1, 1}, {3, 5}, {9, 64}, {2, 131}}) {
    for (const double eps : {1e-6, 0.5}) {
      SCOPED_TRACE(concat(shape[0], "x", shape[1], " eps ", eps));
      const Owned x = normals(dtype(), shape, "x"), dy = normals(dtype(), shape, "dy");
      const Owned rnorm(dtype(), {shape[0]});
      const Values xs = values(x), dys = values(dy);
      const size_t width = shape[1];
      Values y(xs.size()), dx(xs.size()), norms(shape[0]);
      for (size_t r = 0; r < norms.size(); ++r) {  // by the quotient rule
        double length2 = eps, dlength = 0;
        for (size_t i = r * width; i < (r + 1) * width; ++i) length2 += xs[i] * xs[i];
        const double length = std::sqrt(length2);
        norms[r] = 1 / length;
        for (size_t i = r * width; i < (r + 1) * width; ++i) {
          y[i] = xs[i] / length;
          dlength -= dys[i] * xs[i] / length2;
        }
        for (size_t i = r * width; i < (r + 1) * width; ++i) {
          dx[i] = dys[i] / length + dlength * xs[i] / length;
        }
      }
      unit_norm_forward({x, rnorm, eps}, cpu_stream());
      unit_norm_backward({dy, x, rnorm}, cpu_stream());
      EXPECT_LE(relative_rms(values(x), y), tolerance());
      EXPECT_LE(relative_rms(values(rnorm), norms), tolerance());
      // Along x nothing is left: a row of one cancels to its eps.
      EXPECT_LE(relative_rms(values(dy), dx, 1), 2 * tolerance());
    }
  }
}

TEST(UnitNorm, GradientIsAFiniteDifference) {
  const Owned x = normals(DType::f64, {3, 5}, "x"), dy = normals(DType::f64, {3, 5}, "dy");
  const Owned rnorm(DType::f64, {3}), dx = copy_of(dy);
  const auto forward = [&] {
    Owned y = copy_of(x);
    unit_norm_forward({y, rnorm, 0.1}, cpu_stream());
    return y;
  };
  unit_norm_backward({dx, forward(), rnorm}, cpu_stream());
  const auto loss = [&] { return dot(values(forward()), values(dy)); };
  EXPECT_LE(finite_difference(loss, x, values(dx)), 1e-7);
}

TEST_P(FeatureMaps, UnitNormOfAZeroRow) {
  const Owned x = zeros(dtype(), {1, 3}), dy = filled(dtype(), {1, 3}, 1), rnorm(dtype(), {1});
  unit_norm_forward({x, rnorm, 0.0625}, cpu_stream());
  unit_norm_backward({dy, x, rnorm}, cpu_stream());
  EXPECT_EQ(values(x), Values({0, 0, 0}));
  EXPECT_EQ(values(rnorm), Values({4}));
  EXPECT_EQ(values(dy), Values({4, 4, 4}));
}

}  // namespace
}  // namespace weft
