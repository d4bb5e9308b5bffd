// Every sequence strategy on GPUs equals the naive full softmax: the code is the CPU's, streams and
// transports are the GPU's.
#include <gtest/gtest.h>

#include "tests/cuda/rank_starts.hpp"
#include "tests/sequence_grid.hpp"

namespace weft {
namespace {

using StrategiesOnGpus = OnGpus;

TEST_P(StrategiesOnGpus, EqualFullSoftmaxInF32) {
  const RankStart& start = GetParam();
  int cells = 0;
  for (const Case& c : grid(start.ranks)) {
    // A communicator of NCCL takes a second to make.
    if (start.transport == RankStart::Transport::nccl && !c.name.ends_with("over three ranks")) {
      continue;
    }
    const AttentionShape shape = kHeads[1];
    const AttentionProblem p = problem(c, DType::f32, shape);
    const AttentionResult expected = oracle_attention(p);
    for (const AttentionStrategy& strategy : strategies_and_variants()) {
      const StrategyRun run = run_strategy(strategy.make, p, c.cuts, /*causal=*/true, /*window=*/0,
                                           [&](int, const auto& body) { start(body); });
      expect_near(run.result, expected, 1e-5, concat(strategy.name, ", ", c.name));
      EXPECT_TRUE(run.ledgers_agree) << strategy.name << ", " << c.name;
      ++cells;
    }
  }
  std::printf("%d cells\n", cells);
}

INSTANTIATE_TEST_SUITE_P(Cuda, StrategiesOnGpus, testing::ValuesIn(kRankStarts), start_name);

}  // namespace
}  // namespace weft
