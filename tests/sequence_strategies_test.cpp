// Every strategy of the table equals the naive full softmax, forward and backward, whatever the
// number of ranks, the cuts, the documents and the heads.
#include <gtest/gtest.h>

#include <cmath>

#include "src/kernels/attention.hpp"
#include "src/kernels/pointwise.hpp"
#include "tests/sequence_grid.hpp"

namespace weft {
namespace {

class Strategies : public testing::TestWithParam<int> {
 protected:
  /// Every strategy and head layout over the grid of this many ranks.
  void run_grid(DType dtype, double tolerance) {
    int64_t cells = 0;
    for (const Case& c : grid(GetParam())) {
      for (const AttentionShape& shape : kHeads) {
        const AttentionProblem p = problem(c, dtype, shape);
        const AttentionResult expected = oracle_attention(p);
        for (const AttentionStrategy& strategy : attention_strategies()) {
          const StrategyRun run = run_strategy(strategy.make, p, c.cuts);
          expect_near(run.result, expected, tolerance, concat(strategy.name, ", ", c.name));
          EXPECT_TRUE(run.ledgers_agree) << strategy.name << ", " << c.name;
          ++cells;
        }
      }
    }
    RecordProperty("cells", static_cast<int>(cells));
    std::printf("%lld cells\n", static_cast<long long>(cells));
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
  run_grid(DType::f64, 1e-12);
  set_late_delivery(false);
}

TEST_P(Strategies, EqualFullSoftmaxBothWays) {
  for (const Case& c : grid(GetParam())) {
    const AttentionProblem p = problem(c, DType::f64, kHeads[1], {.causal = false});
    for (const AttentionStrategy& strategy : attention_strategies()) {
      const StrategyRun run = run_strategy(strategy.make, p, c.cuts, /*causal=*/false);
      expect_near(run.result, oracle_attention(p), 1e-12, concat(strategy.name, ", ", c.name));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, Strategies, testing::Values(1, 2, 3, 4, 5, 8));

// ---- Bytes

TEST(RingBytes, AreTheClosedFormWhateverTheCutsAndDocuments) {
  for (const int ranks : {1, 2, 3, 5, 8}) {
    for (const Case& c : grid(ranks)) {
      const AttentionShape shape = kHeads[1];
      const StrategyRun run =
          run_strategy(make_ring_attention, problem(c, DType::f32, shape), c.cuts);
      for (int p = 0; p < ranks; ++p) {
        const int64_t N = c.cuts.total(), per_token = 2 * shape.kv_heads * shape.width * 4;
        const int64_t next = c.cuts.size((p + 1) % ranks), own = c.cuts.size(p);
        const int64_t forward = ranks == 1 ? 0 : shape.batch * per_token * (N - next);
        const int64_t home = ranks == 1 ? 0 : shape.batch * per_token * (N - own);
        EXPECT_EQ(run.forward_bytes[p], forward) << c.name << ", rank " << p;
        EXPECT_EQ(run.backward_bytes[p], forward + home) << c.name << ", rank " << p;
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
