// Rows of scores that exist in memory, parts of attention that are merged, and rows that are views:
// what strategies need beside the attention of one block.
#include <gtest/gtest.h>

#include <cmath>

#include "src/kernels/softmax.hpp"
#include "tests/oracle.hpp"

namespace weft {
namespace {

class ScoreRows : public ::testing::TestWithParam<DType> {
 protected:
  DType dtype() const { return GetParam(); }
  double tolerance() const { return dtype() == DType::f64 ? 1e-13 : 1e-6; }
};
INSTANTIATE_TEST_SUITE_P(Dtypes, ScoreRows, ::testing::Values(DType::f64, DType::f32),
                         [](const auto& param) { return std::string(name(param.param)); });

struct Shape {
  int64_t B, H, T, N;
};
constexpr Shape kShape{2, 3, 9, 40};

/// Intervals of [B, T] queries over N keys: some see all, some one key, some none, some too much.
struct Intervals {
  Owned begin, end;

  explicit Intervals(const Shape& s) : begin(DType::i64, {s.B, s.T}), end(DType::i64, {s.B, s.T}) {
    std::vector<double> from, to;
    for (int64_t i = 0; i < s.B * s.T; ++i) {
      from.push_back(static_cast<double>(i % 5 == 0 ? -3 : i % 7 * 4));
      to.push_back(static_cast<double>(i % 4 == 0   ? from.back() + 1
                                       : i % 6 == 5 ? from.back()
                                                    : 11 + 5 * (i % 8)));
    }
    assign(begin, from);
    assign(end, to);
  }

  bool sees(int64_t row, int64_t key) const {
    return key >= begin.view().as<int64_t>()[row] && key < end.view().as<int64_t>()[row];
  }
};

/// The formula: probabilities and log-sum-exps of rows [B, H, T, N].
struct Expected {
  std::vector<double> probs, lse;

  Expected(const std::vector<double>& scores, const Intervals& intervals, const Shape& s)
      : probs(scores.size()), lse(s.B * s.H * s.T, -kInfinity) {
    for (int64_t row = 0; row < s.B * s.H * s.T; ++row) {
      const int64_t query = row / (s.H * s.T) * s.T + row % s.T;
      double sum = 0;
      for (int64_t j = 0; j < s.N; ++j) {
        if (intervals.sees(query, j)) sum += std::exp(scores[row * s.N + j]);
      }
      if (sum == 0) continue;
      lse[row] = std::log(sum);
      for (int64_t j = 0; j < s.N; ++j) {
        if (intervals.sees(query, j)) probs[row * s.N + j] = std::exp(scores[row * s.N + j]) / sum;
      }
    }
  }
};

TEST_P(ScoreRows, SoftmaxIsTheFormula) {
  const Shape s = kShape;
  const Intervals intervals(s);
  const Owned scores = normals(dtype(), {s.B, s.H, s.T, s.N}, "scores");
  const Expected expected(values(scores), intervals, s);
  const Owned lse(dtype(), {s.B, s.H, s.T});
  softmax_forward(
      {.scores = scores, .lse = lse, .key_begin = intervals.begin, .key_end = intervals.end},
      cpu_stream());
  EXPECT_LE(relative_rms(values(scores), expected.probs), tolerance());
  EXPECT_LE(relative_rms_of_logs(values(lse), expected.lse), tolerance());
  const std::vector<double> got = values(scores);
  for (size_t i = 0; i < got.size(); ++i) {
    if (expected.probs[i] == 0) {  // what is hidden is nothing at all
      EXPECT_EQ(got[i], 0.0);
    }
  }
}

TEST_P(ScoreRows, SoftmaxOfLargeScoresDoesNotOverflow) {
  const Owned scores =
      from_values(dtype(), {1, 1, 3, 5},
                  {500, 400, 500, 0, -500, -900, -900, -900, -900, -900, 0, -kInfinity, 300, 1, 2});
  const Owned from = zeros(DType::i64, {1, 3}), to = filled(DType::i64, {1, 3}, 5);
  const Owned lse(dtype(), {1, 1, 3});
  softmax_forward({.scores = scores, .lse = lse, .key_begin = from, .key_end = to}, cpu_stream());
  const std::vector<double> p = values(scores);
  EXPECT_DOUBLE_EQ(p[0], 0.5);
  EXPECT_NEAR(p[5], 0.2, 1e-7);
  EXPECT_NEAR(p[12], 1, 1e-7);
  EXPECT_NEAR(values(lse)[1], -900 + std::log(5), 1e-4);
}

/// In blocks of columns that are views of whole rows, hidden columns full of NaN.
TEST_P(ScoreRows, SoftmaxGradientIsTheFormulaBlockByBlock) {
  const Shape s = kShape;
  const Intervals intervals(s);
  const std::vector<double> raw = values(normals(dtype(), {s.B, s.H, s.T, s.N}, "scores"));
  const std::vector<double> dp = values(normals(dtype(), {s.B, s.H, s.T, s.N}, "dprobs"));
  const Expected expected(raw, intervals, s);
  std::vector<double> delta(expected.lse.size()), ds(raw.size());
  for (size_t i = 0; i < raw.size(); ++i) delta[i / s.N] += expected.probs[i] * dp[i];
  for (size_t i = 0; i < raw.size(); ++i) ds[i] = expected.probs[i] * (dp[i] - delta[i / s.N]);

  const std::vector<int64_t> rows = {s.B, s.H, s.T};
  const Owned lse = from_values(dtype(), rows, expected.lse);
  const Owned deltas = from_values(dtype(), rows, delta);
  const Owned probs = from_values(dtype(), {s.B, s.H, s.T, s.N}, raw);
  const Owned dscores = from_values(dtype(), {s.B, s.H, s.T, s.N}, dp);
  for (int64_t i = 0; i < probs.view().numel(); ++i) {
    const int64_t row = i / s.N, query = row / (s.H * s.T) * s.T + row % s.T;
    if (intervals.sees(query, i % s.N)) continue;
    visit_float(dtype(), [&](auto zero) {
      using T = decltype(zero);
      probs.view().as<T>()[i] = dscores.view().as<T>()[i] = NAN;
    });
  }
  for (const Range& block : ranges({0, 7, 7, 8, 31, 40})) {
    softmax_backward({.probs = probs.view().slice(3, block.begin, block.end),
                      .dscores = dscores.view().slice(3, block.begin, block.end),
                      .lse = lse,
                      .delta = deltas,
                      .key_begin = intervals.begin,
                      .key_end = intervals.end,
                      .first_key = block.begin},
                     cpu_stream());
  }
  EXPECT_LE(relative_rms(values(probs), expected.probs), tolerance());
  EXPECT_LE(relative_rms(values(dscores), ds), 10 * tolerance());  // differences of dp
}

// ---- Merging parts

AttentionProblem gqa_problem(DType dtype) {
  const SegmentMap documents(48, {0, 13, 30}, true);
  return attention_problem(dtype, {.batch = 2, .heads = 4, .kv_heads = 2, .width = 8}, 48,
                           key_intervals({documents, documents}, 0, 48));
}

TEST_P(ScoreRows, PartsOfOtherRanksMergeToTheWholeSoftmax) {
  const AttentionProblem p = gqa_problem(dtype());
  const AttentionResult expected = oracle_attention(p);
  const QueryPiece whole = query_piece(p, {0, 48});
  for (const Range& keys : ranges({0, 10, 10, 29, 48})) {  // one part sees nothing at all
    const QueryPiece part = query_piece(p, {0, 48});
    forward(p, part, key_piece(p, keys));
    attention_merge(
        {.out = whole.out, .lse = whole.lse, .part_out = part.out, .part_lse = part.lse},
        cpu_stream());
  }
  EXPECT_LE(relative_rms(values(whole.out), expected.out), 2 * tolerance());
  EXPECT_LE(relative_rms_of_logs(values(whole.lse), expected.lse), 2 * tolerance());
}

TEST_P(ScoreRows, APartThatSawNothingChangesNoBit) {
  const AttentionProblem p = gqa_problem(dtype());
  const QueryPiece whole = query_piece(p, {0, 48}), nothing = query_piece(p, {0, 48});
  forward(p, whole, key_piece(p, {0, 48}));
  const std::vector<double> out = values(whole.out), lse = values(whole.lse);
  assign(nothing.out, std::vector<double>(nothing.out.view().numel(), NAN));
  attention_merge(
      {.out = whole.out, .lse = whole.lse, .part_out = nothing.out, .part_lse = nothing.lse},
      cpu_stream());
  EXPECT_TRUE(same_bits(values(whole.out), out) && same_bits(values(whole.lse), lse));
}

// ---- Rows that are views

/// Some heads and some queries of whole tensors, as strategies cut them: the result is that of the
/// whole, and nothing else is touched.
TEST_P(ScoreRows, HeadsAndQueriesMayBeViews) {
  const AttentionProblem p = gqa_problem(dtype());
  const AttentionResult expected = oracle_attention(p);
  const QueryPiece q = query_piece(p, {0, 48});
  const KeyPiece k = key_piece(p, {0, 48});
  const Owned tiles(DType::u8, {attention_scratch_bytes(dtype(), p.shape.width)});
  const auto heads = [](const Owned& t, Range r, int64_t g) {
    return t.view().slice(1, r.begin, r.end).slice(2, 2 * g, 2 * g + 2);
  };
  const auto numbers = [](const Owned& t, Range r, int64_t g) {
    return t.view().slice(2, r.begin, r.end).slice(1, 2 * g, 2 * g + 2);
  };
  const auto kv = [](const Owned& t, int64_t g) { return t.view().slice(2, g, g + 1); };
  const auto block = [&](Range r, int64_t g) {
    return AttentionBlock{.q = heads(q.q, r, g),
                          .k = kv(k.k, g),
                          .v = kv(k.v, g),
                          .key_begin = q.begin.view().slice(1, r.begin, r.end),
                          .key_end = q.end.view().slice(1, r.begin, r.end),
                          .scale = p.scale};
  };
  const auto each = [&](auto&& f) {
    for (const Range& r : ranges({0, 17, 48})) {
      for (const int64_t g : {1, 0}) f(r, g);
    }
  };
  each([&](Range r, int64_t g) {
    attention_forward({.out = heads(q.out, r, g),
                       .lse = numbers(q.lse, r, g),
                       .scratch = tiles,
                       .block = block(r, g)},
                      cpu_stream());
    attention_delta(
        {.delta = numbers(q.delta, r, g), .out = heads(q.out, r, g), .dout = heads(q.dout, r, g)},
        cpu_stream());
  });
  each([&](Range r, int64_t g) {
    attention_backward({.dq = heads(q.dq, r, g),
                        .dk = kv(k.dk, g),
                        .dv = kv(k.dv, g),
                        .scratch = tiles,
                        .dout = heads(q.dout, r, g),
                        .lse = numbers(q.lse, r, g),
                        .delta = numbers(q.delta, r, g),
                        .block = block(r, g)},
                       cpu_stream());
  });
  const double bound = 4 * tolerance();
  EXPECT_LE(relative_rms(values(q.out), expected.out), bound);
  EXPECT_LE(relative_rms_of_logs(values(q.lse), expected.lse), bound);
  EXPECT_LE(relative_rms(values(q.dq), expected.dq), bound);
  EXPECT_LE(relative_rms(values(k.dk), expected.dk), bound);
  EXPECT_LE(relative_rms(values(k.dv), expected.dv), bound);
}

}  // namespace
}  // namespace weft
