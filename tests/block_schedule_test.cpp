// LightSeq's schedule by enumeration: every query meets every block once, sends match receives, the
// published number of steps, balance; and when helping is worth its messages.
#include "parallel/sequence/block_schedule.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "src/core/check.hpp"

namespace weft {
namespace {

constexpr int kNobody = BlockStep::kNobody;

using Schedule = std::vector<std::vector<BlockStep>>;  // [rank][step]

Schedule causal(int ranks, int halves) {
  Schedule schedule;
  for (int rank = 0; rank < ranks; ++rank) {
    schedule.push_back(causal_schedule(ranks, rank, halves));
  }
  return schedule;
}

Schedule full(int ranks) {
  Schedule schedule;
  for (int rank = 0; rank < ranks; ++rank) schedule.push_back(full_schedule(ranks, rank));
  return schedule;
}

/// Uneven shards, empty ones and such of a single token among them.
int64_t tokens_of(int rank) {
  return 5 * rank % 7;
}

/// How often a query of a shard meets the keys of a rank: (shard, query, keys of).
std::map<std::tuple<int, int64_t, int>, int> meetings(const Schedule& schedule) {
  std::map<std::tuple<int, int64_t, int>, int> count;
  const auto add = [&](int shard, const QueryRange& range, int keys_of) {
    for (int64_t query = range.begin; query < range.end; ++query) ++count[{shard, query, keys_of}];
  };
  for (int rank = 0; rank < static_cast<int>(schedule.size()); ++rank) {
    for (const BlockStep& step : schedule[rank]) {
      if (step.keys_of != kNobody) add(rank, step.kept(tokens_of(rank)), step.keys_of);
      const int other = step.queries_of;
      if (other != kNobody) add(other, step.given(tokens_of(other)), rank);
    }
  }
  return count;
}

void expect_each_query_and_block_once(const Schedule& schedule, bool is_causal) {
  const int ranks = static_cast<int>(schedule.size());
  std::map<std::tuple<int, int64_t, int>, int> once;
  for (int i = 0; i < ranks; ++i) {
    for (int j = 0; j < (is_causal ? i + 1 : ranks); ++j) {
      for (int64_t query = 0; query < tokens_of(i); ++query) once[{i, query, j}] = 1;
    }
  }
  ASSERT_EQ(meetings(schedule), once) << ranks << " ranks";
}

void expect_sends_to_match_receives(const Schedule& schedule) {
  const int ranks = static_cast<int>(schedule.size());
  for (size_t s = 0; s < schedule[0].size(); ++s) {
    for (int rank = 0; rank < ranks; ++rank) {
      const BlockStep& step = schedule[rank][s];
      if (step.keys_to != kNobody) {
        ASSERT_EQ(schedule[step.keys_to][s].keys_of, rank);
      }
      if (step.keys_of != kNobody && step.keys_of != rank) {
        ASSERT_EQ(schedule[step.keys_of][s].keys_to, rank);
      }
      if (step.helped_by != kNobody) {
        ASSERT_EQ(schedule[step.helped_by][s].queries_of, rank);
      }
      if (step.queries_of != kNobody) {
        ASSERT_EQ(schedule[step.queries_of][s].helped_by, rank);
      }
      ASSERT_FALSE(step.keys_of != kNobody && step.queries_of != kNobody) << "two blocks at once";
      ASSERT_EQ(step.shared, schedule[0][s].shared) << "ranks disagree";
    }
  }
}

/// Blocks that the rank computes, by the share of the queries in each: the own block counts whole.
double work(const std::vector<BlockStep>& steps) {
  constexpr int64_t kTokens = 2;
  int64_t queries = 0;
  for (const BlockStep& step : steps) {
    if (step.keys_of != kNobody) queries += step.kept(kTokens).size();
    if (step.queries_of != kNobody) queries += step.given(kTokens).size();
  }
  return static_cast<double>(queries) / kTokens;
}

TEST(BlockSchedule, ComputesEveryCausalBlockOnceForAnyNumberOfHelpers) {
  for (int ranks = 1; ranks <= 40; ++ranks) {
    for (int halves = 0; halves < ranks; ++halves) {
      const Schedule schedule = causal(ranks, halves);
      for (const auto& steps : schedule) ASSERT_EQ(std::ssize(steps), ranks - halves / 2);
      expect_each_query_and_block_once(schedule, true);
      expect_sends_to_match_receives(schedule);
    }
  }
}

TEST(BlockSchedule, BalancedHasThePublishedStepsAndTheSameWorkOnEveryRank) {
  for (int ranks = 1; ranks <= 64; ++ranks) {
    const Schedule schedule = causal(ranks, ranks - 1);
    EXPECT_EQ(std::ssize(schedule[0]), ranks / 2 + 1) << ranks;
    for (const auto& steps : schedule) {
      EXPECT_EQ(work(steps), (ranks + 1) / 2.0) << ranks;  // P (P + 1) / 2 blocks on P ranks
    }
  }
}

TEST(BlockSchedule, WithoutTheHalfOrWithoutHelpTheLastRankIsTheBusiest) {
  for (int ranks = 2; ranks <= 64; ++ranks) {
    EXPECT_EQ(work(causal_schedule(ranks, ranks - 1, 0)), ranks);
    if (ranks % 2 == 0) {
      EXPECT_EQ(work(causal_schedule(ranks, ranks - 1, ranks - 2)), ranks / 2 + 1);
    }
  }
}

TEST(BlockSchedule, OfOneRankIsItsOwnBlock) {
  EXPECT_EQ(causal_schedule(1, 0, 0), (std::vector<BlockStep>{{.keys_of = 0}}));
  EXPECT_THROW(causal_schedule(4, 0, 4), Error);
  EXPECT_THROW(causal_schedule(4, 4, 0), Error);
}

TEST(BlockSchedule, OfTwoRanksSharesTheOneBlockBelowTheDiagonal) {
  const std::vector<BlockStep> early = causal_schedule(2, 0, 1), late = causal_schedule(2, 1, 1);
  EXPECT_EQ(early, (std::vector<BlockStep>{{.keys_of = 0},
                                           {.keys_to = 1, .queries_of = 1, .shared = true}}));
  EXPECT_EQ(late, (std::vector<BlockStep>{{.keys_of = 1},
                                          {.keys_of = 0, .helped_by = 0, .shared = true}}));
  EXPECT_EQ(late[1].kept(7), (QueryRange{0, 4}));
  EXPECT_EQ(early[1].given(7), (QueryRange{4, 7}));
}

TEST(BlockSchedule, BidirectionalComputesEveryBlockOnce) {
  for (int ranks = 1; ranks <= 64; ++ranks) {
    const Schedule schedule = full(ranks);
    expect_each_query_and_block_once(schedule, false);
    expect_sends_to_match_receives(schedule);
  }
}

/// A block of T x T tokens in bf16 with gradients in f32.
BlockCost block_cost(double tokens, double heads, double kv_heads, double width) {
  return {.flops = 14 * heads * tokens * tokens * width,
          .key_bytes = kv_heads * tokens * width * (4 * 2 + 2 * 4),
          .query_bytes = heads * tokens * (width * (3 * 2 + 2 * 4) + 3 * 4)};
}

TEST(HelpedHalves, AreAllWholeDistancesWithoutGroupedQueries) {
  for (const double tokens : {1.0, 100.0, 1e4, 1e6}) {
    for (int ranks = 1; ranks <= 64; ++ranks) {
      const int halves = helped_halves(ranks, block_cost(tokens, 32, 32, 128));
      EXPECT_EQ(halves / 2, (ranks - 1) / 2) << ranks << " ranks, " << tokens << " tokens";
    }
  }
}

TEST(HelpedHalves, ShareTheLastBlockOfAnEvenNumberOfRanksWhenComputingItIsLongest) {
  for (int ranks = 2; ranks <= 64; ranks += 2) {
    // Where messages decide, half of the queries come on top of the keys and save nothing.
    EXPECT_EQ(helped_halves(ranks, block_cost(1000, 32, 32, 128)), ranks - 2) << ranks;
    EXPECT_EQ(helped_halves(ranks, block_cost(1e4, 32, 32, 128)), ranks - 1) << ranks;
  }
}

TEST(HelpedHalves, AreNoneForShortShardsWithFewKvHeadsAndAllForLongOnes) {
  for (int ranks = 2; ranks <= 64; ++ranks) {
    // Eight query heads a kv head: a helper's messages weigh about seven times a step's keys.
    EXPECT_EQ(helped_halves(ranks, block_cost(256, 64, 8, 128)), 0) << ranks;
    EXPECT_EQ(helped_halves(ranks, block_cost(32768, 64, 8, 128)), ranks - 1) << ranks;
  }
}

/// The schedule's time, read off its steps: the busiest rank's share of a block or the messages.
double seconds(const Schedule& schedule, const BlockCost& cost) {
  constexpr int64_t kTokens = 2;
  const auto share = [](const QueryRange& range) {
    return static_cast<double>(range.size()) / kTokens;
  };
  double sum = 0;
  for (size_t s = 1; s < schedule[0].size(); ++s) {
    double computed = 0, keys = 0, queries = 0;
    for (const auto& steps : schedule) {
      const BlockStep& step = steps[s];
      if (step.keys_of != kNobody) {
        computed = std::max(computed, share(step.kept(kTokens)));
        keys = 1;
      }
      if (step.queries_of != kNobody) {
        computed = std::max(computed, share(step.given(kTokens)));
        queries = std::max(queries, share(step.given(kTokens)));
      }
    }
    sum += std::max(computed * cost.flops,
                    kFlopsPerByte * (keys * cost.key_bytes + queries * cost.query_bytes));
  }
  return sum;
}

TEST(HelpedHalves, HaveTheShortestStepsOfAll) {
  for (const double tokens : {64.0, 512.0, 2048.0, 3000.0, 4096.0, 8192.0}) {
    for (const int ranks : {2, 4, 5, 8, 16}) {
      const BlockCost cost = block_cost(tokens, 32, 8, 64);
      const double chosen = seconds(causal(ranks, helped_halves(ranks, cost)), cost);
      for (int halves = 0; halves < ranks; ++halves) {
        EXPECT_LE(chosen, seconds(causal(ranks, halves), cost))
            << tokens << " tokens, " << ranks << " ranks, " << halves << " halves";
      }
    }
  }
}

}  // namespace
}  // namespace weft
