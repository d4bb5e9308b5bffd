// Every strategy of the table equals the naive full softmax, forward and backward, whatever the
// number of ranks, the cuts, the documents and the heads.
#include <gtest/gtest.h>

#include <cmath>

#include "src/kernels/attention.hpp"
#include "src/kernels/pointwise.hpp"
#include "tests/sequence_bytes.hpp"
#include "tests/sequence_grid.hpp"

namespace weft {
namespace {

/// A window that reaches over the neighbour's shard.
constexpr int64_t kWindow = 7;

class Strategies : public testing::TestWithParam<int> {
 protected:
  /// Every strategy and head layout over the grid of this many ranks, without and with a window.
  void run_grid(DType dtype, double tolerance, std::vector<int64_t> windows = {0, kWindow}) {
    int64_t cells = 0;
    for (const Case& c : grid(GetParam())) {
      for (const AttentionShape& shape : kHeads) {
        for (const int64_t window : windows) {
          const AttentionProblem p = problem(c, dtype, shape, {.window = window});
          const AttentionResult expected = oracle_attention(p);
          for (const AttentionStrategy& strategy : strategies_and_variants()) {
            const StrategyRun run = run_strategy(strategy.make, p, c.cuts, true, window);
            const std::string where = concat(strategy.name, ", ", c.name, ", window ", window);
            expect_near(run.result, expected, tolerance, where);
            EXPECT_TRUE(run.ledgers_agree) << where;
            ++cells;
          }
        }
      }
    }
    print_cells(cells);
  }
};

TEST_P(Strategies, EqualFullSoftmaxInF64) {
  run_grid(DType::f64, 1e-12);
}
TEST_P(Strategies, EqualFullSoftmaxInF32) {
  run_grid(DType::f32, 1e-5);
}

TEST_P(Strategies, EqualFullSoftmaxDeliveredLate) {
  set_late_delivery(true);
  run_grid(DType::f64, 1e-12, {0});
  set_late_delivery(false);
}

TEST_P(Strategies, EqualFullSoftmaxBothWays) {
  int64_t cells = 0;
  for (const Case& c : grid(GetParam())) {
    const AttentionProblem p = problem(c, DType::f64, kHeads[1], {.causal = false});
    for (const AttentionStrategy& strategy : strategies_and_variants()) {
      const StrategyRun run = run_strategy(strategy.make, p, c.cuts, /*causal=*/false);
      expect_near(run.result, oracle_attention(p), 1e-12, concat(strategy.name, ", ", c.name));
      ++cells;
    }
  }
  print_cells(cells);
}

/// Heads that no number of ranks divides, and more ranks than heads.
TEST_P(Strategies, EqualFullSoftmaxWithUnevenHeads) {
  int64_t cells = 0;
  const AttentionShape shapes[] = {{.batch = 2, .heads = 6, .kv_heads = 2, .width = 8},
                                   {.batch = 1, .heads = 7, .kv_heads = 7, .width = 4},
                                   {.batch = 1, .heads = 9, .kv_heads = 3, .width = 6},
                                   {.batch = 2, .heads = 3, .kv_heads = 1, .width = 8}};
  for (const auto& [name, cuts] : cuts_of(GetParam())) {
    const Case c{name, cuts, documents_of(cuts)[3].second};
    for (const AttentionShape& shape : shapes) {
      const AttentionProblem p = problem(c, DType::f64, shape);
      for (const AttentionStrategy& strategy : strategies_and_variants()) {
        const StrategyRun run = run_strategy(strategy.make, p, cuts);
        expect_near(run.result, oracle_attention(p), 1e-12,
                    concat(strategy.name, ", ", name, ", ", shape.heads, " heads"));
        ++cells;
      }
    }
  }
  print_cells(cells);
}

TEST_P(Strategies, AreTheSameBitsEveryTime) {
  const Case c{"", cuts_of(GetParam())[1].second, {}};
  const AttentionProblem p = problem(c, DType::f32, kHeads[1]);
  for (const AttentionStrategy& strategy : strategies_and_variants()) {
    const AttentionResult first = run_strategy(strategy.make, p, c.cuts).result;
    for (int again = 0; again < 3; ++again) {
      const AttentionResult other = run_strategy(strategy.make, p, c.cuts).result;
      EXPECT_TRUE(same_bits(other.out, first.out) && same_bits(other.lse, first.lse) &&
                  same_bits(other.dq, first.dq) && same_bits(other.dk, first.dk) &&
                  same_bits(other.dv, first.dv))
          << strategy.name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, Strategies, testing::Values(1, 2, 3, 4, 5, 8));

// ---- Bytes

struct Formula {
  const char* name;
  std::unique_ptr<AttentionParallel> (*make)();
  SentBytes (*sent)(const ByteShape& shape, int rank);
};

constexpr Formula kFormulas[] = {
    {"ring", make_ring_attention, ring_bytes},
    {"rsa", make_rsa_attention, rsa_bytes},
    {"lightseq", make_balanced_lightseq_attention,
     [](const ByteShape& s, int p) { return lightseq_bytes(s, p, s.ranks() - 1); }},
    {"allgather", make_allgather_attention, allgather_bytes},
    {"ulysses", make_ulysses_attention, ulysses_bytes},
};

TEST(StrategyBytes, HaveAFormulaEach) {
  EXPECT_EQ(std::size(kFormulas), attention_strategies().size());
}

TEST(StrategyBytes, AreTheClosedFormWhateverTheCutsAndDocuments) {
  for (const int ranks : {1, 2, 3, 4, 5, 8}) {
    for (const Case& c : grid(ranks)) {
      for (const bool causal : {true, false}) {
        const AttentionProblem p = problem(c, DType::f32, kHeads[1], {.causal = causal});
        const ByteShape shape{c.cuts, kHeads[1], DType::f32, causal};
        for (const Formula& formula : kFormulas) {
          const StrategyRun run = run_strategy(formula.make, p, c.cuts, causal);
          for (int rank = 0; rank < ranks; ++rank) {
            EXPECT_EQ(SentBytes({run.forward_bytes[rank], run.backward_bytes[rank]}),
                      formula.sent(shape, rank))
                << formula.name << ", " << c.name << ", rank " << rank;
          }
        }
      }
    }
  }
}

/// On even shards, printed beside what the transport counts; the ring's and RSA's are what the
/// papers count.
TEST(StrategyBytes, OfEvenShardsAreThePublishedForms) {
  const AttentionShape shape{.batch = 1, .heads = 8, .kv_heads = 8, .width = 8};
  const int64_t T = 6, C = shape.heads * shape.width;
  for (const Formula& formula : kFormulas) {
    for (const int P : {2, 4, 8, 16}) {
      const Case c{"", Cuts::even(T * P, P), {}};
      const StrategyRun run = run_strategy(formula.make, problem(c, DType::f32, shape), c.cuts);
      SentBytes counted, expected;  // of the busiest rank
      for (int rank = 0; rank < P; ++rank) {
        const SentBytes closed = formula.sent({c.cuts, shape, DType::f32}, rank);
        EXPECT_EQ(SentBytes({run.forward_bytes[rank], run.backward_bytes[rank]}), closed);
        counted.forward = std::max(counted.forward, run.forward_bytes[rank]);
        counted.backward = std::max(counted.backward, run.backward_bytes[rank]);
        expected.forward = std::max(expected.forward, closed.forward);
        expected.backward = std::max(expected.backward, closed.backward);
      }
      std::printf("%-10s %2d ranks: forward %7lld, formula %7lld; backward %7lld, formula %7lld\n",
                  formula.name, P, static_cast<long long>(counted.forward),
                  static_cast<long long>(expected.forward),
                  static_cast<long long>(counted.backward),
                  static_cast<long long>(expected.backward));
      if (formula.make != make_ring_attention && formula.make != make_rsa_attention) continue;
      EXPECT_EQ(counted.forward, 2 * (P - 1) * T * C * 4);
      EXPECT_EQ(counted.forward + counted.backward, 6 * (P - 1) * T * C * 4);
    }
  }
}

// ---- Auto

TEST(Cheapest, IsTheStrategyWhoseCountedBytesAreFewest) {
  for (const AttentionShape& shape : kHeads) {
    for (const int ranks : {2, 3, 8}) {
      for (const bool causal : {true, false}) {
        const Case c{"", Cuts::even(5 * ranks, ranks), {}};
        const AttentionProblem p = problem(c, DType::f32, shape, {.causal = causal});
        const AttentionSetting setting{.batch = shape.batch,
                                       .cuts = c.cuts,
                                       .heads = shape.heads,
                                       .kv_heads = shape.kv_heads,
                                       .head_dim = shape.width,
                                       .dtype = DType::f32,
                                       .causal = causal};
        const std::string chosen = cheapest_strategy(setting).name;
        std::map<std::string, int64_t> counted;
        for (const AttentionStrategy& strategy : attention_strategies()) {
          const StrategyRun run = run_strategy(strategy.make, p, c.cuts, causal);
          for (int r = 0; r < ranks; ++r) {
            counted[strategy.name] += run.forward_bytes[r] + run.backward_bytes[r];
          }
          EXPECT_EQ(attention_traffic(strategy, setting).bytes, counted[strategy.name]);
        }
        for (const auto& [name, bytes] : counted) EXPECT_LE(counted[chosen], bytes) << name;
      }
    }
  }
}

// ---- Late delivery finds a missing wait

/// Gathers keys and values in one exchange a peer and computes at once: it forgets to wait.
class ForgetsToWait final : public AttentionParallel {
 public:
  void forward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
               StepContext& ctx) override {
    Communicator& ring = ctx.mesh.along(Axis::sequence);
    const Scope scope(ctx.scratch);
    const int64_t B = shard.k.dim(0), G = shard.k.dim(2), D = shard.k.dim(3);
    const int64_t theirs = shard.cuts.size(ring.prev());
    const Tensor k = ctx.scratch.allocate("k", shard.k.dtype, {B, theirs, G, D});
    const Tensor v = ctx.scratch.allocate("v", shard.k.dtype, {B, theirs, G, D});
    const Tensor tiles =
        ctx.scratch.allocate("tiles", DType::u8, {attention_scratch_bytes(shard.q.dtype, D)});
    fill({.y = out, .value = 0}, ctx.compute);
    fill({.y = lse, .value = -INFINITY}, ctx.compute);
    const Event arrived =
        ring.exchange({send_to(ring.next(), shard.k), send_to(ring.next(), shard.v),
                       receive_from(ring.prev(), k), receive_from(ring.prev(), v)},
                      {}, ctx.compute);
    if (waits) ctx.compute.wait(arrived);
    const auto attend = [&](const Tensor& keys, const Tensor& values, int owner) {
      attention_forward({.out = out,
                         .lse = lse,
                         .scratch = tiles,
                         .block = {.q = shard.q,
                                   .k = keys,
                                   .v = values,
                                   .key_begin = shard.key_begin,
                                   .key_end = shard.key_end,
                                   .first_key = shard.cuts.begin(owner),
                                   .scale = shard.scale}},
                        ctx.compute);
    };
    attend(shard.k, shard.v, ring.rank());
    attend(k, v, ring.prev());
    arrived.wait();
  }

  void backward(const AttentionShard&, const Tensor&, const Tensor&, const Tensor&,
                const AttentionGradients& d, StepContext& ctx) override {
    for (const Tensor& t : {d.dq, d.dk, d.dv}) fill({.y = t, .value = 0}, ctx.compute);
  }

  static bool waits;
};

bool ForgetsToWait::waits = false;

double error_of_forward(bool waits) {
  ForgetsToWait::waits = waits;
  const Case c{"", Cuts::even(10, 2), {}};
  const AttentionProblem p = problem(c, DType::f64, kHeads[0]);
  const auto make = []() -> std::unique_ptr<AttentionParallel> {
    return std::make_unique<ForgetsToWait>();
  };
  set_late_delivery(true);
  const StrategyRun run = run_strategy(make, p, c.cuts);
  set_late_delivery(false);
  return relative_rms(run.result.out, oracle_attention(p).out);
}

TEST(LateDelivery, ExposesAMissingWait) {
  EXPECT_LE(error_of_forward(/*waits=*/true), 1e-12);
  EXPECT_EQ(error_of_forward(/*waits=*/false), kInfinity);  // it read poison: NaN
}

}  // namespace
}  // namespace weft
