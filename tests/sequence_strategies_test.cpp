// Every strategy of the table equals the naive full softmax, forward and backward, whatever the
// number of ranks, the cuts, the documents and the heads.
#include <gtest/gtest.h>

#include <cmath>

#include "src/kernels/attention.hpp"
#include "src/kernels/pointwise.hpp"
#include "tests/sequence_testing.hpp"

namespace weft {
namespace {

struct Case {
  std::string name;
  Cuts cuts;
  std::vector<int64_t> document_starts;
};

/// Cuts of about five tokens a rank: even, uneven, a rank of one token, empty ranks.
std::vector<std::pair<std::string, Cuts>> cuts_of(int ranks) {
  std::vector<int64_t> uneven, one_token, empty;
  for (int p = 0; p < ranks; ++p) {
    uneven.push_back(3 + 5 * p % 7);
    one_token.push_back(p == ranks / 2 ? 1 : 5);
    empty.push_back(p % 3 == 1 ? 0 : 6);
  }
  return {{"even", Cuts::even(5 * ranks, ranks)},
          {"uneven", Cuts::of_sizes(uneven)},
          {"one token", Cuts::of_sizes(one_token)},
          {"empty", Cuts::of_sizes(empty)}};
}

/// Documents that start at, before and after a rank's cut, span three ranks, or crowd in one.
std::vector<std::pair<std::string, std::vector<int64_t>>> documents_of(const Cuts& cuts) {
  const int64_t N = cuts.total(), cut = cuts.begin(cuts.pieces() / 2);
  const auto inside = [&](std::vector<int64_t> starts) {
    std::erase_if(starts, [&](int64_t s) { return s <= 0 || s >= N; });
    std::sort(starts.begin(), starts.end());
    starts.erase(std::unique(starts.begin(), starts.end()), starts.end());
    return starts;
  };
  return {{"no documents", {}},
          {"at a cut", inside({cut})},
          {"before a cut", inside({cut - 1})},
          {"after a cut", inside({cut + 1})},
          {"over three ranks", inside({2, cuts.begin(std::min(3, cuts.pieces() - 1)) + 1})},
          {"three in a rank", inside({cut + 1, cut + 2, cut + 4})}};
}

std::vector<Case> grid(int ranks) {
  std::vector<Case> cases;
  for (const auto& [cuts_name, cuts] : cuts_of(ranks)) {
    for (const auto& [documents_name, starts] : documents_of(cuts)) {
      cases.push_back(
          {concat(ranks, " ranks, ", cuts_name, " cuts, ", documents_name), cuts, starts});
    }
  }
  return cases;
}

AttentionProblem problem(const Case& c, DType dtype, const AttentionShape& shape, Mask mask = {}) {
  const int64_t N = c.cuts.total();
  const std::vector<SegmentMap> samples(shape.batch, SegmentMap(N, c.document_starts, true));
  return attention_problem(dtype, shape, N, key_intervals(samples, 0, N, mask));
}

constexpr AttentionShape kHeads[] = {{.batch = 1, .heads = 4, .kv_heads = 4, .width = 8},   // MHA
                                     {.batch = 2, .heads = 4, .kv_heads = 2, .width = 8},   // GQA
                                     {.batch = 1, .heads = 4, .kv_heads = 1, .width = 8}};  // MQA

void expect_near(const AttentionResult& got, const AttentionResult& expected, double tolerance,
                 const std::string& where) {
  EXPECT_LE(relative_rms(got.out, expected.out), tolerance) << where << ": out";
  EXPECT_LE(relative_rms_of_logs(got.lse, expected.lse), tolerance) << where << ": lse";
  // A lone token's softmax is constant: its gradient cancels to nothing. The floor is a tenth of the
  // size of the terms that cancel.
  EXPECT_LE(relative_rms(got.dq, expected.dq, 0.1), tolerance) << where << ": dq";
  EXPECT_LE(relative_rms(got.dk, expected.dk, 0.1), tolerance) << where << ": dk";
  EXPECT_LE(relative_rms(got.dv, expected.dv, 0.1), tolerance) << where << ": dv";
}

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
