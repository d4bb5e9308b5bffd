// How long a scan takes: the critical path of its schedule against the latency model of
// docs/sequence.md, and what it hides behind computation.
#include <gtest/gtest.h>

#include <algorithm>

#include "parallel/comm/simulated.hpp"
#include "parallel/sequence/scan_bytes.hpp"
#include "src/kernels/pointwise.hpp"
#include "tests/state_scan_testing.hpp"

namespace weft {
namespace {

// Powers of two, so that times are exact.
constexpr double kMessage = 0.25;      // seconds
constexpr double kLink = 1024;         // bytes a second
constexpr double kMemory = 64 * 1024;  // bytes a second
constexpr ScanShape kShape{.batch = 2, .heads = 4, .K = 8, .V = 16};
constexpr int64_t kState = 2 * 4 * 8 * 16 * 4;  // bytes in f32

/// Transfers alone, or with kernels that are bound by memory.
SimulatedMachine machine(bool kernels) {
  SimulatedMachine m{.link_bytes_per_s = kLink, .message_s = kMessage};
  if (kernels) m.memory_bytes_per_s = kMemory;
  return m;
}

Tensor on_meta(std::initializer_list<int64_t> shape) {
  return Tensor::view(nullptr, DType::f32, Device::meta, {shape.begin(), shape.size()});
}

/// The last rank's end of a scan of states without decay, beside a kernel that writes `elements`.
double seconds(const MakeScan& make, int ranks, ScanDirection direction, bool kernels,
               int64_t elements = 0) {
  const std::vector<double> ends = simulate(
      ranks, machine(kernels), SimulatedTime::critical_path, [&](const SimulatedRank& rank) {
        ProcessMesh mesh(rank.world, sequence_mesh(ranks), {}, /*strict=*/false);
        Arena scratch("scratch", Device::meta, 0), slab("slab", Device::meta, 0);
        const ParameterStore none({}, DType::f32, slab);
        StepContext ctx{.mesh = mesh,
                        .compute = rank.compute,
                        .scratch = scratch,
                        .parameters = none,
                        .dtype = DType::f32,
                        .loss_sum = {}};
        const auto [B, H, K, V] = kShape;
        const Tensor state = on_meta({B, H, K, V}), entering = on_meta({B, H, K, V});
        PendingScan pending = make()->begin({{}, state}, entering, direction, {}, ctx);
        if (elements > 0) fill({.y = on_meta({elements}), .value = 0}, ctx.compute);
        pending.finish();
      });
  return *std::max_element(ends.begin(), ends.end());
}

constexpr int kTimedRanks[] = {2, 3, 4, 8, 16};
constexpr ScanDirection kBothWays[] = {ScanDirection::prefix, ScanDirection::suffix};

/// The time of a message of `bytes`.
double message(double bytes) {
  return kMessage + bytes / kLink;
}

TEST(StateScanTime, OfTransfersIsTheModel) {
  for (const int P : kTimedRanks) {
    for (const ScanDirection way : kBothWays) {
      const auto lasp = [] { return make_lasp_scan({}); };
      EXPECT_EQ(seconds(lasp, P, way, false), (P - 1) * message(kState)) << P;
      for (const int64_t n : {1, 2, 4, 8, 16, 64}) {
        const auto zeco = [n] { return make_zeco_scan({.zeco_blocks = n}); };
        EXPECT_EQ(seconds(zeco, P, way, false),
                  static_cast<double>(P - 2 + n) * message(kState / static_cast<double>(n)))
            << P << " ranks, " << n << " blocks";
      }
      const auto lasp2 = [] { return make_lasp2_scan({}); };
      EXPECT_EQ(seconds(lasp2, P, way, false), (P - 1) * message(kState)) << P;
      const auto doubling = [] { return make_doubling_scan({}); };
      EXPECT_EQ(seconds(doubling, P, way, false), doubling_rounds(P) * message(kState)) << P;
    }
  }
}

/// Whole groups: the first member sends to all others of its group, the state passes the groups,
/// and the last leader tells its members.
TEST(StateScanTime, OfTwoLevelsIsThatOfBothOneAfterTheOther) {
  for (const auto& [P, g] : {std::pair{4, 2}, {8, 2}, {8, 4}, {16, 4}, {16, 2}, {16, 16}}) {
    for (const ScanDirection way : kBothWays) {
      const auto make = [size = g] { return make_two_level_scan({.group = size}); };
      const int inside = g - 1, across = P / g - 1, told = across > 0 ? g - 1 : 0;
      EXPECT_EQ(seconds(make, P, way, false), (inside + across + told) * message(kState))
          << P << " ranks, groups of " << g;
    }
  }
}

/// Only the combine stands in the chain: P - 2 ranks have one.
TEST(StateScanTime, OfTheChainHasOneCombineARank) {
  for (const int P : kTimedRanks) {
    const double combine = 3 * kState / kMemory;  // reads two states, writes one
    const auto lasp = [] { return make_lasp_scan({}); };
    const double last = (P - 1) * message(kState) + (P - 2) * combine;
    const double first = message(kState) + kState / kMemory;  // clears its entering state
    EXPECT_EQ(seconds(lasp, P, ScanDirection::prefix, true), std::max(first, last)) << P;
  }
}

/// What a layer computes between begin and finish costs nothing more, or hides the scan.
TEST(StateScanTime, IsHiddenByWhatIsComputedMeanwhile) {
  for (const ScanVariant& variant : scan_variants()) {
    for (const ScanDirection way : kBothWays) {
      const double alone = seconds(variant.make, 8, way, true);
      for (const double other : {0.5 * alone, 2 * alone}) {
        const auto elements = static_cast<int64_t>(other * kMemory / sizeof(float));
        const double both = seconds(variant.make, 8, way, true, elements);
        const double kernel = static_cast<double>(elements) * sizeof(float) / kMemory;
        // lasp2 packs its map on the compute stream first.
        EXPECT_LE(both, std::max(alone, kernel) + 4 * kState / kMemory) << variant.name;
        EXPECT_GE(both, std::max(alone, kernel)) << variant.name;
      }
    }
  }
}

}  // namespace
}  // namespace weft
