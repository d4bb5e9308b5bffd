// State scans in simulated time: real threads attain the critical path of every scan of the table,
// the pipelined chain stays near one state's transfer where the others grow with the ranks, and
// what a layer sends for them is the closed form whatever its tokens.
#include "parallel/sequence/simulated_scan.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>

#include "parallel/sequence/scan_bytes.hpp"
#include "parallel/sequence/zeco.hpp"
#include "tests/testing.hpp"

namespace weft {
namespace {

constexpr StateKind kKinds[] = {StateKind::none, StateKind::fixed, StateKind::scalar,
                                StateKind::vector, StateKind::delta};

ScanSetting setting_of(int ranks, StateKind kind, int64_t heads = 16, int64_t tokens = 0) {
  return {.batch = 1,
          .heads = heads,
          .key_dim = 128,
          .value_dim = 128,
          .dtype = DType::f32,
          .kind = kind,
          .cuts = Cuts::even(tokens, ranks)};
}

SimulatedLayer on_critical_path(const char* scan, const ScanSetting& setting,
                                const SimulatedMachine& machine) {
  return simulate_layer(scan_program(state_scan(scan), setting), machine,
                        SimulatedTime::critical_path);
}

// ---- Time

/// A message takes 8 us and a byte 20 ps: the machine that zeco cuts its blocks for.
constexpr double kMessage = 8e-6, kLink = 50e9;
constexpr SimulatedMachine kTransfers{.link_bytes_per_s = kLink, .message_s = kMessage};

class ScanOnRanks : public testing::TestWithParam<int> {};

TEST_P(ScanOnRanks, InRealTimeIsTheCriticalPath) {
  // Messages of a MiB take 29 us, combines 16 us; a hundred times as long, waking a thread is
  // little of either. A loaded machine only adds time: it gets more tries, and longer ones.
  const SimulatedMachine machine =
      SimulatedMachine{
          .memory_bytes_per_s = 200e9, .link_bytes_per_s = kLink, .message_s = kMessage}
          .slower(100);
  for (const StateScanKind& scan : state_scans()) {
    for (const StateKind kind : {StateKind::scalar, StateKind::delta}) {
      const SimulatedProgram program = scan_program(scan, setting_of(GetParam(), kind));
      const double path = simulate_layer(program, machine, SimulatedTime::critical_path).step();
      double ratio = kInfinity;
      for (const int factor : {1, 2, 4, 4, 8, 8, 16, 16, 32, 32}) {
        const double attained =
            simulate_layer(program, machine.slower(factor), SimulatedTime::attained).step();
        EXPECT_GE(attained, factor * path) << scan.name << " beats its critical path";
        ratio = std::min(ratio, attained / (factor * path));
        if (ratio <= 1.1) break;
      }
      std::printf("%s, %s: critical path %.1f ms, attained x %.3f\n", scan.name,
                  kind == StateKind::delta ? "dense" : "scalar", 1e3 * path, ratio);
      EXPECT_LE(ratio, 1.1) << scan.name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, ScanOnRanks, testing::Values(4, 8, 16));

/// The figure of ZeCO's paper: one state's transfer, and a hop of one block for every further rank.
TEST(ScanCrossover, ZecoTakesOneTransferAndHopsWhereTheOthersTakeOneARank) {
  constexpr int kRanks = 16;
  for (const int64_t heads : {32, 512, 16384}) {  // 2 MiB, 32 MiB, 1 GiB
    const ScanSetting setting = setting_of(kRanks, StateKind::scalar, heads);
    const auto bytes = static_cast<double>(setting.state_bytes());
    const int64_t blocks = shortest_chain_blocks(kRanks, setting.state_bytes());
    const int64_t block_heads = (heads + blocks - 1) / blocks;  // whole heads: the largest block
    ASSERT_LE(blocks, heads);
    const double transfer = bytes / kLink, block = transfer * block_heads / heads;
    const double hops = (kRanks - 2) * (kMessage + block) + blocks * kMessage;
    const double zeco = on_critical_path("zeco", setting, kTransfers).forward();
    EXPECT_LE(zeco, 1.15 * transfer + hops) << bytes;
    EXPECT_GE(zeco, transfer) << bytes;
    for (const char* grows : {"lasp", "lasp2"}) {
      const double seconds = on_critical_path(grows, setting, kTransfers).forward();
      EXPECT_GE(seconds, 0.9 * (kRanks - 1) * transfer) << grows << ", " << bytes;
      EXPECT_GE(seconds, 2 * zeco) << grows << ", " << bytes;
    }
  }
  // The hops are less and less of it.
  const ScanSetting large = setting_of(kRanks, StateKind::scalar, 16384);
  EXPECT_LE(on_critical_path("zeco", large, kTransfers).forward(),
            1.2 * static_cast<double>(large.state_bytes()) / kLink);
}

TEST(ScanCrossover, OfSmallStatesAndManyRanksIsDoublings) {
  const auto seconds = [](const char* scan, int64_t heads) {
    return on_critical_path(scan, setting_of(64, StateKind::scalar, heads), kTransfers).forward();
  };
  EXPECT_LT(2 * seconds("doubling", 8), seconds("zeco", 8));        // 512 KiB
  EXPECT_LT(2 * seconds("zeco", 1024), seconds("doubling", 1024));  // 64 MiB
}

/// A layer with its scans takes at least as long as either, at most as long as one after the other.
TEST(ScanInALayer, IsBetweenHiddenAndExposed) {
  constexpr int kRanks = 4;
  const SimulatedMachine machine{.flops_per_s = 60e12,
                                 .memory_bytes_per_s = 3e12,
                                 .link_bytes_per_s = kLink,
                                 .message_s = kMessage};
  for (const StateKind kind : {StateKind::fixed, StateKind::vector, StateKind::delta}) {
    const ScanSetting alone = setting_of(kRanks, kind), layer = setting_of(kRanks, kind, 16, 16384);
    const double shard =
        simulate_layer(one_shard_program(layer), machine, SimulatedTime::critical_path).step();
    EXPECT_GT(shard, 0);
    for (const StateScanKind& scan : state_scans()) {
      const double scans = on_critical_path(scan.name, alone, machine).step();
      const double both = on_critical_path(scan.name, layer, machine).step();
      EXPECT_GE(both, std::max(scans, shard) * (1 - 1e-12)) << scan.name;
      // A shard alone is spared delta's summaries.
      if (kind == StateKind::delta) continue;
      EXPECT_LE(both, (scans + shard) * (1 + 1e-12)) << scan.name;
    }
  }
}

/// Delta has nothing to compute beside a prefix; the others have their local outputs.
TEST(ScanInALayer, HidesBehindLocalOutputsWhereThereAreAny) {
  const SimulatedMachine machine{.flops_per_s = 60e12,
                                 .memory_bytes_per_s = 3e12,
                                 .link_bytes_per_s = kLink,
                                 .message_s = kMessage};
  for (const StateKind kind : {StateKind::scalar, StateKind::delta}) {
    const SimulatedProgram program =
        scan_program(state_scan("zeco"), setting_of(4, kind, 16, 1 << 20));
    const Overlap forward = overlap_of(program, machine).forward;
    EXPECT_GT(forward.transfers_s, 0);
    EXPECT_NEAR(forward.hidden(), kind == StateKind::delta ? 0 : 1, 1e-6);
  }
}

// ---- Bytes

/// Both passes of every scan, on every rank.
void expect_closed_forms(const ScanSetting& setting) {
  const int ranks = setting.cuts.pieces();
  const ScanByteShape bytes{ranks, setting.state_bytes(), setting.transition_bytes()};
  for (const StateScanKind& scan : state_scans()) {
    const SimulatedLayer run = on_critical_path(scan.name, setting, {});
    EXPECT_EQ(run.sent, run.booked) << scan.name;
    for (int rank = 0; rank < ranks; ++rank) {
      const auto form = [&](int position) {
        return scan_bytes(scan.name, bytes, position, setting.options);
      };
      EXPECT_EQ(run.sent[rank].forward, form(rank)) << scan.name;
      EXPECT_EQ(run.sent[rank].backward, form(ranks - 1 - rank)) << scan.name;
    }
  }
}

TEST(SimulatedScanBytes, AreTheClosedFormWhateverTheTokens) {
  for (const int ranks : {1, 2, 4, 8, 16}) {
    for (const StateKind kind : kKinds) {
      for (const int64_t tokens : {0, 100, 65536, 262144}) {
        expect_closed_forms(setting_of(ranks, kind, 3, tokens));
      }
    }
  }
}

TEST(SimulatedScanBytes, AreTheClosedFormWithOptions) {
  for (const int ranks : {4, 8}) {
    for (const int option : {1, 3, 8}) {
      ScanSetting setting = setting_of(ranks, StateKind::vector, 3, 100);
      setting.options = {.zeco_blocks = option, .group = option};
      expect_closed_forms(setting);
    }
  }
}

TEST(SimulatedScanBytes, OfAStateAndATransition) {
  const auto bytes = [](StateKind kind) {
    const ScanSetting setting = setting_of(2, kind, 3);
    return std::pair{setting.state_bytes(), setting.transition_bytes()};
  };
  constexpr int64_t kState = 3 * 128 * 128 * 4;
  EXPECT_EQ(bytes(StateKind::none), (std::pair<int64_t, int64_t>{kState, 0}));
  EXPECT_EQ(bytes(StateKind::fixed), (std::pair<int64_t, int64_t>{kState, 3 * 4}));
  EXPECT_EQ(bytes(StateKind::scalar), (std::pair<int64_t, int64_t>{kState, 3 * 4}));
  EXPECT_EQ(bytes(StateKind::vector), (std::pair<int64_t, int64_t>{kState, 3 * 128 * 4}));
  EXPECT_EQ(bytes(StateKind::delta), (std::pair<int64_t, int64_t>{kState, 3 * 128 * 128 * 4}));
}

}  // namespace
}  // namespace weft
