// Every kernel but attention and its rotary embedding: against naive formulas in f64, finite
// differences for gradients, and the accumulate-or-overwrite rule of its header.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <vector>

#include "src/kernels/matmul.hpp"
#include "src/kernels/optimizer.hpp"
#include "src/kernels/pointwise.hpp"
#include "tests/oracle.hpp"
#include "tests/testing.hpp"

namespace weft {
namespace {

constexpr double kGradientTolerance = 1e-7;  // see finite_difference

/// Inputs are f32 numbers in both dtypes, so that one f64 reference serves both. In f32 each
/// operation rounds by at most 6e-8 and a sum of n terms by about sqrt(n) times that in RMS: 1e-6
/// for the few hundred terms here, which no wrong formula meets.
class Kernels : public ::testing::TestWithParam<DType> {
 protected:
  DType dtype() const { return GetParam(); }
  double tolerance() const { return dtype() == DType::f64 ? 1e-12 : 1e-6; }
};
INSTANTIATE_TEST_SUITE_P(Dtypes, Kernels, ::testing::Values(DType::f64, DType::f32),
                         [](const auto& param) { return std::string(name(param.param)); });

// ---- Matmul

struct MatmulCase {
  int64_t m, n, k;
  int64_t gap;  // elements between the rows of every operand
  bool transpose_a, transpose_b, accumulate;
  double alpha;
};

/// A matrix whose rows lie `gap` elements apart; the gaps hold NaN.
Owned wide(DType dtype, int64_t rows, int64_t columns, int64_t gap, const char* name) {
  Owned t(dtype, {rows, columns + gap});
  assign(t.view().slice(1, 0, columns), normal_values(rows * columns, name));
  return t;
}

void check_matmul(const MatmulCase& o, DType dtype, double tolerance) {
  SCOPED_TRACE(concat(o.m, "x", o.n, "x", o.k, " gap ", o.gap, " ta ", o.transpose_a, " tb ",
                      o.transpose_b, " accumulate ", o.accumulate, " alpha ", o.alpha));
  const int64_t a_columns = o.transpose_a ? o.m : o.k, b_columns = o.transpose_b ? o.k : o.n;
  const Owned a = wide(dtype, o.transpose_a ? o.k : o.m, a_columns, o.gap, "a");
  const Owned b = wide(dtype, o.transpose_b ? o.n : o.k, b_columns, o.gap, "b");
  const Owned c = o.accumulate ? wide(dtype, o.m, o.n, o.gap, "c")
                               : Owned(dtype, {o.m, o.n + o.gap});  // poisoned
  MatmulArgs args;
  args.c = c.view().slice(1, 0, o.n);
  args.a = a.view().slice(1, 0, a_columns);
  args.b = b.view().slice(1, 0, b_columns);
  args.transpose_a = o.transpose_a;
  args.transpose_b = o.transpose_b;
  args.accumulate = o.accumulate;
  args.alpha = o.alpha;
  const auto before = o.accumulate ? values(args.c) : std::vector<double>(o.m * o.n);
  const auto reference = oracle_matmul(args, before);
  matmul(args, cpu_stream());
  EXPECT_LE(relative_rms(values(args.c), reference), tolerance);
  EXPECT_TRUE(all_nan(c.view().slice(1, o.n, o.n + o.gap))) << "wrote between the rows";
}

TEST_P(Kernels, MatmulIsTheSumOfProducts) {
  for (const auto [m, n, k] : std::vector<std::array<int64_t, 3>>{
           {1, 1, 1}, {1, 9, 4}, {9, 1, 4}, {3, 5, 7}, {17, 33, 9}, {64, 48, 70}, {70, 130, 257}}) {
    for (int flags = 0; flags < 16; ++flags) {
      check_matmul({m, n, k, flags & 1 ? 3 : 0, (flags & 2) != 0, (flags & 4) != 0,
                    (flags & 8) != 0, flags & 8 ? -0.75 : 1.0},
                   dtype(), tolerance());
    }
  }
  check_matmul({5, 6, 7, 0, false, false, false, -2.5}, dtype(), tolerance());
  check_matmul({5, 6, 7, 0, false, false, true, 1.0}, dtype(), tolerance());
}

TEST_P(Kernels, MatmulOfNothing) {
  for (const auto [m, n, k] :
       std::vector<std::array<int64_t, 3>>{{0, 5, 3}, {5, 0, 3}, {4, 5, 0}}) {
    for (int flags = 0; flags < 16; ++flags) {  // k = 0: zeros over poison, or c stays
      check_matmul(
          {m, n, k, flags & 8 ? 2 : 0, (flags & 1) != 0, (flags & 2) != 0, (flags & 4) != 0, 1.5},
          dtype(), tolerance());
    }
  }
}

TEST(Matmul, AdjointsOfALinearLayer) {  // y = x W^T, dx = dy W, dW += dy^T x
  const Owned x = normals(DType::f64, {7, 5}, "x"), w = normals(DType::f64, {6, 5}, "w");
  const Owned y(DType::f64, {7, 6}), dx(DType::f64, {7, 5}), dw = zeros(DType::f64, {6, 5});
  const Owned dy = normals(DType::f64, {7, 6}, "dy");
  const auto loss = [&] {
    matmul({.c = y, .a = x, .b = w, .transpose_b = true}, cpu_stream());
    return dot(values(y), values(dy));
  };
  matmul({.c = dx, .a = dy, .b = w}, cpu_stream());
  matmul({.c = dw, .a = dy, .b = x, .transpose_a = true, .accumulate = true}, cpu_stream());
  EXPECT_LE(finite_difference(loss, x, values(dx)), kGradientTolerance);
  EXPECT_LE(finite_difference(loss, w, values(dw)), kGradientTolerance);
}

template <class T>
void check_gemm(DType dtype, double tolerance) {
  const Owned a = normals(dtype, {5, 8}, "a"), b = normals(dtype, {9, 5}, "b");
  const Owned c = normals(dtype, {7, 9}, "c");
  std::vector<double> scaled = values(c);
  for (double& element : scaled) element *= 0.5;
  MatmulArgs args{.c = c, .a = a.view().slice(1, 0, 7), .b = b};
  args.transpose_a = args.transpose_b = true;
  args.alpha = -1.25;
  const auto reference = oracle_matmul(args, scaled);
  cpu::gemm(cpu::Gemm<T>{true, true, 7, 9, 5, T(-1.25), args.a.as<T>(), 8, args.b.as<T>(), 5,
                         T(0.5), args.c.as<T>(), 9});
  EXPECT_LE(relative_rms(values(c), reference), tolerance);
}

TEST_P(Kernels, GemmScalesWhatItAddsTo) {
  dtype() == DType::f64 ? check_gemm<double>(dtype(), tolerance())
                        : check_gemm<float>(dtype(), tolerance());
}

// ---- RMSNorm

TEST_P(Kernels, RmsNorm) {
  for (const auto [rows, columns] :
       std::vector<std::array<int64_t, 2>>{{1, 1}, {3, 5}, {8, 64}, {5, 129}, {0, 8}}) {
    for (const double eps : {1e-5, 0.5}) {
      SCOPED_TRACE(concat(rows, "x", columns, " eps ", eps));
      const Owned x = normals(dtype(), {rows, columns}, "x"),
                  dy = normals(dtype(), {rows, columns}, "dy");
      const Owned weight = normals(dtype(), {columns}, "weight"), rstd(dtype(), {rows});
      const Owned y(dtype(), {rows, columns});
      const auto r = oracle_rmsnorm(values(x), values(weight), values(dy), eps);
      rmsnorm_forward({y, rstd, x, weight, eps}, cpu_stream());
      EXPECT_LE(relative_rms(values(y), r.y), tolerance());
      EXPECT_LE(relative_rms(values(rstd), r.rstd), tolerance());

      const Owned dx = normals(dtype(), {rows, columns}, "dx"),
                  dw = normals(dtype(), {columns}, "dw");
      const auto dx_before = values(dx), dw_before = values(dw);
      rmsnorm_backward({dx, dw, dy, x, rstd, weight}, cpu_stream());
      // They are added to numbers of order one, and round like those where they are small.
      EXPECT_LE(relative_rms(minus(values(dx), dx_before), r.dx, 1.0), 2 * tolerance());
      EXPECT_LE(relative_rms(minus(values(dw), dw_before), r.dweight, 1.0), 2 * tolerance());
    }
  }
}

TEST(RmsNorm, GradientsAreFiniteDifferences) {
  const Owned x = normals(DType::f64, {4, 7}, "x"), weight = normals(DType::f64, {7}, "weight");
  const Owned y(DType::f64, {4, 7}), rstd(DType::f64, {4}), dy = normals(DType::f64, {4, 7}, "dy");
  const Owned dx = zeros(DType::f64, {4, 7}), dweight = zeros(DType::f64, {7});
  const auto loss = [&] {
    rmsnorm_forward({y, rstd, x, weight, 0.1}, cpu_stream());
    return dot(values(y), values(dy));
  };
  loss();
  rmsnorm_backward({dx, dweight, dy, x, rstd, weight}, cpu_stream());
  EXPECT_LE(finite_difference(loss, x, values(dx)), kGradientTolerance);
  EXPECT_LE(finite_difference(loss, weight, values(dweight)), kGradientTolerance);
}

TEST_P(Kernels, RmsNormOfAZeroRow) {
  const Owned x = zeros(dtype(), {1, 3}), weight = filled(dtype(), {3}, 2),
              dy = filled(dtype(), {1, 3}, 1);
  const Owned y(dtype(), {1, 3}), rstd(dtype(), {1});
  const Owned dx = zeros(dtype(), {1, 3}), dweight = zeros(dtype(), {3});
  rmsnorm_forward({y, rstd, x, weight, 0.0625}, cpu_stream());
  rmsnorm_backward({dx, dweight, dy, x, rstd, weight}, cpu_stream());
  EXPECT_EQ(values(y), std::vector<double>({0, 0, 0}));
  EXPECT_LE(relative_rms(values(rstd), {4}), tolerance());
  EXPECT_LE(relative_rms(values(dx), {8, 8, 8}), tolerance());
  EXPECT_EQ(values(dweight), std::vector<double>({0, 0, 0}));
}

// ---- SwiGLU

TEST_P(Kernels, Swiglu) {
  for (const auto [rows, width] : std::vector<std::array<int64_t, 2>>{{1, 1}, {5, 37}, {0, 4}}) {
    const Owned gate = normals(dtype(), {rows, width}, "gate", 3.0);
    const Owned up = normals(dtype(), {rows, width}, "up"),
                dy = normals(dtype(), {rows, width}, "dy");
    const auto g = values(gate), u = values(up), d = values(dy);
    std::vector<double> y(g.size()), dgate(g.size()), dup(g.size());
    for (size_t i = 0; i < g.size(); ++i) {
      const double sigmoid = 1 / (1 + std::exp(-g[i]));
      y[i] = g[i] * sigmoid * u[i];
      dup[i] = d[i] * g[i] * sigmoid;
      dgate[i] = d[i] * u[i] * (sigmoid + g[i] * sigmoid * (1 - sigmoid));
    }
    const Owned got(dtype(), {rows, width}), again(dtype(), {rows, width});
    const Owned got_dgate(dtype(), {rows, width}), got_dup(dtype(), {rows, width});
    swiglu_forward({got, gate, up}, cpu_stream());
    swiglu_backward({got_dgate, got_dup, again, dy, gate, up}, cpu_stream());
    EXPECT_LE(relative_rms(values(got), y), tolerance());
    EXPECT_TRUE(same_bits(values(again), values(got))) << "recompute differs from forward";
    EXPECT_LE(relative_rms(values(got_dgate), dgate), tolerance());
    EXPECT_LE(relative_rms(values(got_dup), dup), tolerance());
  }
}

TEST(Swiglu, GradientsAreFiniteDifferences) {
  const Owned gate = normals(DType::f64, {3, 5}, "gate"), up = normals(DType::f64, {3, 5}, "up");
  const Owned dy = normals(DType::f64, {3, 5}, "dy"), y(DType::f64, {3, 5});
  const Owned dgate(DType::f64, {3, 5}), dup(DType::f64, {3, 5});
  const auto loss = [&] {
    swiglu_forward({y, gate, up}, cpu_stream());
    return dot(values(y), values(dy));
  };
  swiglu_backward({dgate, dup, y, dy, gate, up}, cpu_stream());
  EXPECT_LE(finite_difference(loss, gate, values(dgate)), kGradientTolerance);
  EXPECT_LE(finite_difference(loss, up, values(dup)), kGradientTolerance);
}

TEST_P(Kernels, SwigluGradientsMayTakeThePlaceOfTheirInputs) {
  const Owned gate = normals(dtype(), {7, 19}, "gate"), up = normals(dtype(), {7, 19}, "up");
  const Owned d = normals(dtype(), {7, 19}, "dy");
  const Owned dgate(dtype(), {7, 19}), dup(dtype(), {7, 19}), y(dtype(), {7, 19});
  swiglu_backward({dgate, dup, y, d, gate, up}, cpu_stream());
  swiglu_backward({gate, up, d, d, gate, up}, cpu_stream());
  EXPECT_TRUE(same_bits(values(gate), values(dgate)));
  EXPECT_TRUE(same_bits(values(up), values(dup)));
  EXPECT_TRUE(same_bits(values(d), values(y)));
}

TEST_P(Kernels, SwigluSaturates) {  // silu is 0 far left and the identity far right
  const Owned gate = from_values(dtype(), {1, 4}, {-2000, -200, 200, 2000});
  const Owned up = filled(dtype(), {1, 4}, 3), dy = filled(dtype(), {1, 4}, 1), y(dtype(), {1, 4});
  const Owned dgate(dtype(), {1, 4}), dup(dtype(), {1, 4});
  const auto near = [](const Tensor& t, const std::vector<double>& expected) {
    const auto got = values(t);
    for (size_t i = 0; i < 4; ++i) EXPECT_NEAR(got[i], expected[i], 1e-30) << i;
  };
  swiglu_forward({y, gate, up}, cpu_stream());
  near(y, {0, 0, 600, 6000});
  swiglu_backward({dgate, dup, y, dy, gate, up}, cpu_stream());
  near(y, {0, 0, 600, 6000});
  near(dgate, {0, 0, 3, 3});
  near(dup, {0, 0, 200, 2000});
}

TEST_P(Kernels, SwigluOfEveryGateIsAccurate) {  // silu(g) is g e^g far left: e^x shows alone
  constexpr int64_t kGates = 20000;
  Owned gate(dtype(), {1, kGates}), y(dtype(), {1, kGates});
  std::vector<double> g(kGates);
  for (int64_t i = 0; i < kGates; ++i) g[i] = static_cast<float>(-80 + 0.005 * i + 1e-3);
  assign(gate, g);
  swiglu_forward({y, gate, filled(dtype(), {1, kGates}, 1)}, cpu_stream());
  const auto got = values(y);
  double worst = 0;
  for (int64_t i = 0; i < kGates; ++i) {
    const double silu = g[i] / (1 + std::exp(-g[i]));
    worst = std::max(worst, std::abs(got[i] / silu - 1));
  }
  EXPECT_LE(worst, dtype() == DType::f64 ? 2e-15 : 6e-7);  // five roundings to f32
}

// ---- Embedding, sums

TEST_P(Kernels, EmbeddingCopiesRows) {
  const Owned table = normals(dtype(), {6, 3}, "table");
  const Owned tokens = from_values(DType::i32, {4}, {5, 0, 5, 2}), y(dtype(), {4, 3});
  embedding_forward({y, table, tokens, 0, 6}, cpu_stream());
  for (const auto [row, token] :
       std::vector<std::array<int64_t, 2>>{{0, 5}, {1, 0}, {2, 5}, {3, 2}}) {
    EXPECT_EQ(values(y.view().slice(0, row, row + 1)),
              values(table.view().slice(0, token, token + 1)));
  }
}

TEST_P(Kernels, EmbeddingGradientAddsRowsInOrder) {
  constexpr int64_t kRows = 200, kWidth = 3;  // 200 rows into 4 tokens: each is repeated
  const Owned dy = normals(dtype(), {kRows, kWidth}, "dy"),
              dtable = normals(dtype(), {6, kWidth}, "t");
  std::vector<double> tokens(kRows), expected = values(dtable);
  const auto rows = values(dy);
  for (int64_t r = 0; r < kRows; ++r) {
    tokens[r] = static_cast<double>(RandomStream(1, "tokens").below(r, 4));
    for (int64_t c = 0; c < kWidth; ++c) {
      double& sum = expected[static_cast<int64_t>(tokens[r]) * kWidth + c];
      sum += rows[r * kWidth + c];
      if (dtype() == DType::f32) sum = static_cast<float>(sum);  // as an f32 sum rounds
    }
  }
  embedding_backward({dtable, dy, from_values(DType::i32, {kRows}, tokens)}, cpu_stream());
  EXPECT_TRUE(same_bits(values(dtable), expected));
}

TEST_P(Kernels, EmbeddingOfNoTokens) {
  const Owned table = normals(dtype(), {6, 3}, "table"),
              dtable = normals(dtype(), {6, 3}, "dtable");
  const Owned tokens(DType::i32, {0}), y(dtype(), {0, 3});
  const auto before = values(dtable);
  embedding_forward({y, table, tokens, 0, 6}, cpu_stream());
  embedding_backward({dtable, y, tokens}, cpu_stream());
  EXPECT_TRUE(same_bits(values(dtable), before));
}

/// The pieces of a table that is cut over ranks add up to the whole, to the bit.
TEST_P(Kernels, EmbeddingOverAVocabularyThatIsCut) {
  constexpr int64_t kRows = 50, kWidth = 3, kVocab = 7;
  const Owned table = normals(dtype(), {kVocab, kWidth}, "table");
  const Owned dy = normals(dtype(), {kRows, kWidth}, "dy");
  std::vector<double> ids(kRows);
  for (int64_t r = 0; r < kRows; ++r) {
    ids[r] = static_cast<double>(RandomStream(1, "tokens").below(r, kVocab));
  }
  const Owned tokens = from_values(DType::i32, {kRows}, ids), y(dtype(), {kRows, kWidth});
  const Owned dtable = normals(dtype(), {kVocab, kWidth}, "dtable"), cut = copy_of(dtable);
  embedding_forward({y, table, tokens, 0, kVocab}, cpu_stream());
  embedding_backward({dtable, dy, tokens}, cpu_stream());
  std::vector<double> sum(kRows * kWidth);
  for (const auto [begin, end] : std::vector<std::array<int64_t, 2>>{{0, 2}, {2, 2}, {2, 7}}) {
    const Owned part(dtype(), {kRows, kWidth});
    embedding_forward({part, table.view().slice(0, begin, end), tokens, begin, kVocab},
                      cpu_stream());
    embedding_backward({cut.view().slice(0, begin, end), dy, tokens, begin}, cpu_stream());
    const auto rows = values(part);
    for (size_t i = 0; i < sum.size(); ++i) {
      const double id = ids[i / kWidth];
      const bool own = id >= static_cast<double>(begin) && id < static_cast<double>(end);
      EXPECT_TRUE(own || rows[i] == 0) << i;
      sum[i] += rows[i];
    }
  }
  EXPECT_EQ(sum, values(y));
  EXPECT_TRUE(same_bits(values(cut), values(dtable)));
}

TEST_P(Kernels, AddAndFill) {
  for (const int64_t n : {0, 1, 7, 300}) {
    const Owned a = normals(dtype(), {n, 3}, "a"), b = normals(dtype(), {n, 3}, "b"),
                y(dtype(), {n, 3});
    auto sum = values(a);
    const auto vb = values(b);
    for (size_t i = 0; i < sum.size(); ++i) {
      sum[i] = dtype() == DType::f64 ? sum[i] + vb[i] : static_cast<float>(sum[i] + vb[i]);
    }
    add({y, a, b}, cpu_stream());
    EXPECT_TRUE(same_bits(values(y), sum));
    add({a, a, b}, cpu_stream());  // in place
    EXPECT_TRUE(same_bits(values(a), sum));
    fill({y, -1.5}, cpu_stream());
    EXPECT_EQ(values(y), std::vector<double>(3 * n, -1.5));
    fill({y, -kInfinity}, cpu_stream());  // an lse before its first block
    EXPECT_EQ(values(y), std::vector<double>(3 * n, -kInfinity));
  }
}

// ---- Optimizer

TEST_P(Kernels, SquaredSum) {
  const Owned x = normals(dtype(), {1001}, "x"), total = filled(DType::f64, {1}, 3.0);
  const double expected = 3 + dot(values(x), values(x));
  squared_sum({total, x}, cpu_stream());
  EXPECT_NEAR(values(total)[0], expected, 1e-12 * expected);  // sums in f64 whatever the dtype
  squared_sum({total, x.view().slice(0, 4, 4)}, cpu_stream());
  EXPECT_NEAR(values(total)[0], expected, 1e-12 * expected);
}

TEST(Optimizer, ANormBeginsAtZeroUntilSomethingWasNotFinite) {
  const auto begun = [](double before, double loss) {
    const Owned norm = filled(DType::f64, {1}, before);
    begin_norm({.squared_norm = norm, .loss_sum = filled(DType::f64, {1}, loss)}, cpu_stream());
    return values(norm)[0];
  };
  for (const double before : {0.0, 1e-300, 3.0, 1.7e308}) {
    for (const double loss : {-1e308, 0.0, 1.7e308}) EXPECT_EQ(begun(before, loss), 0);
  }
  for (const double bad : {std::nan(""), kInfinity, -kInfinity}) {
    EXPECT_TRUE(std::isnan(begun(bad, 1)));
    EXPECT_TRUE(std::isnan(begun(1, bad)));
    EXPECT_TRUE(std::isnan(begun(begun(bad, 1), 1)));
    EXPECT_TRUE(std::isnan(begun(bad, -bad)));
  }
}

AdamWArgs adam_args(const Owned& param, const Owned& m, const Owned& v, const Owned& grad,
                    const Owned& norm) {
  AdamWArgs args{.param = param, .m = m, .v = v, .grad = grad, .squared_norm = norm};
  args.lr = 0.05;
  args.beta1 = 0.8;
  args.eps = 1e-3;  // large enough to be seen
  return args;
}

TEST_P(Kernels, AdamWFollowsItsDefinition) {
  for (const double clip : {0.0, 0.5, 1e6}) {  // none, biting, not reached
    for (const double decay : {0.0, 0.1}) {
      SCOPED_TRACE(concat("clip ", clip, " decay ", decay));
      const Owned param = normals(dtype(), {37}, "param"), grad(dtype(), {37}),
                  norm(DType::f64, {1});
      const Owned m = zeros(dtype(), {37}), v = zeros(dtype(), {37});
      OracleAdamW reference{values(param), values(m), values(v)};
      AdamWArgs args = adam_args(param, m, v, grad, norm);
      args.grad_clip = clip;
      args.weight_decay = decay;
      for (const int64_t step : {1, 2, 3, 4, 5, 100000}) {
        args.step = step;
        assign(grad, normal_values(37, concat("grad", step), step == 3 ? 1e-3 : 1.0));
        const double squares = 4 * dot(values(grad), values(grad));  // others' gradients too
        assign(norm, {squares});
        adamw(args, cpu_stream());
        reference.update(values(grad), squares, args);
        EXPECT_LE(relative_rms(values(param), reference.param), tolerance());
        EXPECT_LE(relative_rms(values(m), reference.m), tolerance());
        EXPECT_LE(relative_rms(values(v), reference.v), tolerance());
      }
    }
  }
}

TEST_P(Kernels, AdamWLeavesEverythingAloneWhenTheNormIsNotFinite) {
  for (const double bad : {std::nan(""), kInfinity}) {
    for (const double clip : {0.0, 1.0}) {
      const Owned param = normals(dtype(), {9}, "param"), m = normals(dtype(), {9}, "m");
      const Owned v = filled(dtype(), {9}, 0.25), grad = filled(dtype(), {9}, bad);
      const Owned norm = filled(DType::f64, {1}, bad);
      const auto before = std::array{values(param), values(m), values(v)};
      AdamWArgs args = adam_args(param, m, v, grad, norm);
      args.grad_clip = clip;
      args.weight_decay = 0.1;
      adamw(args, cpu_stream());
      EXPECT_TRUE(same_bits(values(param), before[0]));
      EXPECT_TRUE(same_bits(values(m), before[1]));
      EXPECT_TRUE(same_bits(values(v), before[2]));
    }
  }
}

TEST_P(Kernels, AdamWOfZeroGradientsOnlyDecays) {
  const Owned param = filled(dtype(), {3}, 2), m = zeros(dtype(), {3}), v = zeros(dtype(), {3});
  const Owned grad = zeros(dtype(), {3}), norm = zeros(DType::f64, {1});
  AdamWArgs args = adam_args(param, m, v, grad, norm);
  args.grad_clip = 1.0;  // 1 / sqrt(0) must not turn 0 into NaN
  args.weight_decay = 0.5;
  adamw(args, cpu_stream());
  EXPECT_LE(relative_rms(values(param), {1.95, 1.95, 1.95}), tolerance());
  args.param = args.m = args.v = args.grad = param.view().slice(0, 1, 1);  // an empty shard
  adamw(args, cpu_stream());
  EXPECT_LE(relative_rms(values(param), {1.95, 1.95, 1.95}), tolerance());
}

// ---- Costs: floating-point operations, and every tensor of more than one element once for each
// time it must be read or written. f32, 3 rows of 5.

void expect_cost(const Cost& cost, double flops, double elements, double other_bytes = 0) {
  EXPECT_EQ(cost.flops, flops);
  EXPECT_EQ(cost.bytes, 4 * elements + other_bytes);
}

TEST(KernelCosts, AreTheHandCounts) {
  const Owned x(DType::f32, {3, 5}), wide_x(DType::f32, {3, 7}), square(DType::f32, {7, 5});
  const Owned weight(DType::f32, {5}), rows(DType::f32, {3}), index(DType::i32, {3});
  const Owned scalar(DType::f64, {1});
  expect_cost(cost(MatmulArgs{.c = x, .a = wide_x, .b = square}), 2 * 3 * 5 * 7, 21 + 35 + 15);
  expect_cost(
      cost(MatmulArgs{.c = square, .a = wide_x, .b = x, .transpose_a = true, .accumulate = true}),
      2 * 7 * 5 * 3, 21 + 15 + 2 * 35);
  // y: square, add, times rstd, times weight.
  expect_cost(cost(RmsNormArgs{x, rows, x, weight}), 4 * 15, 2 * 15 + 5 + 3);
  // sum of dy w x: 3; dx += rstd (dy w - x pull): 4; dweight += dy x rstd: 3.
  expect_cost(cost(RmsNormGradArgs{x, weight, x, x, rows, weight}), 10 * 15, 4 * 15 + 3 * 5 + 3);
  EXPECT_EQ(cost(SwigluArgs{x, x, x}).bytes, 4 * 3 * 15);
  EXPECT_EQ(cost(SwigluGradArgs{x, x, x, x, x, x}).bytes, 4 * 6 * 15);
  expect_cost(cost(EmbeddingArgs{x, square, index}), 0, 2 * 15, 4 * 3);
  expect_cost(cost(EmbeddingGradArgs{square, x, index}), 15, 3 * 15, 4 * 3);
  expect_cost(cost(AddArgs{x, x, x}), 15, 3 * 15);
  expect_cost(cost(FillArgs{x}), 0, 15);
  expect_cost(cost(SquaredSumArgs{scalar, x}), 2 * 15, 15);
  EXPECT_EQ(cost(AdamWArgs{x, x, x, x, scalar}).bytes, 4 * 7 * 15);
}

}  // namespace
}  // namespace weft
