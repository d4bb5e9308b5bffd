// Softmax attention by blocks, as every sequence strategy uses it, against the whole softmax in
// f64; and the rotary embedding that goes before it.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <vector>

#include "src/kernels/attention.hpp"
#include "src/kernels/rope.hpp"
#include "tests/oracle.hpp"
#include "tests/testing.hpp"

namespace weft {
namespace {

void expect_same(const AttentionResult& got, const AttentionResult& oracle, double tolerance) {
  EXPECT_LE(relative_rms(got.out, oracle.out), tolerance);
  EXPECT_LE(relative_rms_of_logs(got.lse, oracle.lse), tolerance);
  // dq and dk are sums of differences of numbers about as large as dv: where a query sees one key
  // they are 0, and what a kernel returns is the rounding of those numbers.
  const double floor = 0.1 * rms(oracle.dv);
  EXPECT_LE(relative_rms(got.dq, oracle.dq, floor), tolerance);
  EXPECT_LE(relative_rms(got.dk, oracle.dk, floor), tolerance);
  EXPECT_LE(relative_rms(got.dv, oracle.dv), tolerance);
}

/// f32: scores, exponents and sums each round at 6e-8 and a score of s turns its rounding into a
/// relative error of its weight; with scores of order one a few such errors stay under 2e-6.
class Attention : public ::testing::TestWithParam<DType> {
 protected:
  DType dtype() const { return GetParam(); }
  double tolerance() const { return dtype() == DType::f64 ? 1e-12 : 2e-6; }
};
INSTANTIATE_TEST_SUITE_P(Dtypes, Attention, ::testing::Values(DType::f64, DType::f32),
                         [](const auto& param) { return std::string(name(param.param)); });

constexpr int64_t kTokens = 48;

/// Partitions of the keys (and of the queries), with their blocks in any order.
const std::vector<std::vector<Range>> kPartitions = {
    ranges({0, 48}),
    ranges({0, 16, 32, 48}),
    {{32, 48}, {16, 32}, {0, 16}},
    ranges({0, 1, 1, 18, 47, 48, 48}),  // uneven, empty
    {{31, 40}, {0, 5}, {40, 48}, {5, 31}},
};

void check_partitions(const AttentionProblem& p, double tolerance) {
  const AttentionResult oracle = oracle_attention(p);
  for (size_t keys = 0; keys < kPartitions.size(); ++keys) {
    for (const size_t queries : {size_t{0}, size_t{3}}) {
      SCOPED_TRACE(concat("partition ", keys, " of the keys, ", queries, " of the queries"));
      expect_same(attend(p, kPartitions[queries], kPartitions[keys]), oracle, tolerance);
    }
  }
}

TEST_P(Attention, BlocksMergeToTheWholeSoftmaxUnderAnyMask) {
  const std::vector<std::vector<int64_t>> starts = {{},   {16}, {15},     {17},
                                                    {33}, {47}, {16, 32}, {5, 20, 21, 22, 40}};
  for (const Mask& mask : {Mask{true, 0}, Mask{false, 0}, Mask{true, 1}, Mask{true, 7},
                           Mask{true, 17}, Mask{false, 5}}) {
    for (size_t s = 0; s < starts.size(); ++s) {
      SCOPED_TRACE(concat("causal ", mask.causal, " window ", mask.window, " documents ", s));
      // The two samples have different documents.
      const std::vector<SegmentMap> samples = {
          SegmentMap(kTokens, starts[s], true),
          SegmentMap(kTokens, starts[(s + 3) % starts.size()], false)};
      check_partitions(attention_problem(dtype(), {2, 2, 1, 8}, kTokens,
                                         key_intervals(samples, 0, kTokens, mask)),
                       tolerance());
    }
  }
}

TEST_P(Attention, QueryHeadsReadTheirKvHead) {  // MHA, GQA, MQA, and widths that fill no vector
  const std::vector<AttentionShape> shapes = {{1, 1, 1, 8},  {2, 4, 4, 8}, {2, 4, 2, 8},
                                              {1, 6, 2, 16}, {2, 5, 1, 8}, {1, 2, 1, 1},
                                              {1, 2, 2, 3},  {1, 2, 1, 33}};
  for (const AttentionShape& shape : shapes) {
    SCOPED_TRACE(concat(shape.heads, " heads, ", shape.kv_heads, " kv heads, D ", shape.width));
    const std::vector<SegmentMap> samples(shape.batch, SegmentMap(kTokens, {19}, true));
    check_partitions(attention_problem(dtype(), shape, kTokens, key_intervals(samples, 0, kTokens)),
                     tolerance());
  }
}

TEST_P(Attention, CrossesTileEdges) {  // a shard at the end of a sample much longer than a tile
  constexpr int64_t kQueries = 150, kKeys = 1200;
  const std::vector<SegmentMap> samples = {SegmentMap(kKeys, {1061, 1100, 1129}, true)};
  const std::vector<SegmentMap> whole = {SegmentMap::single(kKeys)};
  for (const int64_t width : {8, 64}) {
    for (const Mask& mask : {Mask{true, 0}, Mask{true, 300}, Mask{false, 0}}) {
      for (const bool documents : {false, true}) {
        SCOPED_TRACE(concat("D ", width, " causal ", mask.causal, " window ", mask.window,
                            " documents ", documents));
        const AttentionProblem p = attention_problem(
            dtype(), {1, 2, 1, width}, kKeys,
            key_intervals(documents ? samples : whole, kKeys - kQueries, kKeys, mask));
        const auto queries = ranges({0, kQueries});
        const AttentionResult oracle = oracle_attention(p);
        expect_same(attend(p, queries, ranges({0, kKeys})), oracle, 2 * tolerance());
        expect_same(attend(p, queries, {{1071, kKeys}, {0, 513}, {513, 1071}}), oracle,
                    2 * tolerance());
      }
    }
  }
}

/// Intervals that no document makes: every query its own, some empty, some past both ends.
KeyIntervals random_intervals(int64_t batch, int64_t queries, int64_t tokens) {
  const RandomStream random(11, "intervals");
  std::vector<double> begin, end;
  for (int64_t i = 0; i < batch * queries; ++i) {
    begin.push_back(static_cast<double>(random.below(2 * i, tokens + 20)) - 10);
    end.push_back(begin.back() + static_cast<double>(random.below(2 * i + 1, tokens)) - 4);
  }
  return {from_values(DType::i64, {batch, queries}, begin),
          from_values(DType::i64, {batch, queries}, end)};
}

TEST_P(Attention, AnyInterval) {
  check_partitions(
      attention_problem(dtype(), {2, 2, 1, 8}, kTokens, random_intervals(2, kTokens, kTokens)),
      tolerance());
  const AttentionProblem p =
      attention_problem(dtype(), {1, 1, 1, 8}, 700, random_intervals(1, 300, 700));
  expect_same(attend(p, ranges({0, 300}), ranges({0, 400, 700})), oracle_attention(p),
              2 * tolerance());
}

TEST_P(Attention, QueriesThatSeeNothingKeepTheirRows) {
  KeyIntervals keys{filled(DType::i64, {1, kTokens}, 7), filled(DType::i64, {1, kTokens}, 7)};
  const AttentionProblem p = attention_problem(dtype(), {1, 2, 1, 8}, kTokens, std::move(keys));
  const AttentionResult got = attend(p, ranges({0, 48}), ranges({0, 16, 48}));
  const auto is = [](const std::vector<double>& x, double value) {
    return std::all_of(x.begin(), x.end(), [&](double y) { return y == value; });
  };
  EXPECT_TRUE(is(got.lse, -kInfinity));
  for (const auto* x : {&got.out, &got.dq, &got.dk, &got.dv}) EXPECT_TRUE(is(*x, 0));
  // What an earlier block left stays as well.
  const QueryPiece q = query_piece(p, {0, 48});
  assign(q.out, normal_values(q.out.view().numel(), "out"));
  assign(q.lse, normal_values(q.lse.view().numel(), "lse"));
  const auto out = values(q.out), lse = values(q.lse);
  forward(p, q, key_piece(p, {0, 48}));
  EXPECT_TRUE(same_bits(values(q.out), out));
  EXPECT_TRUE(same_bits(values(q.lse), lse));
}

/// Scores of up to `reach`, the largest of all keys.
AttentionProblem with_large_scores(DType dtype, double reach) {
  const std::vector<SegmentMap> samples = {SegmentMap(kTokens, {20}, true)};
  AttentionProblem p =
      attention_problem(dtype, {1, 2, 2, 8}, kTokens, key_intervals(samples, 0, kTokens));
  double largest = 0;
  const auto q = values(p.q), k = values(p.k);
  for (int64_t i = 0; i < kTokens * 2; ++i) {
    for (int64_t j = i % 2; j < kTokens * 2; j += 2) {
      double score = 0;
      for (int64_t d = 0; d < 8; ++d) score += q[i * 8 + d] * k[j * 8 + d];
      largest = std::max(largest, std::abs(score));
    }
  }
  p.scale = reach / largest;
  return p;
}

TEST_P(Attention, LargeScores) {
  const AttentionProblem p = with_large_scores(dtype(), 300);
  // A score of 300 rounds by 300 x 6e-8 in f32, which is the relative error of its weight; the
  // gradients take differences of such weights.
  check_partitions(p, dtype() == DType::f64 ? 1e-11 : 2e-4);
}

TEST_P(Attention, KeyIndicesBeyond32Bits) {
  constexpr int64_t kFar = 5'000'000'000;
  const std::vector<SegmentMap> samples = {SegmentMap(kTokens, {9}, true)};
  const AttentionProblem p =
      attention_problem(dtype(), {1, 2, 1, 8}, kTokens, key_intervals(samples, 0, kTokens));
  const QueryPiece near = query_piece(p, {0, 48}), far = query_piece(p, {0, 48});
  KeyPiece k = key_piece(p, {10, 30});
  forward(p, near, k);
  for (const Owned* t : {&far.begin, &far.end}) {
    auto index = values(*t);
    for (double& i : index) i += kFar;
    assign(*t, index);
  }
  k.first += kFar;
  forward(p, far, k);
  EXPECT_TRUE(same_bits(values(far.out), values(near.out)));
  EXPECT_TRUE(same_bits(values(far.lse), values(near.lse)));
}

TEST_P(Attention, NeighbouringDocumentsDoNotTouch) {
  const std::vector<SegmentMap> samples = {SegmentMap(kTokens, {20}, true)};
  AttentionProblem p =
      attention_problem(dtype(), {1, 2, 1, 8}, kTokens, key_intervals(samples, 0, kTokens));
  const auto first = attend(p, ranges({0, 48}), ranges({0, 30, 48}));
  for (const Owned* t : {&p.q, &p.k, &p.v, &p.dout}) {
    const Tensor second = t->view().slice(1, 20, 48);
    assign(second, normal_values(second.numel(), "other", 100.0));
  }
  const auto again = attend(p, ranges({0, 48}), ranges({0, 30, 48}));
  const auto head = [](const std::vector<double>& x, int64_t row) {
    return std::vector<double>(x.begin(), x.begin() + 20 * row);
  };
  EXPECT_TRUE(same_bits(head(again.out, 16), head(first.out, 16)));
  EXPECT_TRUE(same_bits(head(again.dq, 16), head(first.dq, 16)));
  EXPECT_TRUE(same_bits(head(again.dk, 8), head(first.dk, 8)));
  EXPECT_TRUE(same_bits(head(again.dv, 8), head(first.dv, 8)));
}

TEST(AttentionGradient, IsFiniteDifferences) {
  const std::vector<SegmentMap> samples = {SegmentMap(13, {4}, true)};
  const AttentionProblem p =
      attention_problem(DType::f64, {1, 4, 2, 5}, 13, key_intervals(samples, 0, 13));
  const auto queries = ranges({0, 13}), blocks = ranges({0, 6, 13});
  const auto loss = [&] { return dot(attend(p, queries, blocks).out, values(p.dout)); };
  const AttentionResult got = attend(p, queries, blocks);
  EXPECT_LE(finite_difference(loss, p.q, got.dq), 1e-7);
  EXPECT_LE(finite_difference(loss, p.k, got.dk), 1e-7);
  EXPECT_LE(finite_difference(loss, p.v, got.dv), 1e-7);
}

TEST_P(Attention, GradientsAddToWhatIsThere) {
  const std::vector<SegmentMap> samples = {SegmentMap(kTokens, {30}, true)};
  const AttentionProblem p =
      attention_problem(dtype(), {1, 2, 1, 8}, kTokens, key_intervals(samples, 0, kTokens));
  const AttentionResult oracle = oracle_attention(p);
  const QueryPiece q = query_piece(p, {0, 48});
  const KeyPiece k = key_piece(p, {0, 48});
  forward(p, q, k);
  attention_delta({q.delta, q.out, q.dout}, cpu_stream());
  std::vector<std::vector<double>> before;
  for (const Owned* t : {&q.dq, &k.dk, &k.dv}) {
    before.push_back(normal_values(t->view().numel(), "before"));
    assign(*t, before.back());
  }
  backward(p, q, k);
  EXPECT_LE(relative_rms(minus(values(q.dq), before[0]), oracle.dq), 2 * tolerance());
  EXPECT_LE(relative_rms(minus(values(k.dk), before[1]), oracle.dk), 2 * tolerance());
  EXPECT_LE(relative_rms(minus(values(k.dv), before[2]), oracle.dv), 2 * tolerance());
}

TEST_P(Attention, NoQueriesOrNoKeys) {
  const std::vector<SegmentMap> samples(2, SegmentMap::single(5));
  const AttentionProblem p =
      attention_problem(dtype(), {2, 2, 1, 8}, 5, key_intervals(samples, 0, 5));
  const KeyPiece all = key_piece(p, {0, 5}), none = key_piece(p, {2, 2});
  const QueryPiece queries = query_piece(p, {0, 5}), nobody = query_piece(p, {3, 3});
  forward(p, nobody, all);
  attention_delta({nobody.delta, nobody.out, nobody.dout}, cpu_stream());
  backward(p, nobody, all);
  EXPECT_EQ(values(all.dk), std::vector<double>(values(all.k).size()));
  EXPECT_EQ(values(all.dv), std::vector<double>(values(all.k).size()));
  forward(p, queries, all);
  attention_delta({queries.delta, queries.out, queries.dout}, cpu_stream());
  const auto out = values(queries.out), lse = values(queries.lse);
  forward(p, queries, none);
  backward(p, queries, none);
  EXPECT_TRUE(same_bits(values(queries.out), out));
  EXPECT_TRUE(same_bits(values(queries.lse), lse));
  EXPECT_EQ(values(queries.dq), std::vector<double>(out.size()));
}

TEST_P(Attention, DeltaIsTheRowSumOfTheProducts) {
  const Owned out = normals(dtype(), {2, 5, 3, 9}, "out"),
              dout = normals(dtype(), {2, 5, 3, 9}, "d");
  const Owned delta(dtype(), {2, 3, 5});
  const auto o = values(out), d = values(dout);
  std::vector<double> expected(30);
  for (int64_t row = 0; row < 30; ++row) {
    const int64_t b = row / 15, t = row / 3 % 5, h = row % 3;
    for (int64_t i = 0; i < 9; ++i)
      expected[(b * 3 + h) * 5 + t] += o[row * 9 + i] * d[row * 9 + i];
  }
  attention_delta({delta, out, dout}, cpu_stream());
  EXPECT_LE(relative_rms(values(delta), expected), tolerance());
}

TEST(CausalPairs, CountsWhatTheMaskLeaves) {
  for (int64_t code = 0; code < 7 * 7 * 7 * 7; ++code) {
    const int64_t q0 = code % 7, q1 = code / 7 % 7, k0 = code / 49 % 7, k1 = code / 343;
    if (q0 > q1 || k0 > k1) continue;
    double pairs = 0;
    for (int64_t i = q0; i < q1; ++i) {
      for (int64_t j = k0; j < k1; ++j) pairs += j <= i;
    }
    EXPECT_EQ(causal_pairs(q0, q1, k0, k1), pairs) << concat(q0, " ", q1, " ", k0, " ", k1);
  }
  EXPECT_EQ(causal_pairs(0, 1 << 25, 0, 1 << 25), 0x1p24 * ((1 << 25) + 1.0));  // beyond 32 bits
}

// ---- Rotary embedding

TEST(Rope, FrequenciesAreAGeometricSeries) {
  const auto f = rope_frequencies({.theta = 500.0, .llama3 = {}}, 10);
  ASSERT_EQ(f.size(), 5u);
  for (int i = 0; i < 5; ++i) EXPECT_NEAR(f[i], std::pow(500.0, -i / 5.0), 1e-15);
}

TEST(Rope, Llama3ScalingInItsThreeRegimes) {
  const Llama3Scaling l{.factor = 8,
                        .low_freq_factor = 1,
                        .high_freq_factor = 4,
                        .original_max_position_embeddings = 8192};
  const auto plain = rope_frequencies({.theta = 500000, .llama3 = {}}, 128);
  const auto scaled = rope_frequencies({.theta = 500000, .llama3 = l}, 128);
  ASSERT_EQ(scaled.size(), 64u);
  std::array<int, 3> seen{};
  for (int i = 0; i < 64; ++i) {
    const double wavelength = 2 * std::numbers::pi / plain[i];
    double expected = plain[i];
    int regime = 0;
    if (wavelength > l.original_max_position_embeddings / l.low_freq_factor) {
      expected = plain[i] / l.factor;
      regime = 1;
    } else if (wavelength >= l.original_max_position_embeddings / l.high_freq_factor) {
      const double smooth = (l.original_max_position_embeddings / wavelength - l.low_freq_factor) /
                            (l.high_freq_factor - l.low_freq_factor);
      expected = (1 - smooth) * plain[i] / l.factor + smooth * plain[i];
      regime = 2;
    }
    ++seen[regime];
    EXPECT_NEAR(scaled[i], expected, 1e-14 * expected) << "element " << i;
  }
  for (const int count : seen) EXPECT_GT(count, 0);
}

struct RopeTable {
  Owned cos, sin;
};

RopeTable rope_table_of(DType dtype, const std::vector<double>& positions,
                        const std::vector<double>& frequencies) {
  const int64_t tokens = std::ssize(positions), half = std::ssize(frequencies);
  RopeTable table{Owned(dtype, {1, tokens, half}), Owned(dtype, {1, tokens, half})};
  const Owned index = from_values(DType::i64, {1, tokens}, positions);
  rope_table({table.cos, table.sin, index, &frequencies}, cpu_stream());
  return table;
}

TEST_P(Attention, RopeTableIsAccurateAtPositionsOfMillions) {
  const std::vector<double> positions = {0, 1, 2047, 524288, 4000000, 3999999, 33554431};
  const auto frequencies = rope_frequencies({.theta = 500000, .llama3 = {}}, 64);
  const RopeTable table = rope_table_of(dtype(), positions, frequencies);
  const auto cos = values(table.cos), sin = values(table.sin);
  // f64 within 1e-12 of the cosine of the f64 angle. f32 within its own rounding, half a unit in
  // the last place of 1: an angle formed in f32 is off by up to 0.25 at 4e6.
  const double bound = dtype() == DType::f64 ? 1e-12 : 0x1p-25 + 1e-12;
  for (size_t i = 0; i < cos.size(); ++i) {
    const double angle = positions[i / 32] * frequencies[i % 32];
    EXPECT_NEAR(cos[i], std::cos(angle), bound) << positions[i / 32] << " x " << i % 32;
    EXPECT_NEAR(sin[i], std::sin(angle), bound) << positions[i / 32] << " x " << i % 32;
  }
}

/// x with token t of its single sample turned to positions[t].
Owned rotated(const Owned& x, const std::vector<double>& positions, bool inverse = false) {
  const Tensor& shape = x.view();
  const auto frequencies = rope_frequencies({}, shape.dim(3));
  const RopeTable table = rope_table_of(shape.dtype, positions, frequencies);
  Owned y = copy_of(x);
  rope({y, table.cos, table.sin, inverse}, cpu_stream());
  return y;
}

TEST_P(Attention, RopeTurnsElementWithElementPlusHalf) {
  const std::vector<double> positions = {0, 3, 100};
  const auto f = rope_frequencies({}, 6);
  const Owned x = normals(dtype(), {1, 3, 2, 6}, "x");
  auto expected = values(x);
  const auto v = values(x);
  for (int64_t row = 0; row < 6; ++row) {
    for (int64_t i = 0; i < 3; ++i) {
      const double angle = positions[row / 2] * f[i], a = v[row * 6 + i], b = v[row * 6 + i + 3];
      expected[row * 6 + i] = a * std::cos(angle) - b * std::sin(angle);
      expected[row * 6 + i + 3] = b * std::cos(angle) + a * std::sin(angle);
    }
  }
  EXPECT_LE(relative_rms(values(rotated(x, positions)), expected), tolerance());
}

TEST_P(Attention, RopeInverseUndoesAndIsTheAdjoint) {
  const std::vector<double> positions = {5, 0, 70000, 12};
  const Owned x = normals(dtype(), {1, 4, 3, 8}, "x"), y = normals(dtype(), {1, 4, 3, 8}, "y");
  EXPECT_LE(relative_rms(values(rotated(rotated(x, positions), positions, true)), values(x)),
            tolerance());
  EXPECT_NEAR(dot(values(rotated(x, positions)), values(y)),
              dot(values(x), values(rotated(y, positions, true))), 100 * tolerance());
}

TEST(Rope, ScoresDependOnTheDistanceOnly) {
  const auto turn = [](const char* which, double position) {
    return values(rotated(normals(DType::f64, {1, 1, 1, 16}, which), {position}));
  };
  for (const double distance : {0.0, 1.0, 37.0, 1000.0}) {
    const double score = dot(turn("q", distance), turn("k", 0));
    EXPECT_NEAR(dot(turn("q", 500 + distance), turn("k", 500)), score, 1e-11);
    // At millions the angle itself has no more than its f64 digits: 4e6 x 2^-53.
    EXPECT_NEAR(dot(turn("q", 4e6 + distance), turn("k", 4e6)), score, 1e-7);
  }
  EXPECT_GT(std::abs(dot(turn("q", 1), turn("k", 0)) - dot(turn("q", 0), turn("k", 0))), 1e-3);
}

TEST_P(Attention, RopeOfSomeHeadsOfAFusedProjection) {  // strides as they come, two samples
  const auto frequencies = rope_frequencies({}, 8);
  const Owned cos(dtype(), {2, 3, 4}), sin(dtype(), {2, 3, 4});
  const Owned positions = from_values(DType::i64, {2, 3}, {0, 1, 2, 9, 0, 1});
  rope_table({cos, sin, positions, &frequencies}, cpu_stream());
  const Owned fused = normals(dtype(), {2, 3, 5, 8}, "fused"), before = copy_of(fused);
  const auto heads = [](const Owned& t) { return t.view().slice(2, 1, 3); };
  rope({heads(fused), cos, sin}, cpu_stream());
  for (const int64_t b : {0, 1}) {
    const Owned alone = copy_of(heads(before).slice(0, b, b + 1));
    const std::vector<double> at =
        b == 0 ? std::vector<double>{0, 1, 2} : std::vector<double>{9, 0, 1};
    EXPECT_TRUE(same_bits(values(heads(fused).slice(0, b, b + 1)), values(rotated(alone, at))));
  }
  assign(heads(fused), values(heads(before)));
  EXPECT_TRUE(same_bits(values(fused), values(before))) << "other heads changed";
}

TEST_P(Attention, RopeOfNoTokens) {
  const std::vector<double> frequencies(4);
  const Owned nothing(dtype(), {2, 0, 2, 8}), table(dtype(), {2, 0, 4}), index(DType::i64, {2, 0});
  rope_table({table, table, index, &frequencies}, cpu_stream());
  rope({nothing, table, table}, cpu_stream());
}

TEST(AttentionCost, IsTheHandCount) {  // f32, B = 2, Tq = 3, Tk = 5, H = 4, G = 2, D = 8, 7 pairs
  const Owned q(DType::f32, {2, 3, 4, 8}), k(DType::f32, {2, 5, 2, 8}), rows(DType::f32, {2, 4, 3});
  const Owned index(DType::i64, {2, 3});
  const AttentionBlock block{q, k, k, index, index, 0, 1.0, 7};
  constexpr double kDots = 2 * 2 * 4 * 8 * 7;  // one product over the pairs of all heads
  constexpr double kQ = 4 * 192, kK = 4 * 160, kRows = 4 * 24, kIndex = 8 * 6;
  const Cost forward_cost = cost(AttentionForwardArgs{q, rows, {}, block});  // q k^T, P v
  EXPECT_EQ(forward_cost.flops, 2 * kDots);
  EXPECT_EQ(forward_cost.bytes, kQ + 2 * kK + 2 * kIndex + 2 * kQ + 2 * kRows);
  const Cost delta_cost = cost(AttentionDeltaArgs{rows, q, q});
  EXPECT_EQ(delta_cost.flops, 2 * 192);
  EXPECT_EQ(delta_cost.bytes, 2 * kQ + kRows);
  // q k^T again, dP = dout v^T, and one product for each gradient.
  const Cost backward_cost = cost(AttentionBackwardArgs{q, k, k, {}, q, rows, rows, block});
  EXPECT_EQ(backward_cost.flops, 5 * kDots);
  EXPECT_EQ(backward_cost.bytes, kQ + 2 * kK + 2 * kIndex + kQ + 2 * kRows + 2 * (kQ + 2 * kK));
}

TEST(RopeCost, IsTheHandCount) {  // f32, B = 2, T = 3, 4 heads, D = 8
  const Owned x(DType::f32, {2, 3, 4, 8}), table(DType::f32, {2, 3, 4}), index(DType::i64, {2, 3});
  const Cost rope_cost = cost(RopeArgs{x, table, table});
  EXPECT_EQ(rope_cost.flops, 3 * 192);  // two products and a sum an element
  EXPECT_EQ(rope_cost.bytes, 4 * (2 * 192 + 2 * 24));
  EXPECT_EQ(cost(RopeTableArgs{table, table, index}).bytes, 8 * 6 + 4 * 2 * 24);
}

}  // namespace
}  // namespace weft
