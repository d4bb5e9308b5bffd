// What a state scan sends, how often it calls and what it holds, against closed forms; and the
// blocks that All-Scan cuts.
#include <gtest/gtest.h>

#include <cmath>

#include "parallel/comm/recording.hpp"
#include "parallel/sequence/zeco.hpp"
#include "tests/sequence_grid.hpp"
#include "tests/state_scan_formulas.hpp"

namespace weft {
namespace {

ScanByteShape byte_shape(const ScanProblem& p) {
  return {p.ranks, p.states[0].view().nbytes(),
          p.kind == TransitionKind::none ? 0 : p.transitions[0].view().nbytes()};
}

constexpr int kByteRanks[] = {1, 2, 3, 4, 5, 8, 16};

TEST(StateScanBytes, AreTheClosedForm) {
  for (const int ranks : kByteRanks) {
    for (const TransitionKind kind : kTransitionKinds) {
      const ScanProblem p = scan_problem(ranks, kind, kMixedDecay, DType::f32);
      for (const ScanFormula& formula : scan_formulas()) {
        const ScanRun run = run_scan(formula.make, p);
        for (int rank = 0; rank < ranks; ++rank) {
          EXPECT_EQ(run.prefix_bytes[rank], formula.sent(byte_shape(p), rank))
              << formula.name << ", " << name(kind) << ", rank " << rank << " of " << ranks;
          EXPECT_EQ(run.suffix_bytes[rank], formula.sent(byte_shape(p), ranks - 1 - rank))
              << formula.name << ", " << name(kind) << ", rank " << rank << " of " << ranks;
        }
      }
    }
  }
}

/// What the schedules promise, whatever the forms say: a chain moves one state over every cut
/// between neighbours, doubling at most a map a round.
TEST(StateScanBytes, StayWithinWhatTheSchedulesPromise) {
  for (const int ranks : kByteRanks) {
    const ScanByteShape s{ranks, 1000, 10};
    int64_t chain = 0;
    for (int i = 0; i < ranks; ++i) {
      chain += chain_bytes(s, i);
      EXPECT_LE(doubling_bytes(s, i), doubling_rounds(ranks) * s.map());
      EXPECT_LE(two_level_bytes(s, i, default_group(ranks)), default_group(ranks) * s.map());
      EXPECT_EQ(two_level_bytes(s, i, 1), chain_bytes(s, i));
    }
    EXPECT_EQ(chain, (ranks - 1) * s.state);
  }
}

/// One rank's calls on the meta device: nothing runs, everything is seen.
struct MetaScan {
  int64_t bytes = 0, calls = 0, combines = 0, peak = 0;
};

MetaScan scan_on_meta(const MakeScan& make, int ranks, int rank, TransitionKind kind,
                      ScanDirection direction) {
  MetaScan seen;
  Ledger booked;
  const auto world = make_recording_world(rank, ranks);
  ProcessMesh mesh(*world, sequence_mesh(ranks), {.predicted = &booked}, /*strict=*/false);
  const auto compute = make_meta_stream([&](const KernelCall& call) {
    seen.combines += std::string_view(call.name) == "state_combine";
  });
  Arena scratch("scratch", Device::meta, 0), slab("slab", Device::meta, 0);
  const ParameterStore none({}, DType::f32, slab);
  StepContext ctx{.mesh = mesh,
                  .compute = *compute,
                  .scratch = scratch,
                  .parameters = none,
                  .dtype = DType::f32,
                  .loss_sum = {}};
  const auto [B, H, K, V] = kScanShape;
  Tensor transition;
  if (kind == TransitionKind::scalar) transition = slab.allocate("a", DType::f32, {B, H});
  if (kind == TransitionKind::vector) transition = slab.allocate("a", DType::f32, {B, H, K});
  if (kind == TransitionKind::dense) transition = slab.allocate("a", DType::f32, {B, H, K, K});
  const Tensor state = slab.allocate("b", DType::f32, {B, H, K, V});
  const Tensor entering = slab.allocate("s", DType::f32, {B, H, K, V});
  make()->begin({transition, state}, entering, direction, state_tag(0, 0, {}), ctx).finish();
  for (const auto& [key, bytes] : booked.entries()) seen.bytes += bytes;
  for (const Lane lane : {Lane::forward, Lane::backward}) {
    seen.calls += mesh.along(Axis::sequence, lane).calls();
  }
  seen.peak = scratch.peak();
  return seen;
}

TEST(StateScanBytes, AndCallsArePredictedOnTheMetaDevice) {
  for (const int ranks : kByteRanks) {
    for (const TransitionKind kind : kTransitionKinds) {
      const ScanByteShape shape = byte_shape(scan_problem(ranks, kind, kMixedDecay, DType::f32));
      for (const ScanFormula& formula : scan_formulas()) {
        for (int position = 0; position < ranks; ++position) {
          const MetaScan prefix =
              scan_on_meta(formula.make, ranks, position, kind, ScanDirection::prefix);
          const MetaScan suffix =
              scan_on_meta(formula.make, ranks, ranks - 1 - position, kind, ScanDirection::suffix);
          const std::string where = concat(formula.name, ", position ", position, " of ", ranks);
          EXPECT_EQ(prefix.bytes, formula.sent(shape, position)) << where;
          EXPECT_EQ(suffix.bytes, formula.sent(shape, position)) << where;
          EXPECT_EQ(prefix.calls, formula.calls(ranks)) << where;
          EXPECT_EQ(suffix.calls, formula.calls(ranks)) << where;
        }
      }
    }
  }
}

/// Kernels on the stream beside compute are seen too.
TEST(StateScanBytes, KernelsAreSeenOnTheMetaDevice) {
  const auto combines = [](const MakeScan& make, int position) {
    return scan_on_meta(make, 8, position, TransitionKind::vector, ScanDirection::prefix).combines;
  };
  for (const int position : {0, 3, 7}) {
    const bool between = position > 0 && position < 7;
    EXPECT_EQ(combines([] { return make_lasp_scan({}); }, position), between ? 1 : 0);
    EXPECT_EQ(combines([] { return make_zeco_scan({.zeco_blocks = 5}); }, position),
              between ? 5 : 0);
    EXPECT_EQ(combines([] { return make_lasp2_scan({}); }, position), std::max(0, position - 1));
  }
}

/// Scratch of the rank that takes most, in states and transitions.
TEST(StateScanBytes, AndMemoryIsWhatTheDocsSay) {
  for (const int ranks : kByteRanks) {
    for (const TransitionKind kind : kTransitionKinds) {
      const ScanByteShape s = byte_shape(scan_problem(ranks, kind, kMixedDecay, DType::f32));
      const int64_t rounds = doubling_rounds(ranks), group = default_group(ranks);
      const auto most = [&](const MakeScan& make) {
        int64_t peak = 0;
        for (int rank = 0; rank < ranks; ++rank) {
          peak = std::max(peak, scan_on_meta(make, ranks, rank, kind, ScanDirection::prefix).peak);
        }
        return peak;
      };
      const auto expect = [&](const char* what, const MakeScan& make, int64_t bytes, bool exact) {
        const int64_t peak = most(make), rounding = 64 * 3 * (rounds + group);  // of allocations
        EXPECT_LE(peak, bytes + rounding) << what << ", " << ranks << " ranks, " << name(kind);
        if (exact) {
          EXPECT_GE(peak, bytes) << what << ", " << ranks << " ranks, " << name(kind);
        }
      };
      const int64_t chain = ranks > 2 ? s.state : 0;
      expect(
          "lasp", [] { return make_lasp_scan({}); }, chain, true);
      expect(
          "zeco", [] { return make_zeco_scan({.zeco_blocks = 6}); }, chain, true);
      expect(
          "zeco, columns", [] { return make_zeco_scan({.zeco_blocks = 7}); },
          ranks == 1 ? 0 : s.state + chain, true);
      expect(
          "lasp2", [] { return make_lasp2_scan({}); }, ranks * s.map(), true);
      expect(
          "doubling", [] { return make_doubling_scan({}); },
          ranks == 1 ? 0 : s.map() + rounds * (s.state + 2 * s.transition), false);
      expect(
          "two_level", [] { return make_two_level_scan({}); },
          (group + 1) * s.state + 2 * (group - 1) * s.transition, false);
    }
  }
}

// ---- All-Scan's blocks

TEST(StateBlocks, CoverEveryElementOnceAndAreOfOneSize) {
  for (const int64_t R : {1, 2, 3, 6, 7}) {
    for (const int64_t V : {1, 2, 5, 8}) {
      for (int64_t count = 1; count <= R * V + 3; ++count) {
        const std::vector<StateBlock> blocks = state_blocks(R, V, count);
        EXPECT_EQ(std::ssize(blocks), std::min(count, R * V));
        std::vector<int> covered(R * V);
        for (const StateBlock& block : blocks) {
          EXPECT_TRUE(block.last > block.first && block.v_end > block.v_begin);
          // Whole states, or a part of one.
          EXPECT_TRUE(block.last - block.first == 1 || block.v_end - block.v_begin == V);
          for (int64_t r = block.first; r < block.last; ++r) {
            for (int64_t v = block.v_begin; v < block.v_end; ++v) ++covered[r * V + v];
          }
        }
        EXPECT_EQ(covered, std::vector<int>(R * V, 1)) << R << ", " << V << ", " << count;
      }
    }
  }
  EXPECT_EQ(state_blocks(0, 4, 3), (std::vector<StateBlock>{{0, 0, 0, 4}}));
}

TEST(StateBlocks, AreAsManyAsMakeTheShortestChain) {
  constexpr int64_t kState = 2 << 20;  // 32 heads of 128 x 128 in f32
  EXPECT_EQ(shortest_chain_blocks(1, kState), 1);
  EXPECT_EQ(shortest_chain_blocks(2, kState), 1);
  EXPECT_EQ(shortest_chain_blocks(8, kState), 6);
  EXPECT_EQ(shortest_chain_blocks(64, kState), 18);
  EXPECT_EQ(shortest_chain_blocks(256, kState), 36);
  EXPECT_EQ(shortest_chain_blocks(256, 16), 1);
  for (const int ranks : {3, 8, 64, 256}) {
    const auto seconds = [&](int64_t blocks) {
      return static_cast<double>(ranks - 2 + blocks) *
             (8e-6 + kState / (50e9 * static_cast<double>(blocks)));
    };
    const double chosen = seconds(shortest_chain_blocks(ranks, kState));
    for (int64_t blocks = 1; blocks < 100; ++blocks) EXPECT_LE(chosen, 1.01 * seconds(blocks));
  }
}

}  // namespace
}  // namespace weft
