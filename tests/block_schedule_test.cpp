// LightSeq's schedule by enumeration: every block once, sends match receives, the published number
// of steps and balance; and when helping is worth its messages.
#include "parallel/sequence/block_schedule.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <utility>

#include "src/core/check.hpp"

namespace weft {
namespace {

constexpr int kNobody = BlockStep::kNobody;

using Schedule = std::vector<std::vector<BlockStep>>;  // [rank][step]

Schedule causal(int ranks, int helped) {
  Schedule schedule;
  for (int rank = 0; rank < ranks; ++rank) {
    schedule.push_back(causal_schedule(ranks, rank, helped));
  }
  return schedule;
}

Schedule full(int ranks) {
  Schedule schedule;
  for (int rank = 0; rank < ranks; ++rank) schedule.push_back(full_schedule(ranks, rank));
  return schedule;
}

/// How often each block (queries of, keys of) is computed.
std::map<std::pair<int, int>, int> blocks(const Schedule& schedule) {
  std::map<std::pair<int, int>, int> count;
  for (int rank = 0; rank < static_cast<int>(schedule.size()); ++rank) {
    for (const BlockStep& step : schedule[rank]) {
      if (step.keys_of != kNobody) ++count[{rank, step.keys_of}];
      if (step.queries_of != kNobody) ++count[{step.queries_of, rank}];
    }
  }
  return count;
}

void expect_each_block_once(const Schedule& schedule, bool is_causal) {
  const int ranks = static_cast<int>(schedule.size());
  const auto count = blocks(schedule);
  for (int i = 0; i < ranks; ++i) {
    for (int j = 0; j < ranks; ++j) {
      const auto found = count.find({i, j});
      const int times = found == count.end() ? 0 : found->second;
      ASSERT_EQ(times, !is_causal || j <= i ? 1 : 0) << ranks << " ranks, block " << i << ", " << j;
    }
  }
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
    }
  }
}

int busiest(const Schedule& schedule) {
  int most = 0;
  for (const auto& steps : schedule) {
    most = std::max(
        most, static_cast<int>(std::count_if(steps.begin(), steps.end(), [](const BlockStep& s) {
          return s.keys_of != kNobody || s.queries_of != kNobody;
        })));
  }
  return most;
}

TEST(BlockSchedule, ComputesEveryCausalBlockOnceForAnyNumberOfHelpers) {
  for (int ranks = 1; ranks <= 64; ++ranks) {
    for (int helped = 0; helped <= (ranks - 1) / 2; ++helped) {
      const Schedule schedule = causal(ranks, helped);
      for (const auto& steps : schedule) ASSERT_EQ(std::ssize(steps), ranks - helped);
      expect_each_block_once(schedule, true);
      expect_sends_to_match_receives(schedule);
    }
  }
}

TEST(BlockSchedule, BalancedHasThePublishedStepsAndBalance) {
  for (int ranks = 1; ranks <= 64; ++ranks) {
    const Schedule schedule = causal(ranks, (ranks - 1) / 2);
    EXPECT_EQ(std::ssize(schedule[0]), ranks / 2 + 1) << ranks;
    const double mean = (ranks + 1) / 2.0;  // P (P + 1) / 2 blocks on P ranks
    const double share = busiest(schedule) / mean;
    const double bound = ranks % 2 == 1 ? 1.0 : (ranks + 2.0) / (ranks + 1.0);
    EXPECT_LE(share, bound + 1e-12) << ranks;
    EXPECT_DOUBLE_EQ(busiest(causal(ranks, 0)) / mean, 2.0 * ranks / (ranks + 1)) << ranks;
  }
}

TEST(BlockSchedule, OfOneRankIsItsOwnBlock) {
  EXPECT_EQ(causal_schedule(1, 0, 0), (std::vector<BlockStep>{{.keys_of = 0}}));
  EXPECT_THROW(causal_schedule(4, 0, 2), Error);
  EXPECT_THROW(causal_schedule(4, 4, 0), Error);
}

TEST(BlockSchedule, BidirectionalComputesEveryBlockOnce) {
  for (int ranks = 1; ranks <= 64; ++ranks) {
    const Schedule schedule = full(ranks);
    expect_each_block_once(schedule, false);
    expect_sends_to_match_receives(schedule);
  }
}

/// A block of T x T tokens in bf16 with gradients in f32.
BlockCost block_cost(double tokens, double heads, double kv_heads, double width) {
  return {.flops = 14 * heads * tokens * tokens * width,
          .key_bytes = kv_heads * tokens * width * (4 * 2 + 2 * 4),
          .query_bytes = heads * tokens * (width * (3 * 2 + 2 * 4) + 3 * 4)};
}

TEST(HelpedDistances, AreAllWithoutGroupedQueries) {
  for (const double tokens : {1.0, 100.0, 1e4, 1e6}) {
    for (int ranks = 1; ranks <= 64; ++ranks) {
      EXPECT_EQ(helped_distances(ranks, block_cost(tokens, 32, 32, 128)), (ranks - 1) / 2);
    }
  }
}

TEST(HelpedDistances, AreNoneForShortShardsWithFewKvHeadsAndAllForLongOnes) {
  for (int ranks = 3; ranks <= 64; ++ranks) {
    // Eight query heads a kv head: a helper's messages weigh about seven times a step's keys.
    EXPECT_EQ(helped_distances(ranks, block_cost(256, 64, 8, 128)), 0) << ranks;
    EXPECT_EQ(helped_distances(ranks, block_cost(32768, 64, 8, 128)), (ranks - 1) / 2) << ranks;
  }
}

TEST(HelpedDistances, HaveTheShortestStepsOfAll) {
  for (const double tokens : {64.0, 512.0, 2048.0, 3000.0, 8192.0}) {
    for (const int ranks : {2, 5, 8, 16}) {
      const BlockCost cost = block_cost(tokens, 32, 8, 64);
      const auto seconds = [&](int helped) {
        double sum = 0;
        for (int t = 1; t < ranks - helped; ++t) {
          const double bytes = cost.key_bytes + (t <= helped ? cost.query_bytes : 0);
          sum += std::max(cost.flops, kFlopsPerByte * bytes);
        }
        return sum;
      };
      const int chosen = helped_distances(ranks, cost);
      for (int helped = 0; helped <= (ranks - 1) / 2; ++helped) {
        EXPECT_LE(seconds(chosen), seconds(helped)) << tokens << " tokens, " << ranks << " ranks";
      }
    }
  }
}

}  // namespace
}  // namespace weft
