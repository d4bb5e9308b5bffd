// Muon: its kernels and Newton-Schulz against their definitions, and updates of matrices in pieces
// against those of one rank.
#include <gtest/gtest.h>

#include <cmath>

#include "src/kernels/optimizer.hpp"
#include "tests/parity_testing.hpp"

namespace weft {
namespace {

using Values = std::vector<double>;

// ---- Kernels

class MuonKernels : public testing::TestWithParam<DType> {
 protected:
  static double tolerance() { return GetParam() == DType::f64 ? 1e-11 : 1e-5; }
};
INSTANTIATE_TEST_SUITE_P(Types, MuonKernels, testing::Values(DType::f32, DType::f64),
                         [](const auto& type) { return std::string(name(type.param)); });

TEST_P(MuonKernels, NesterovAndItsStepFollowTheirDefinitions) {
  for (const double clip : {0.0, 0.5, 1e6}) {
    const Owned param = normals(GetParam(), {37}, "param"), m = normals(GetParam(), {37}, "m");
    const Owned grad = normals(GetParam(), {37}, "grad");
    const auto p = values(param), before = values(m), g = values(grad);
    const double squares = 4 * dot(g, g);
    const Owned norm = filled(DType::f64, {1}, squares);
    const double factor = clip > 0 ? std::min(1.0, clip / std::sqrt(squares)) : 1.0;
    nesterov({grad, m, grad, norm, clip, 0.9}, cpu_stream());
    decayed_step({param, grad, norm, 0.1, 3.0, 0.2}, cpu_stream());
    for (size_t i = 0; i < g.size(); ++i) {
      const double moment = 0.9 * before[i] + factor * g[i], update = factor * g[i] + 0.9 * moment;
      EXPECT_NEAR(values(m)[i], moment, tolerance());
      EXPECT_NEAR(values(grad)[i], update, tolerance());
      EXPECT_NEAR(values(param)[i], p[i] - 0.1 * (3 * update + 0.2 * p[i]), tolerance());
    }
  }
}

TEST_P(MuonKernels, NesterovAndItsStepLeaveEverythingAloneWhenTheNormIsNotFinite) {
  for (const double bad : {std::nan(""), kInfinity}) {
    const Owned param = normals(GetParam(), {9}, "param"), m = normals(GetParam(), {9}, "m");
    const Owned grad = filled(GetParam(), {9}, bad), norm = filled(DType::f64, {1}, bad);
    const auto before = std::array{values(param), values(m)};
    nesterov({grad, m, grad, norm, 1.0, 0.9}, cpu_stream());
    decayed_step({param, grad, norm, 0.1, 3.0, 0.2}, cpu_stream());
    EXPECT_TRUE(same_bits(values(param), before[0]));
    EXPECT_TRUE(same_bits(values(m), before[1]));
  }
}

TEST_P(MuonKernels, NormalizeAndAddScaledFollowTheirDefinitions) {
  const Owned x = normals(GetParam(), {5, 7}, "x"), y = normals(GetParam(), {5, 7}, "y");
  const auto old_x = values(x), old_y = values(y);
  const Owned squares = filled(DType::f64, {1}, 2.25);
  normalize({.x = x, .squared_sum = squares, .eps = 0.5}, cpu_stream());
  add_scaled({.y = y, .x = x, .alpha = -3}, cpu_stream());
  for (size_t i = 0; i < old_x.size(); ++i) {
    EXPECT_NEAR(values(x)[i], old_x[i] / 2, tolerance());
    EXPECT_NEAR(values(y)[i], old_y[i] - 1.5 * old_x[i], tolerance());
  }
}

// ---- Newton-Schulz

/// [n, m] [m, k]
Values product(const Values& a, const Values& b, int64_t n, int64_t m, int64_t k) {
  Values c(n * k);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      for (int64_t l = 0; l < m; ++l) c[i * k + j] += a[i * m + l] * b[l * k + j];
    }
  }
  return c;
}

Values transposed(const Values& a, int64_t rows, int64_t columns) {
  Values t(a.size());
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) t[j * rows + i] = a[i * columns + j];
  }
  return t;
}

/// As it is written down: always with x x^T, [out, out], in f64.
Values newton_schulz_by_definition(Values x, int64_t out, int64_t in) {
  const double norm = std::sqrt(dot(x, x)) + 1e-7;
  for (double& value : x) value /= norm;
  for (int step = 0; step < 5; ++step) {
    const Values gram = product(x, transposed(x, out, in), out, in, out);
    const Values once = product(gram, x, out, out, in), twice = product(gram, once, out, out, in);
    for (size_t i = 0; i < x.size(); ++i) {
      x[i] = 3.4445 * x[i] - 4.7750 * once[i] + 2.0315 * twice[i];
    }
  }
  return x;
}

Values newton_schulz_of(DType dtype, const Values& x, int64_t out, int64_t in) {
  const Owned matrix = from_values(dtype, {out, in}, x), spare(dtype, {out, in});
  Arena scratch("scratch", Device::cpu, 1 << 20);
  return values(newton_schulz(matrix, spare, scratch, cpu_stream()));
}

TEST(NewtonSchulz, FollowsItsDefinition) {
  for (const auto& [out, in] : {std::pair{7, 7}, {5, 12}, {12, 5}, {1, 9}, {9, 1}, {1, 1}}) {
    const Values x = normal_values(out * in, concat(out, " x ", in), 3.0);
    const Values expected = newton_schulz_by_definition(x, out, in);
    EXPECT_LE(relative_rms(newton_schulz_of(DType::f64, x, out, in), expected), 1e-12);
    EXPECT_LE(relative_rms(newton_schulz_of(DType::f32, x, out, in), expected), 1e-5);
  }
}

TEST(NewtonSchulz, OfADiagonalIsThePolynomialOfItsEntries) {
  const Values diagonal = {1.0, 0.5, 0.3, 0.2};
  for (const auto& [out, in] : {std::pair{4, 6}, {6, 4}}) {
    Values x(out * in), expected(out * in);
    for (int i = 0; i < 4; ++i) {
      x[i * in + i] = diagonal[i];
      double s = diagonal[i] / (std::sqrt(dot(diagonal, diagonal)) + 1e-7);
      for (int step = 0; step < 5; ++step) {
        s = 3.4445 * s - 4.7750 * std::pow(s, 3) + 2.0315 * std::pow(s, 5);
      }
      EXPECT_NEAR(s, 1, 0.35);
      expected[i * in + i] = s;
    }
    EXPECT_LE(relative_rms(newton_schulz_of(DType::f64, x, out, in), expected), 1e-13);
  }
}

TEST(NewtonSchulz, OfNothingIsNothing) {
  EXPECT_EQ(newton_schulz_of(DType::f64, Values(12), 3, 4), Values(12));
}

// ---- Meshes

Sets muon(const Sets& more = {}) {
  return joined({"optimizer.name=muon", "train.micro_batch_size=1"}, more);
}

TEST(Muon, EveryMeshIsOneRank) {
  set_late_delivery(true);
  for (const int zero : {1, 2, 3}) {
    expect_mesh_parity(muon({concat("optimizer.zero=", zero)}), {{.size = {2, 1, 1, 1}},
                                                                 {.size = {3, 1, 2, 1}},
                                                                 {.size = {1, 1, 1, 2}},
                                                                 {.size = {2, 1, 1, 4}},
                                                                 {.size = {1, 2, 2, 2}}});
  }
  set_late_delivery(false);
}

TEST(Muon, HybridsOnAnyMeshAreOneRank) {
  // Convolutions, gates of few columns and vectors take AdamW.
  expect_mesh_parity(
      muon({"model.layer_pattern=LG*W", "model.window=7", "model.num_hidden_layers=4",
            "model.linear.family=gla", "model.tie_word_embeddings=true", "optimizer.zero=3"}),
      {{.size = {2, 1, 2, 1}}, {.size = {2, 1, 1, 2}}, {.size = {1, 2, 1, 2}}});
}

TEST(Muon, IsAnotherUpdateOfHiddenMatricesAlone) {
  const Config config = parity_config(muon({"train.steps=1"}));
  Config plain = config;
  plain.optimizer.name = OptimizerName::adamw;
  const Recording ours = record(config), adamw = record(plain);
  for (size_t i = 0; i < ours.parameters[1].size(); ++i) {
    const auto& [name, after] = ours.parameters[1][i];
    const bool is_matrix = name.ends_with("proj.weight");
    EXPECT_EQ(same_bits(after, adamw.parameters[1][i].values), !is_matrix) << name;
    if (!is_matrix) continue;
    // The rows' and columns' worth of an orthogonal matrix, 0.2 RMS where AdamW's is 0.2 to 0.4.
    Values update = after;
    const Values& before = ours.parameters[0][i].values;
    const double lr = config.optimizer.lr, decay = lr * config.optimizer.weight_decay;
    for (size_t j = 0; j < update.size(); ++j) update[j] -= (1 - decay) * before[j];
    EXPECT_NEAR(rms(update) / lr, 0.2, 0.06) << name;
  }
}

TEST(Muon, AMomentumIsFollowedFromStepToStep) {
  // Against the definition on one rank, from recorded gradients: three steps of one matrix.
  const Config config = parity_config(muon());
  const Recording run = record(config);
  const std::string name = "model.layers.2.mlp.gate_proj.weight";  // [48, 32]
  Values m(48 * 32), value = Recording::find(run.parameters[0], name)->values;
  for (size_t step = 0; step < 3; ++step) {
    double squares = 0;
    for (const auto& [unused, gradient] : run.gradients[step]) squares += dot(gradient, gradient);
    const double clip = std::min(1.0, config.optimizer.grad_clip / std::sqrt(squares));
    const Values& gradient = Recording::find(run.gradients[step], name)->values;
    Values wanted(m.size());
    for (size_t i = 0; i < m.size(); ++i) {
      m[i] = 0.95 * m[i] + clip * gradient[i];
      wanted[i] = clip * gradient[i] + 0.95 * m[i];
    }
    const Values update = newton_schulz_by_definition(wanted, 48, 32);
    for (size_t i = 0; i < m.size(); ++i) {
      value[i] -= config.optimizer.lr *
                  (0.2 * std::sqrt(48.0) * update[i] + config.optimizer.weight_decay * value[i]);
    }
    EXPECT_LE(relative_rms(Recording::find(run.parameters[step + 1], name)->values, value), 1e-13);
  }
}

// ---- What it takes

/// FLOPs of matrix products of a rank's step.
double products_of(Config config, OptimizerName name, int rank) {
  config.optimizer.name = name;
  return plan_step(config, rank).kernels.at("matmul").flops;
}

TEST(Muon, WorkIsSharedEvenly) {
  for (const std::array<int, 4>& size : {std::array{4, 1, 1, 1}, {2, 1, 2, 1}, {2, 1, 1, 2}}) {
    Config config = parity_config(muon());
    config.mesh = {.size = size};
    std::vector<double> work;
    double sum = 0;
    for (int rank = 0; rank < 4; ++rank) {
      work.push_back(products_of(config, OptimizerName::muon, rank) -
                     products_of(config, OptimizerName::adamw, rank));
      sum += work.back();
    }
    EXPECT_LE(*std::max_element(work.begin(), work.end()), 1.05 * sum / 4) << config.mesh.text();
    EXPECT_GE(*std::min_element(work.begin(), work.end()), 0.95 * sum / 4) << config.mesh.text();
    // Five steps of all matrices, each done once: of [a, b], a <= b, 2 (2 a a b + a a a) products.
    const double square = 5 * 2 * 3 * std::pow(32, 3);
    const auto of = [](double a, double b) { return 5 * 2 * (2 * a * a * b + a * a * a); };
    // A layer: q [64, 32], k and v [16, 32], o [32, 64], gate and up [48, 32], down [32, 48].
    EXPECT_DOUBLE_EQ(sum, 8 * (2 * of(32, 64) + 2 * of(16, 32) + 3 * of(32, 48)));
    EXPECT_GT(sum, square);
  }
}

/// Of all hidden matrices of the model.
int64_t hidden_elements(const Config& config) {
  Model model(config.model, {}, 1);
  int64_t elements = 0;
  for (const Parameter* p : model.parameters()) {
    if (p->is_hidden_matrix()) elements += p->numel();
  }
  return elements;
}

TEST(Muon, WhatComesToOwnersGoesBack) {
  Config config = parity_config(muon());
  config.mesh = {.size = {3, 1, 1, 1}};
  Config plain = config;
  plain.optimizer.name = OptimizerName::adamw;
  int64_t there = 0, back = 0;
  const int64_t elements = hidden_elements(config);
  for (int rank = 0; rank < 3; ++rank) {
    const auto sent = [&](const Config& of, Tag::Purpose purpose) {
      int64_t bytes = 0;
      for (const auto& [key, some] : plan_step(of, rank).bytes) {
        if (key.group == "replicas" && key.tag.purpose == purpose) bytes += some;
      }
      return bytes;
    };
    there += sent(config, Tag::Purpose::gradient) - sent(plain, Tag::Purpose::gradient);
    back += sent(config, Tag::Purpose::parameter) - sent(plain, Tag::Purpose::parameter);
  }
  EXPECT_EQ(there, back);
  EXPECT_GT(there, 8 * elements / 3);  // a matrix lies on one or two ranks, its owner may be one
  EXPECT_LT(there, 8 * elements);
}

TEST(Muon, HasOneMomentOfMatrices) {
  Config config = parity_config(muon());
  const auto bytes = [&](OptimizerName name) {
    config.optimizer.name = name;
    return plan_step(config, 0).memory.state;
  };
  const int64_t less = bytes(OptimizerName::adamw) - bytes(OptimizerName::muon);
  EXPECT_NEAR(static_cast<double>(less), 8.0 * static_cast<double>(hidden_elements(config)), 128);
}

}  // namespace
}  // namespace weft
