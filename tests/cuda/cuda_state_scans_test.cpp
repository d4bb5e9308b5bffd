// Every state scan on GPUs equals the naive fold in f64, both ways.
#include <gtest/gtest.h>

#include "tests/cuda/rank_starts.hpp"
#include "tests/state_scan_testing.hpp"

namespace weft {
namespace {

using StateScansOnGpus = OnGpus;

TEST_P(StateScansOnGpus, EqualTheNaiveFoldInF32) {
  const RankStart& start = GetParam();
  int cells = 0;
  for (const TransitionKind kind : kTransitionKinds) {
    // A communicator of NCCL takes a second to make.
    if (start.transport == RankStart::Transport::nccl && kind != TransitionKind::dense) continue;
    const ScanProblem p = scan_problem(start.ranks, kind, kMixedDecay, DType::f32);
    for (const StateScanKind& scan : state_scans()) {
      const ScanRun run =
          run_scan([&] { return scan.make({}); }, p, [&](int, const auto& body) { start(body); });
      EXPECT_LE(error_of(run, p), 1e-6) << scan.name << ", " << name(kind);
      EXPECT_TRUE(run.ledgers_agree) << scan.name << ", " << name(kind);
      ++cells;
    }
  }
  std::printf("%d cells\n", cells);
}

INSTANTIATE_TEST_SUITE_P(Cuda, StateScansOnGpus, testing::ValuesIn(kRankStarts), start_name);

}  // namespace
}  // namespace weft
