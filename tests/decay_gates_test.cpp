// Gates of state mixers against their equations in f64, where every term is formed another way than
// in the kernels; finite differences; arguments at which a naive formula overflows.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <vector>

#include "src/kernels/decay_gates.hpp"
#include "tests/testing.hpp"

namespace weft {
namespace {

using Values = std::vector<double>;

class DecayGates : public ::testing::TestWithParam<DType> {
 protected:
  DType dtype() const { return GetParam(); }
  double tolerance() const { return dtype() == DType::f64 ? 1e-12 : 1e-6; }
};
INSTANTIATE_TEST_SUITE_P(Dtypes, DecayGates, ::testing::Values(DType::f64, DType::f32),
                         [](const auto& param) { return std::string(name(param.param)); });

/// For |x| < 30, where these lose nothing that f64 has.
double sigmoid(double x) {
  return 0.5 + 0.5 * std::tanh(x / 2);
}
double softplus(double x) {
  return std::log(1 + std::exp(x));
}

const std::vector<std::array<int64_t, 2>> kShapes = {{0, 3}, {1, 1}, {7, 5}, {33, 64}};

TEST_P(DecayGates, FixedDecay) {
  const Values logs = {-0.25, 0, -1e-3};
  const Owned log_decay(dtype(), {3});
  fixed_decay({log_decay, &logs}, cpu_stream());
  EXPECT_LE(relative_rms(values(log_decay), logs), tolerance());
}

TEST_P(DecayGates, SigmoidDecay) {
  for (const auto [rows, columns] : kShapes) {
    SCOPED_TRACE(concat(rows, "x", columns));
    const std::vector<int64_t> shape = {rows, columns};
    const Owned x = normals(dtype(), shape, "x", 3), bias = normals(dtype(), {columns}, "bias");
    const Owned dlog = normals(dtype(), shape, "dlog"), dbias = normals(dtype(), {columns}, "db");
    const Values xs = values(x), biases = values(bias), dlogs = values(dlog);
    const Values dbias_before = values(dbias);
    Values log_decay(xs.size()), dx(xs.size()), sums(columns);
    for (size_t i = 0; i < xs.size(); ++i) {
      const size_t c = i % columns;
      const double s = sigmoid(xs[i] + biases[c]);
      log_decay[i] = std::log(s) / 12;
      dx[i] = dlogs[i] * (1 - s) / 12;
      sums[c] += dx[i];
    }
    const Owned got(dtype(), shape), got_dx(dtype(), shape);
    sigmoid_decay_forward({got, x, bias, 12}, cpu_stream());
    sigmoid_decay_backward({got_dx, dbias, dlog, x, bias, 12}, cpu_stream());
    EXPECT_LE(relative_rms(values(got), log_decay), tolerance());
    EXPECT_LE(relative_rms(values(got_dx), dx), tolerance());
    EXPECT_LE(relative_rms(minus(values(dbias), dbias_before), sums, 1), 2 * tolerance());
  }
}

TEST(SigmoidDecay, GradientsAreFiniteDifferences) {
  const Owned x = normals(DType::f64, {5, 3}, "x", 2), bias = normals(DType::f64, {3}, "bias");
  const Owned dlog = normals(DType::f64, {5, 3}, "dlog"), log_decay(DType::f64, {5, 3});
  const Owned dx(DType::f64, {5, 3}), dbias = zeros(DType::f64, {3});
  const auto loss = [&] {
    sigmoid_decay_forward({log_decay, x, bias, 2}, cpu_stream());
    return dot(values(log_decay), values(dlog));
  };
  sigmoid_decay_backward({dx, dbias, dlog, x, bias, 2}, cpu_stream());
  EXPECT_LE(finite_difference(loss, x, values(dx)), 1e-7);
  EXPECT_LE(finite_difference(loss, bias, values(dbias)), 1e-7);
}

TEST_P(DecayGates, SigmoidDecayOfExtremeArguments) {
  const Owned x = from_values(dtype(), {6, 1}, {-800, 800, -1e4, 1e4, -64, 0});
  const Owned bias = zeros(dtype(), {1}), dlog = filled(dtype(), {6, 1}, 1);
  const Owned log_decay(dtype(), {6, 1}), dx(dtype(), {6, 1}), dbias = zeros(dtype(), {1});
  sigmoid_decay_forward({log_decay, x, bias, 16}, cpu_stream());
  sigmoid_decay_backward({dx, dbias, dlog, x, bias, 16}, cpu_stream());
  const Values log_alpha = values(log_decay), slope = values(dx);
  const Values expected = {-50, 0, -625, 0, -4};  // linear far left, alpha = 1 far right
  const Values expected_slope = {0.0625, 0, 0.0625, 0, 0.0625};
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(log_alpha[i], expected[i]) << i;
    EXPECT_EQ(slope[i], expected_slope[i]) << i;
  }
  EXPECT_NEAR(log_alpha[5], -std::log(2.0) / 16, tolerance());
  EXPECT_EQ(slope[5], 0.03125);
}

TEST_P(DecayGates, SigmoidDecayNearOneKeepsItsDigits) {  // log alpha = -e^-x: no 1 - tiny
  const Owned x = from_values(dtype(), {3, 1}, {20, 40, 80}), bias = zeros(dtype(), {1});
  const Owned log_decay(dtype(), {3, 1});
  sigmoid_decay_forward({log_decay, x, bias, 1}, cpu_stream());
  const Values got = values(log_decay);
  for (const auto& [i, at] : {std::pair{0, 20.0}, {1, 40.0}, {2, 80.0}}) {
    EXPECT_NEAR(got[i] / -std::log1p(std::exp(-at)), 1, tolerance()) << at;
  }
}

struct DeltaGatesCase {
  Owned a, b, a_log, dt_bias, dlog, dbeta;
};

DeltaGatesCase delta_gates_case(DType dtype, int64_t rows, int64_t heads) {
  const std::vector<int64_t> shape = {rows, heads};
  return {normals(dtype, shape, "a", 3),       normals(dtype, shape, "b", 3),
          normals(dtype, {heads}, "a_log"),    normals(dtype, {heads}, "dt_bias"),
          normals(dtype, shape, "dlog_decay"), normals(dtype, shape, "dbeta")};
}

TEST_P(DecayGates, DeltaGates) {
  for (const auto [rows, heads] : kShapes) {
    for (const double scale : {1.0, 2.0}) {
      SCOPED_TRACE(concat(rows, "x", heads, " scale ", scale));
      const std::vector<int64_t> shape = {rows, heads};
      const DeltaGatesCase o = delta_gates_case(dtype(), rows, heads);
      const Values a = values(o.a), b = values(o.b), a_log = values(o.a_log);
      const Values dt_bias = values(o.dt_bias), dlog = values(o.dlog), dbeta = values(o.dbeta);
      Values log_decay(a.size()), beta(a.size()), da(a.size()), db(a.size());
      Values da_log(heads), ddt_bias(heads);
      for (size_t i = 0; i < a.size(); ++i) {
        const size_t h = i % heads;
        const double rate = std::exp(a_log[h]);
        log_decay[i] = -rate * softplus(a[i] + dt_bias[h]);
        beta[i] = scale * sigmoid(b[i]);
        da[i] = -dlog[i] * rate * sigmoid(a[i] + dt_bias[h]);
        const double cosh = std::cosh(b[i] / 2);
        db[i] = dbeta[i] * scale / (4 * cosh * cosh);
        da_log[h] += dlog[i] * log_decay[i];
        ddt_bias[h] += da[i];
      }
      const Owned got_log(dtype(), shape), got_beta(dtype(), shape), got_da(dtype(), shape);
      const Owned got_db(dtype(), shape), got_da_log = normals(dtype(), {heads}, "da_log");
      const Owned got_ddt = normals(dtype(), {heads}, "ddt_bias");
      const Values da_log_before = values(got_da_log), ddt_before = values(got_ddt);
      delta_gates_forward({got_log, got_beta, o.a, o.b, o.a_log, o.dt_bias, scale}, cpu_stream());
      delta_gates_backward({got_da, got_db, got_da_log, got_ddt, o.dlog, o.dbeta, got_log, o.a, o.b,
                            o.a_log, o.dt_bias, scale},
                           cpu_stream());
      EXPECT_LE(relative_rms(values(got_log), log_decay), tolerance());
      EXPECT_LE(relative_rms(values(got_beta), beta), tolerance());
      EXPECT_LE(relative_rms(values(got_da), da), tolerance());
      EXPECT_LE(relative_rms(values(got_db), db), tolerance());
      EXPECT_LE(relative_rms(minus(values(got_da_log), da_log_before), da_log, 1), 2 * tolerance());
      EXPECT_LE(relative_rms(minus(values(got_ddt), ddt_before), ddt_bias, 1), 2 * tolerance());
    }
  }
}

TEST(DeltaGates, GradientsAreFiniteDifferences) {
  const DeltaGatesCase o = delta_gates_case(DType::f64, 4, 3);
  const Owned log_decay(DType::f64, {4, 3}), beta(DType::f64, {4, 3}), da(DType::f64, {4, 3});
  const Owned db(DType::f64, {4, 3}), da_log = zeros(DType::f64, {3});
  const Owned ddt_bias = zeros(DType::f64, {3});
  const auto loss = [&] {
    delta_gates_forward({log_decay, beta, o.a, o.b, o.a_log, o.dt_bias, 2}, cpu_stream());
    return dot(values(log_decay), values(o.dlog)) + dot(values(beta), values(o.dbeta));
  };
  loss();
  delta_gates_backward(
      {da, db, da_log, ddt_bias, o.dlog, o.dbeta, log_decay, o.a, o.b, o.a_log, o.dt_bias, 2},
      cpu_stream());
  EXPECT_LE(finite_difference(loss, o.a, values(da)), 1e-7);
  EXPECT_LE(finite_difference(loss, o.b, values(db)), 1e-7);
  EXPECT_LE(finite_difference(loss, o.a_log, values(da_log)), 1e-7);
  EXPECT_LE(finite_difference(loss, o.dt_bias, values(ddt_bias)), 1e-7);
}

TEST_P(DecayGates, DeltaGatesOfExtremeArguments) {
  const Owned x = from_values(dtype(), {4, 1}, {-800, 800, -1e4, 1e4});
  const Owned a_log = zeros(dtype(), {1}), dt_bias = zeros(dtype(), {1});
  const Owned log_decay(dtype(), {4, 1}), beta(dtype(), {4, 1}), one = filled(dtype(), {4, 1}, 1);
  const Owned da(dtype(), {4, 1}), db(dtype(), {4, 1}), da_log = zeros(dtype(), {1});
  const Owned ddt_bias = zeros(dtype(), {1});
  delta_gates_forward({log_decay, beta, x, x, a_log, dt_bias, 2}, cpu_stream());
  delta_gates_backward({da, db, da_log, ddt_bias, one, one, log_decay, x, x, a_log, dt_bias, 2},
                       cpu_stream());
  EXPECT_EQ(values(log_decay), Values({0, -800, 0, -1e4}));
  EXPECT_EQ(values(beta), Values({0, 2, 0, 2}));
  EXPECT_EQ(values(da), Values({0, -1, 0, -1}));
  EXPECT_EQ(values(db), Values({0, 0, 0, 0}));
  EXPECT_EQ(values(da_log), Values({-10800}));
  EXPECT_EQ(values(ddt_bias), Values({-2}));
}

/// A plain f32 sum of a million terms of one sign is off by 1e-5 to 1e-2.
TEST(DecayGatesOfManyRows, ParameterGradientsKeepTheirDigits) {
  constexpr int64_t kRows = 1 << 20;
  const auto sums = [&](DType dtype) {
    const Owned x = normals(dtype, {kRows, 1}, "x"), one = filled(dtype, {kRows, 1}, 1);
    const Owned zero = zeros(dtype, {1}), out(dtype, {kRows, 1}), other(dtype, {kRows, 1});
    const Owned log_decay(dtype, {kRows, 1}), beta(dtype, {kRows, 1});
    const Owned dbias = zeros(dtype, {1}), da_log = zeros(dtype, {1}), ddt = zeros(dtype, {1});
    sigmoid_decay_backward({out, dbias, one, x, zero, 16}, cpu_stream());
    delta_gates_forward({log_decay, beta, x, x, zero, zero}, cpu_stream());
    delta_gates_backward({out, other, da_log, ddt, one, one, log_decay, x, x, zero, zero},
                         cpu_stream());
    return std::array{values(dbias)[0], values(da_log)[0], values(ddt)[0]};
  };
  const auto got = sums(DType::f32), reference = sums(DType::f64);
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i] / reference[i], 1, 3e-7) << i;
}

}  // namespace
}  // namespace weft
