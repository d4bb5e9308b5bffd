// The grid that every way across the sequence axis is tested on: ranks x cuts x documents x heads.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "tests/sequence_testing.hpp"

namespace weft {

/// A sequence, its cuts and its documents.
struct Case {
  std::string name;
  Cuts cuts;
  std::vector<int64_t> document_starts;
};

/// Cuts of about five tokens a rank: even, uneven, a rank of one token, empty ranks.
inline std::vector<std::pair<std::string, Cuts>> cuts_of(int ranks) {
  std::vector<int64_t> uneven, one_token, empty;
  for (int p = 0; p < ranks; ++p) {
    uneven.push_back(3 + 5 * p % 7);
    one_token.push_back(p == ranks / 2 ? 1 : 5);
    empty.push_back(p % 3 == 1 ? 0 : 6);
  }
  return {{"even", Cuts::even(5 * ranks, ranks)},
          {"uneven", Cuts::of_sizes(uneven)},
          {"one token", Cuts::of_sizes(one_token)},
          {"empty", Cuts::of_sizes(empty)}};
}

/// Documents that start at, before and after a rank's cut, span three ranks, or crowd in one.
inline std::vector<std::pair<std::string, std::vector<int64_t>>> documents_of(const Cuts& cuts) {
  const int64_t N = cuts.total(), cut = cuts.begin(cuts.pieces() / 2);
  const auto inside = [&](std::vector<int64_t> starts) {
    std::erase_if(starts, [&](int64_t s) { return s <= 0 || s >= N; });
    std::sort(starts.begin(), starts.end());
    starts.erase(std::unique(starts.begin(), starts.end()), starts.end());
    return starts;
  };
  return {{"no documents", {}},
          {"at a cut", inside({cut})},
          {"before a cut", inside({cut - 1})},
          {"after a cut", inside({cut + 1})},
          {"over three ranks", inside({2, cuts.begin(std::min(3, cuts.pieces() - 1)) + 1})},
          {"three in a rank", inside({cut + 1, cut + 2, cut + 4})}};
}

inline std::vector<Case> grid(int ranks) {
  std::vector<Case> cases;
  for (const auto& [cuts_name, cuts] : cuts_of(ranks)) {
    for (const auto& [documents_name, starts] : documents_of(cuts)) {
      cases.push_back(
          {concat(ranks, " ranks, ", cuts_name, " cuts, ", documents_name), cuts, starts});
    }
  }
  return cases;
}

inline AttentionProblem problem(const Case& c, DType dtype, const AttentionShape& shape,
                                Mask mask = {}) {
  const int64_t N = c.cuts.total();
  const std::vector<SegmentMap> samples(shape.batch, SegmentMap(N, c.document_starts, true));
  return attention_problem(dtype, shape, N, key_intervals(samples, 0, N, mask));
}

inline constexpr AttentionShape kHeads[] = {
    {.batch = 1, .heads = 4, .kv_heads = 4, .width = 8},   // MHA
    {.batch = 2, .heads = 4, .kv_heads = 2, .width = 8},   // GQA
    {.batch = 1, .heads = 4, .kv_heads = 1, .width = 8}};  // MQA

/// The table's strategies, and what a setting of theirs makes of them.
inline std::vector<AttentionStrategy> strategies_and_variants() {
  std::vector<AttentionStrategy> all(attention_strategies().begin(), attention_strategies().end());
  // Grouped queries on shards this short are not worth helping; here they are helped all the same.
  all.push_back({"lightseq, balanced", "", make_balanced_lightseq_attention, true});
  return all;
}

/// Says how many cells of a grid ran; the suite adds these lines up.
inline void print_cells(int64_t cells) {
  std::printf("%lld cells\n", static_cast<long long>(cells));
}

inline void expect_near(const AttentionResult& got, const AttentionResult& expected,
                        double tolerance, const std::string& where) {
  EXPECT_LE(relative_rms(got.out, expected.out), tolerance) << where << ": out";
  EXPECT_LE(relative_rms_of_logs(got.lse, expected.lse), tolerance) << where << ": lse";
  // A lone token's softmax is constant: its gradient cancels to nothing. The floor is a tenth of
  // the size of the terms that cancel.
  EXPECT_LE(relative_rms(got.dq, expected.dq, 0.1), tolerance) << where << ": dq";
  EXPECT_LE(relative_rms(got.dk, expected.dk, 0.1), tolerance) << where << ": dk";
  EXPECT_LE(relative_rms(got.dv, expected.dv, 0.1), tolerance) << where << ": dv";
}

}  // namespace weft
