// Cross-entropy over a vocabulary that is cut anyhow, the whole of it among the cuts: against the
// formula in f64, finite differences, and the rules of its header.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <vector>

#include "tests/cross_entropy_testing.hpp"
#include "tests/oracle.hpp"
#include "tests/testing.hpp"

namespace weft {
namespace {

using Values = std::vector<double>;
using Widths = std::vector<int64_t>;

/// Tolerances as in kernels_test.cpp.
class CrossEntropy : public ::testing::TestWithParam<DType> {
 protected:
  DType dtype() const { return GetParam(); }
  double tolerance() const { return dtype() == DType::f64 ? 1e-12 : 1e-6; }
};
INSTANTIATE_TEST_SUITE_P(Dtypes, CrossEntropy, ::testing::Values(DType::f64, DType::f32),
                         [](const auto& param) { return std::string(name(param.param)); });

/// On ranks with these widths of the columns of `logits`.
void run(const Tensor& loss, const Tensor& logits, const Widths& widths, const Tensor& labels,
         double scale, bool gradient = true) {
  const Owned statistics(logits.dtype, {std::ssize(widths), kRowStatistics, labels.dim(0)});
  cross_entropy({loss, column_pieces(logits, widths), statistics, labels, scale, gradient},
                cpu_stream());
}

/// The whole vocabulary, even and uneven cuts, ranks of one token and of none.
std::vector<Widths> cuts_of(int64_t vocab) {
  std::vector<Widths> cuts = {{vocab}};
  if (vocab >= 2) cuts.push_back({1, vocab - 1});
  if (vocab >= 2) cuts.push_back({vocab - 1, 0, 1});
  if (vocab >= 8) {
    cuts.push_back({vocab / 3, vocab - vocab / 3 - 2, 2});
    Widths even;
    for (int p = 0; p < 8; ++p) even.push_back(vocab * (p + 1) / 8 - vocab * p / 8);
    cuts.push_back(even);
  }
  return cuts;
}

TEST_P(CrossEntropy, IsTheFormulaForAnyCutOfTheVocabulary) {
  for (const int64_t vocab : {1, 2, 37, 130}) {
    for (const double offset : {0.0, 1e4, -1e4}) {  // the loss depends on differences only
      for (const Widths& widths : cuts_of(vocab)) {
        SCOPED_TRACE(concat("vocab ", vocab, " offset ", offset, " ranks ", widths.size()));
        const Values labels = {0, -1, static_cast<double>(vocab - 1), -100, 0};
        Values x = normal_values(5 * vocab, "logits", 3.0);
        for (double& logit : x) logit = static_cast<float>(logit + offset);
        const auto r = oracle_cross_entropy(x, labels, 0.25);
        const Owned loss = filled(DType::f64, {1}, 2.0);
        const Owned label = from_values(DType::i32, {5}, labels);
        const Owned logits = from_values(dtype(), {5, vocab}, x);
        run(loss, logits, widths, label, 0.25, false);
        EXPECT_NEAR(values(loss)[0], 2 + r.sum, tolerance() * (2 + r.sum)) << "without gradient";
        EXPECT_TRUE(same_bits(values(logits), x)) << "logits changed without gradient";
        run(loss, logits, widths, label, 0.25);
        EXPECT_NEAR(values(loss)[0], 2 + 2 * r.sum, tolerance() * (2 + 2 * r.sum));
        EXPECT_LE(relative_rms(values(logits), r.gradient), tolerance());
      }
    }
  }
}

TEST_P(CrossEntropy, OfFarLogits) {  // no overflow, and the right limit, also far apart by ranks
  for (const Widths& widths : {Widths{3}, {1, 1, 1}, {2, 1}}) {
    const Owned logits = from_values(dtype(), {2, 3}, {1e4, -1e4, 0, -1e4, 1e4, 0});
    const Owned loss = zeros(DType::f64, {1}), labels = from_values(DType::i32, {2}, {0, 0});
    run(loss, logits, widths, labels, 2.0);
    EXPECT_EQ(values(loss)[0], 2e4);
    EXPECT_EQ(values(logits), Values({0, 0, 0, -2, 2, 0}));
  }
}

TEST(CrossEntropyOf, FiniteDifferences) {
  const Owned logits = normals(DType::f64, {4, 9}, "logits", 2.0), loss(DType::f64, {1});
  const Owned labels = from_values(DType::i32, {4}, {3, 0, -1, 8});
  for (const Widths& widths : {Widths{9}, {4, 2, 3}}) {
    const Owned gradient = copy_of(logits);
    const auto scaled_loss = [&] {
      assign(loss, {0});
      run(loss, logits, widths, labels, 0.5, false);
      return 0.5 * values(loss)[0];
    };
    run(loss, gradient, widths, labels, 0.5);
    EXPECT_LE(finite_difference(scaled_loss, logits, values(gradient)), 1e-7);
  }
}

TEST_P(CrossEntropy, SlicesOfTokensSumToTheWhole) {
  for (const Widths& widths : {Widths{23}, {5, 18}}) {
    const Owned whole = normals(dtype(), {11, 23}, "logits"), sliced = copy_of(whole);
    const Owned whole_loss = zeros(DType::f64, {1}), loss = zeros(DType::f64, {1});
    const Owned labels = from_values(DType::i32, {11}, {1, 2, -1, 4, 5, 22, 0, -1, 8, 9, 10});
    run(whole_loss, whole, widths, labels, 1.0);
    for (const auto [begin, end] :
         std::vector<std::array<int64_t, 2>>{{0, 4}, {4, 4}, {4, 5}, {5, 11}}) {
      run(loss, sliced.view().slice(0, begin, end), widths, labels.view().slice(0, begin, end),
          1.0);
    }
    EXPECT_TRUE(same_bits(values(sliced), values(whole)));
    EXPECT_NEAR(values(loss)[0], values(whole_loss)[0], 1e-12 * values(whole_loss)[0]);
  }
}

/// What crosses ranks is defined: the numbers of a row, and zeros for a row without a label.
TEST_P(CrossEntropy, StatisticsOfAShard) {
  const Owned logits = from_values(dtype(), {3, 2}, {1, 3, 5, 5, 7, 8});
  const Owned labels = from_values(DType::i32, {3}, {4, 1, -1}), statistics(dtype(), {3, 3});
  cross_entropy_shard({.statistics = statistics,
                       .logits = logits,
                       .labels = labels,
                       .vocab_begin = 3,  // tokens 3 and 4
                       .vocab = 6,
                       .gradient = false},
                      cpu_stream());
  const Values got = values(statistics);
  EXPECT_EQ(Values(got.begin(), got.begin() + 3), Values({3, 5, 0}));
  EXPECT_LE(relative_rms(Values(got.begin() + 3, got.begin() + 6), {1 + std::exp(-2.0), 2, 0}),
            tolerance());
  EXPECT_EQ(Values(got.begin() + 6, got.end()), Values({3, 0, 0}));
}

TEST_P(CrossEntropy, RefusesALabelOutsideTheVocabulary) {
  const Owned logits = zeros(dtype(), {1, 2}), loss = zeros(DType::f64, {1});
  const Owned label = from_values(DType::i32, {1}, {2});
  try {
    run(loss, logits, {1, 1}, label, 1.0);
    ADD_FAILURE() << "token 2 of 2 was taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::data);
    EXPECT_STREQ(error.what(), "token id 2 is outside the vocabulary of 2");
  }
}

TEST(CrossEntropyCosts, AreTheHandCounts) {
  const Owned x(DType::f32, {3, 5}), index(DType::i32, {3}), loss(DType::f64, {1});
  const Owned one(DType::f32, {1, 3, 3}), two(DType::f32, {2, 3, 3}), own(DType::f32, {3, 3});
  CrossEntropyShardArgs shard{own, x, index, 0, 5};
  EXPECT_EQ(cost(shard).bytes, 4 * (2 * 15 + 9) + 4 * 3);
  shard.gradient = false;
  EXPECT_EQ(cost(shard).bytes, 4 * (15 + 9) + 4 * 3);
  // The logits are read again only where another rank's are added.
  EXPECT_EQ(cost(CrossEntropyCombineArgs{loss, x, one, index}).bytes, 4 * 9 + 4 * 3);
  EXPECT_EQ(cost(CrossEntropyCombineArgs{loss, x, two, index}).bytes, 4 * (2 * 15 + 18) + 4 * 3);
}

}  // namespace
}  // namespace weft
