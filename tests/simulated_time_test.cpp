// Simulated time: hand-made programs take exactly what they must, and every strategy of the table
// attains the critical path of what it enqueues.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <optional>

#include "parallel/comm/simulated.hpp"
#include "parallel/sequence/simulated_attention.hpp"
#include "src/kernels/attention.hpp"
#include "src/kernels/pointwise.hpp"
#include "tests/sequence_grid.hpp"

namespace weft {
namespace {

// ---- Programs made by hand. All seconds are sums of powers of two: comparisons are exact.

/// A FLOP is a second, a message 1/4 s, a byte 1/8 s.
constexpr SimulatedMachine kMachine{.flops_per_s = 1, .link_bytes_per_s = 8, .message_s = 0.25};

/// A rank with a communicator over all ranks.
struct Player {
  explicit Player(const SimulatedRank& rank, const std::string& label = "all")
      : compute(rank.compute),
        comm(rank.world.everyone(label), Device::cpu, label, {&predicted, &counted}, false) {}

  void work(double seconds) { compute.trace({.name = "work", .cost = {.flops = seconds}}); }
  Event post(std::vector<Message> messages) { return comm.exchange(messages, {}, compute); }

  Ledger predicted, counted;
  Stream& compute;
  Communicator comm;
};

/// A message of so many bytes that nobody stored.
Tensor payload(int64_t bytes) {
  const int64_t dims[] = {bytes};
  return Tensor::view(nullptr, DType::u8, Device::meta, dims);
}

std::vector<double> critical_path(int ranks, const std::function<void(Player&)>& program) {
  return simulate(ranks, kMachine, SimulatedTime::critical_path, [&](const SimulatedRank& rank) {
    Player player(rank);
    program(player);
  });
}

using Seconds = std::vector<double>;

TEST(CriticalPath, APingPongIsTheSumOfItsMessages) {
  constexpr int kRounds = 5;
  const auto program = [](Player& p) {
    for (int turn = 0; turn < 2 * kRounds; ++turn) {
      const bool mine = turn % 2 == p.comm.rank();
      p.compute.wait(p.post(
          {mine ? send_to(p.comm.next(), payload(6)) : receive_from(p.comm.next(), payload(6))}));
    }
  };
  const double message = 0.25 + 6.0 / 8;
  EXPECT_EQ(critical_path(2, program), (Seconds{2 * kRounds * message, 2 * kRounds * message}));
}

/// Posts an exchange of one second with the neighbours of a ring, works and waits.
std::function<void(Player&)> exchange_and_work(double work, bool wait_first) {
  return [=](Player& p) {
    const Event arrived =
        p.post({send_to(p.comm.next(), payload(6)), receive_from(p.comm.prev(), payload(6))});
    if (wait_first) p.compute.wait(arrived);
    p.work(work);
    p.compute.wait(arrived);
  };
}

TEST(CriticalPath, ATransferBehindLongerWorkIsHidden) {
  EXPECT_EQ(critical_path(3, exchange_and_work(4, false)), Seconds(3, 4));
}
TEST(CriticalPath, ATransferSticksOutOfShorterWork) {
  EXPECT_EQ(critical_path(3, exchange_and_work(0.5, false)), Seconds(3, 1));
}
TEST(CriticalPath, WaitingFirstExposesTheTransfer) {
  EXPECT_EQ(critical_path(3, exchange_and_work(4, true)), Seconds(3, 5));
}

TEST(CriticalPath, ATransferStartsWhenTheLastPeerIsThere) {
  EXPECT_EQ(critical_path(2,
                          [](Player& p) {
                            if (p.comm.rank() == 1) p.work(2);
                            exchange_and_work(0.5, false)(p);
                          }),
            (Seconds{3, 3}));
}

TEST(CriticalPath, AChainAddsUp) {
  constexpr int kRanks = 6;
  const auto program = [](Player& p) {
    if (p.comm.rank() > 0) p.compute.wait(p.post({receive_from(p.comm.prev(), payload(2))}));
    p.work(1);
    if (p.comm.rank() + 1 < kRanks) p.compute.wait(p.post({send_to(p.comm.next(), payload(2))}));
  };
  Seconds expected;
  for (int rank = 0; rank < kRanks; ++rank) {
    // Work of all up to here, a transfer of half a second between any two, and the own send.
    expected.push_back(rank + 1 + 0.5 * rank + (rank + 1 < kRanks ? 0.5 : 0));
  }
  EXPECT_EQ(critical_path(kRanks, program), expected);
}

TEST(CriticalPath, TheBusierWayOfTheLinkDecides) {
  // Rank 0 gets 8 and 16 bytes, one after the other, and sends 8 to rank 1 meanwhile.
  const auto program = [](Player& p) {
    std::vector<Message> messages;
    if (p.comm.rank() == 0) {
      messages = {receive_from(1, payload(8)), receive_from(2, payload(16)),
                  send_to(1, payload(8))};
    } else if (p.comm.rank() == 1) {
      messages = {send_to(0, payload(8)), receive_from(0, payload(8))};
    } else {
      messages = {send_to(0, payload(16))};
    }
    p.compute.wait(p.post(messages));
  };
  EXPECT_EQ(critical_path(3, program), (Seconds{3.5, 1.25, 2.25}));
}

TEST(CriticalPath, TransfersOfOneCommunicatorQueueAndThoseOfTwoDoNot) {
  for (const bool one : {true, false}) {
    const Seconds ends =
        simulate(2, kMachine, SimulatedTime::critical_path, [&](const SimulatedRank& rank) {
          Player p(rank, "first"), q(rank, "second");
          const auto post = [](Player& player) {
            return player.post({send_to(player.comm.next(), payload(6)),
                                receive_from(player.comm.prev(), payload(6))});
          };
          const Event first = post(p), second = post(one ? p : q);
          rank.compute.wait(first);
          rank.compute.wait(second);
        });
    EXPECT_EQ(ends, Seconds(2, one ? 2 : 1));
  }
}

TEST(CriticalPath, CollectivesTakeTheirExchanges) {
  constexpr int kRanks = 4;
  const Cuts cuts = Cuts::even(4 * 8, kRanks);  // pieces of 8 f64
  const int64_t all[] = {32}, piece[] = {8};
  const Tensor buffer = Tensor::view(nullptr, DType::f64, Device::meta, all);
  const Tensor scratch = Tensor::view(nullptr, DType::f64, Device::meta, piece);
  const double gather = (kRanks - 1) * (0.25 + 64.0 / 8);  // all pieces in one exchange
  const double scatter = gather;                           // the same, one at a time
  const auto seconds = [&](const std::function<Event(Player&)>& collective) {
    return critical_path(kRanks, [&](Player& p) {
      p.compute.wait(collective(p));
      EXPECT_EQ(p.counted.by_group(), p.predicted.by_group());
    });
  };
  EXPECT_EQ(seconds([&](Player& p) { return p.comm.all_gather(buffer, cuts, {}, p.compute); }),
            Seconds(kRanks, gather));
  EXPECT_EQ(seconds([&](Player& p) {
              return p.comm.reduce_scatter(buffer, cuts, scratch, {}, p.compute);
            }),
            Seconds(kRanks, scatter));
  EXPECT_EQ(seconds([&](Player& p) { return p.comm.all_reduce(buffer, scratch, {}, p.compute); }),
            Seconds(kRanks, gather + scatter));
}

TEST(CriticalPath, StartsAgainWithEveryProgram) {
  const auto program = exchange_and_work(4, false);
  EXPECT_EQ(critical_path(3, program), critical_path(3, program));
}

TEST(CriticalPath, KernelsFollowTheRoofline) {
  const SimulatedMachine machine{.flops_per_s = 4, .memory_bytes_per_s = 2};
  EXPECT_EQ(machine.kernel_s({.flops = 8, .bytes = 2}), 2);
  EXPECT_EQ(machine.kernel_s({.flops = 8, .bytes = 16}), 8);
  EXPECT_EQ(machine.slower(3).kernel_s({.flops = 8, .bytes = 2}), 6);
  EXPECT_EQ(kMachine.slower(2).transfer_s(3, 16), 2 * kMachine.transfer_s(3, 16));
}

TEST(CriticalPath, MessagesThatDoNotMatchAreNamed) {
  try {
    critical_path(2, [](Player& p) {
      p.compute.wait(p.post({send_to(p.comm.next(), payload(6 + p.comm.rank())),
                             receive_from(p.comm.prev(), payload(6))}));
    });
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::mismatch) << error.what();
  }
}

// ---- Strategies

/// Even shards of 64 tokens, and as many kv heads as the most ranks, so that heads can be dealt
/// out.
constexpr int64_t kTokens = 64, kHeadCount = 8, kHeadDim = 16;

AttentionSetting even_setting(int ranks) {
  return {.batch = 1,
          .cuts = Cuts::even(kTokens * ranks, ranks),
          .heads = kHeadCount,
          .kv_heads = kHeadCount,
          .head_dim = kHeadDim,
          .dtype = DType::f32,
          .causal = true};
}

/// FLOPs of two products: of a block that every query sees whole, and of the diagonal one.
double block_flops(double pairs) {
  return 2 * 2.0 * kHeadCount * kHeadDim * pairs;
}
const double kWhole = block_flops(kTokens * kTokens);
const double kDiagonal = block_flops(causal_pairs(0, kTokens, 0, kTokens));

/// A machine on which a whole block takes `block_s` and one pair (k, v) between neighbours `hop_s`.
SimulatedMachine machine_of(double block_s, double hop_s) {
  const double pair_bytes = 2.0 * kTokens * kHeadCount * kHeadDim * 4;
  return {.flops_per_s = kWhole / block_s,
          .link_bytes_per_s = pair_bytes / (0.75 * hop_s),
          .message_s = 0.125 * hop_s};
}

TEST(RingTime, ForwardIsTheClosedForm) {
  // Every rank begins with its diagonal block. Then the last rank has a whole block in every step,
  // and no step is shorter than a hop: it is never ahead of another, so the ring's time is its.
  const double whole = 1, diagonal = kDiagonal / kWhole;
  for (const int ranks : {2, 3, 4, 5, 8}) {
    for (const double hop : {0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 8.0}) {
      const SimulatedLayer run =
          simulate_layer(attention_program(attention_strategy("ring"), even_setting(ranks)),
                         machine_of(whole, hop), SimulatedTime::critical_path);
      const double expected = std::max(diagonal, hop) + (ranks - 2) * std::max(whole, hop) + whole;
      EXPECT_NEAR(run.forward() / expected, 1, 1e-12) << ranks << " ranks, hop of " << hop;
      EXPECT_EQ(run.forward(), run.forward_s.back());
    }
  }
}

TEST(LightSeqTime, ForwardIsBalancedForAnyNumberOfRanks) {
  // The diagonal block and (P - 1) / 2 whole ones on every rank, whether P is odd or even; besides
  // that the parts of helpers are merged, at most one a step.
  const double diagonal = kDiagonal / kWhole;
  const double merge = 3.0 * kTokens * kHeadCount * kHeadDim / kWhole;
  for (int ranks = 2; ranks <= 9; ++ranks) {
    const SimulatedLayer run = simulate_layer(
        attention_program({"", "", make_balanced_lightseq_attention, true}, even_setting(ranks)),
        machine_of(1, 0), SimulatedTime::critical_path);
    const double balanced = diagonal + (ranks - 1) / 2.0;
    EXPECT_GE(run.forward(), balanced * (1 - 1e-12)) << ranks;
    EXPECT_LE(run.forward(), balanced + ranks / 2 * merge) << ranks;
  }
}

/// Whether forward hides its transfers when kernels take longer than they do. Strategies that are
/// not listed have no expectation here, and are held to their critical path all the same.
enum class Schedule { hides, exposes };
const std::map<std::string, Schedule> kExpected{
    {"ring", Schedule::hides},      // a hop travels behind each block
    {"lightseq", Schedule::hides},  // operands a step ahead, results a step behind
    {"allgather",
     Schedule::hides},  // a kv head behind the one before, the first behind the own block
    {"ulysses", Schedule::exposes},  // nothing to compute before the heads are there
    {"rsa", Schedule::exposes},      // every hop is waited for before its block
};

void expect_schedule(const std::string& name, const Overlap& forward) {
  const auto expected = kExpected.find(name);
  if (expected == kExpected.end()) return;
  if (expected->second == Schedule::hides) {
    EXPECT_GE(forward.hidden(), 0.75) << name;
  } else {
    EXPECT_LE(forward.hidden(), 0.01) << name;
  }
}

/// Receives everything before it computes: what a schedule without overlap looks like.
class WaitsFirst final : public AttentionParallel {
 public:
  void forward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
               StepContext& ctx) override {
    Communicator& ring = ctx.mesh.along(Axis::sequence);
    const double whole = static_cast<double>(shard.q.dim(1)) * static_cast<double>(shard.k.dim(1));
    const Tensor scratch =
        ctx.scratch.allocate("tiles", DType::u8, {attention_scratch_bytes(DType::f32, kHeadDim)});
    for (int step = 0; step < ring.size(); ++step) {
      if (step > 0) {
        ctx.compute.wait(ring.exchange(
            {send_to(ring.next(), shard.k), receive_from(ring.prev(), shard.k)}, {}, ctx.compute));
      }
      attention_forward({.out = out,
                         .lse = lse,
                         .scratch = scratch,
                         .block = {.q = shard.q,
                                   .k = shard.k,
                                   .v = shard.v,
                                   .key_begin = shard.key_begin,
                                   .key_end = shard.key_end,
                                   .pairs = whole}},
                        ctx.compute);
    }
  }
  void backward(const AttentionShard&, const Tensor&, const Tensor&, const Tensor&,
                const AttentionGradients&, StepContext&) override {}
};

TEST(Overlap, AScheduleThatWaitsFirstHidesNothing) {
  const auto make = []() -> std::unique_ptr<AttentionParallel> {
    return std::make_unique<WaitsFirst>();
  };
  const SimulatedProgram program = attention_program({"", "", make}, even_setting(4));
  EXPECT_NEAR(overlap_of(program, machine_of(1, 0.25)).forward.hidden(), 0, 1e-12);
}

class StrategyTime : public testing::TestWithParam<int> {};

TEST_P(StrategyTime, TransfersHideAsTheSchedulePromises) {
  for (const AttentionStrategy& strategy : attention_strategies()) {
    SCOPED_TRACE(strategy.name);
    const LayerOverlap overlap =
        overlap_of(attention_program(strategy, even_setting(GetParam())), machine_of(1, 0.25));
    for (const auto& [kernels, transfers, both] : {overlap.forward, overlap.step}) {
      EXPECT_GT(transfers, 0);
      EXPECT_GE(both, std::max(kernels, transfers) * (1 - 1e-12));
      EXPECT_LE(both, (kernels + transfers) * (1 + 1e-12));
    }
    expect_schedule(strategy.name, overlap.forward);
  }
}

TEST_P(StrategyTime, InRealTimeIsTheCriticalPath) {
  // A loaded machine only adds time, some to every wait: it gets more tries, and longer kernels.
  // Few heads make few waits.
  const SimulatedMachine machine = machine_of(/*block_s=*/20e-3, /*hop_s=*/8e-3);
  AttentionSetting setting = even_setting(GetParam());
  setting.heads = setting.kv_heads = 4;
  for (const AttentionStrategy& strategy : attention_strategies()) {
    const SimulatedProgram program = attention_program(strategy, setting);
    const double path = simulate_layer(program, machine, SimulatedTime::critical_path).step();
    double ratio = kInfinity;
    for (const int factor : {1, 1, 2, 2, 4, 4, 8, 8, 16, 16, 32, 32}) {
      const double attained =
          simulate_layer(program, machine.slower(factor), SimulatedTime::attained).step();
      EXPECT_GE(attained, factor * path) << strategy.name << " beats its critical path";
      ratio = std::min(ratio, attained / (factor * path));
      if (ratio <= 1.1) break;
    }
    std::printf("%s: critical path %.1f ms, attained x %.3f\n", strategy.name, 1e3 * path, ratio);
    EXPECT_LE(ratio, 1.1) << strategy.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, StrategyTime, testing::Values(4, 8));

// ---- Bytes

TEST(SimulatedBytes, AreThoseOfARealRun) {
  for (const Case& c : grid(5)) {
    const AttentionShape& shape = kHeads[1];
    for (const AttentionStrategy& strategy : attention_strategies()) {
      const StrategyRun real = run_strategy(strategy.make, problem(c, DType::f32, shape), c.cuts);
      const AttentionSetting setting{.batch = shape.batch,
                                     .cuts = c.cuts,
                                     .heads = shape.heads,
                                     .kv_heads = shape.kv_heads,
                                     .head_dim = shape.width,
                                     .dtype = DType::f32,
                                     .causal = true};
      const SimulatedLayer simulated =
          simulate_layer(attention_program(strategy, setting), {}, SimulatedTime::critical_path);
      EXPECT_EQ(simulated.sent, simulated.booked) << strategy.name << ", " << c.name;
      for (int p = 0; p < c.cuts.pieces(); ++p) {
        EXPECT_EQ(simulated.sent[p].forward, real.forward_bytes[p])
            << strategy.name << ", " << c.name;
        EXPECT_EQ(simulated.sent[p].backward, real.backward_bytes[p])
            << strategy.name << ", " << c.name;
      }
    }
  }
}

}  // namespace
}  // namespace weft
