// Mistakes that sequence parallelism invites, made in every strategy: each must show in the
// numbers. And documents, which must not touch one another by a bit.
#include <gtest/gtest.h>

#include <atomic>

#include "parallel/sequence/attention_blocks.hpp"
#include "src/kernels/pointwise.hpp"
#include "tests/flawed_worlds.hpp"
#include "tests/sequence_grid.hpp"

namespace weft {
namespace {

using Make = std::function<std::unique_ptr<AttentionParallel>()>;

/// A strategy on a problem in which each of its messages matters to the result.
struct Subject {
  std::string name;
  Make make;
  int ranks = 3;
  bool causal = false;  // both ways every rank needs every key
  int64_t window = 0;

  Case layout() const { return {name, Cuts::even(5 * ranks, ranks), {}}; }
  AttentionProblem attention() const {
    return problem(layout(), DType::f64, kHeads[1], {.causal = causal, .window = window});
  }
  StrategyRun run(const Make& instead, const StartRanks& start = {}) const {
    return run_strategy(instead, attention(), layout().cuts, causal, window, start);
  }
  friend void PrintTo(const Subject& subject, std::ostream* out) { *out << subject.name; }
};

std::vector<Subject> subjects() {
  std::vector<Subject> all;
  for (const AttentionStrategy& strategy : attention_strategies()) {
    all.push_back({strategy.name, strategy.make});
  }
  all.push_back({"lightseq_helping", make_balanced_lightseq_attention, 3, true});
  // Halves of the queries: of the only block that travels, and beside whole ones.
  all.push_back({"lightseq_sharing", make_balanced_lightseq_attention, 2, true});
  all.push_back({"lightseq_helping_and_sharing", make_balanced_lightseq_attention, 4, true});
  // With two ranks each computes for queries that see all keys.
  all.push_back({"allgather_swapping", make_allgather_attention, 2, true});
  all.push_back({"halo", make_windowed_attention, 3, true, 7});
  return all;
}

/// The largest error of a run, infinite when its ranks disagree.
double error_of(const Subject& subject, const Make& make, const StartRanks& start = {}) {
  AttentionResult got;
  try {
    got = subject.run(make, start).result;
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::mismatch) << e.what();
    return kInfinity;
  }
  const AttentionResult expected = oracle_attention(subject.attention());
  return std::max({relative_rms(got.out, expected.out), relative_rms(got.dq, expected.dq),
                   relative_rms(got.dk, expected.dk), relative_rms(got.dv, expected.dv)});
}

class Mutants : public testing::TestWithParam<Subject> {
 protected:
  void SetUp() override { set_poison(true); }
  void TearDown() override { set_poison(false); }

  void expect_found(const Make& make) { EXPECT_GT(error_of(GetParam(), make), 1e-3); }
};

TEST_P(Mutants, AreNotThereToBeginWith) {
  EXPECT_LE(error_of(GetParam(), GetParam().make), 1e-12);
}

// ---- Wrong strategies

/// A strategy with something wrong in it.
class Flawed : public AttentionParallel {
 public:
  explicit Flawed(const Make& make) : sound_(make()) {}

  void forward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
               StepContext& ctx) override {
    sound_->forward(shard, out, lse, ctx);
  }
  void backward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
                const Tensor& dout, const AttentionGradients& d, StepContext& ctx) override {
    sound_->backward(shard, out, lse, dout, d, ctx);
  }

 protected:
  /// The own block's gradients are added to what is there.
  void add_own_block(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
                     const Tensor& dout, const AttentionGradients& d, StepContext& ctx) const {
    const Scope scope(ctx.scratch);
    const Tensor delta =
        ctx.scratch.allocate("delta", lse.dtype, {lse.dim(0), lse.dim(1), lse.dim(2)});
    attention_delta({.delta = delta, .out = out, .dout = dout}, ctx.compute);
    attention_backward({.dq = d.dq,
                        .dk = d.dk,
                        .dv = d.dv,
                        .scratch = attention_tiles(shard, ctx),
                        .dout = dout,
                        .lse = lse,
                        .delta = delta,
                        .block = own_block(shard, ctx)},
                       ctx.compute);
  }

  AttentionBlock own_block(const AttentionShard& shard, StepContext& ctx) const {
    const Queries queries = own_queries(shard, ctx);
    return block_of(shard, queries, {shard.k, shard.v}, queries.first);
  }

  std::unique_ptr<AttentionParallel> sound_;
};

template <class Mutant>
Make mutant_of(const Make& make) {
  return [&make] { return std::make_unique<Mutant>(make); };
}

class AttendsABlockTwice final : public Flawed {
  using Flawed::Flawed;
  void forward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
               StepContext& ctx) override {
    sound_->forward(shard, out, lse, ctx);
    const Scope scope(ctx.scratch);
    attention_forward({.out = out,
                       .lse = lse,
                       .scratch = attention_tiles(shard, ctx),
                       .block = own_block(shard, ctx)},
                      ctx.compute);
  }
};
TEST_P(Mutants, ABlockAttendedTwiceIsFound) {
  expect_found(mutant_of<AttendsABlockTwice>(GetParam().make));
}

class DifferentiatesABlockTwice final : public Flawed {
  using Flawed::Flawed;
  void backward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
                const Tensor& dout, const AttentionGradients& d, StepContext& ctx) override {
    sound_->backward(shard, out, lse, dout, d, ctx);
    add_own_block(shard, out, lse, dout, d, ctx);
  }
};
TEST_P(Mutants, ABlockDifferentiatedTwiceIsFound) {
  expect_found(mutant_of<DifferentiatesABlockTwice>(GetParam().make));
}

/// delta = rowsum(dout o out) of an output of zeros.
class ForgetsDelta final : public Flawed {
  using Flawed::Flawed;
  void backward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
                const Tensor& dout, const AttentionGradients& d, StepContext& ctx) override {
    fill({.y = out, .value = 0}, ctx.compute);
    sound_->backward(shard, out, lse, dout, d, ctx);
  }
};
TEST_P(Mutants, AMissingDeltaIsFound) {
  expect_found(mutant_of<ForgetsDelta>(GetParam().make));
}

/// Keeps of dk and dv what the own queries give: what others found never comes home.
class DropsGradientsOfOthers final : public Flawed {
  using Flawed::Flawed;
  void backward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
                const Tensor& dout, const AttentionGradients& d, StepContext& ctx) override {
    sound_->backward(shard, out, lse, dout, d, ctx);
    clear({d.dk, d.dv}, ctx);
    const Owned dq = copy_of(d.dq);
    add_own_block(shard, out, lse, dout, {.dq = dq, .dk = d.dk, .dv = d.dv}, ctx);
  }
};
TEST_P(Mutants, GradientsThatDoNotComeHomeAreFound) {
  expect_found(mutant_of<DropsGradientsOfOthers>(GetParam().make));
}

// ---- Wrong transports

TEST_P(Mutants, ASwappedPairOfRanksIsFound) {
  Subject subject = GetParam();
  subject.causal = true;  // both ways, without documents, the order of the ranks means nothing
  const double error =
      error_of(subject, subject.make, [](int ranks, const std::function<void(World&)>& body) {
        run_ranks(ranks, [&](World& world) {
          SwapsRanks swapped(world);
          body(swapped);
        });
      });
  EXPECT_GT(error, 1e-3);
}

TEST_P(Mutants, EveryMessageThatIsLostIsFound) {
  const Subject& subject = GetParam();
  int64_t cells = 0;
  for (int victim = 0; victim < subject.ranks; ++victim) {
    for (int message = 0;; ++message) {
      std::atomic<bool> lost = false;
      const double error =
          error_of(subject, subject.make, [&](int ranks, const std::function<void(World&)>& body) {
            run_ranks(ranks, [&](World& world) {
              LosesAMessage lossy(world, world.rank() == victim ? message : INT32_MAX);
              body(lossy);
              if (world.rank() == victim) lost = lossy.lost();
            });
          });
      if (!lost) break;
      EXPECT_GT(error, 1e-3) << "message " << message << " to rank " << victim;
      ++cells;
    }
  }
  EXPECT_GT(cells, 0);
  print_cells(cells);
}

INSTANTIATE_TEST_SUITE_P(Of, Mutants, testing::ValuesIn(subjects()),
                         [](const auto& test) { return test.param.name; });

// ---- Leaks

/// Elements of [B, N, ...] (or [B, H, N] with `rows`) outside of tokens [begin, end).
std::vector<double> outside(const std::vector<double>& whole, int64_t tokens, int64_t inner,
                            int64_t begin, int64_t end) {
  std::vector<double> kept;
  for (size_t i = 0; i < whole.size(); ++i) {
    const int64_t t = static_cast<int64_t>(i) / inner % tokens;
    if (t < begin || t >= end) kept.push_back(whole[i]);
  }
  return kept;
}

TEST(Leaks, ADocumentTouchesNoOtherByABit) {
  std::vector<Subject> all = subjects();
  for (Subject& subject : all) {
    for (const int ranks : {1, 2, 3, 5}) {
      const AttentionShape shape = kHeads[1];
      const Cuts cuts = cuts_of(ranks)[1].second;  // uneven
      const int64_t N = cuts.total(), begin = N / 3, end = N - std::max<int64_t>(1, N / 4);
      const Case c{subject.name, cuts, {begin, end}};
      const Mask mask{.causal = subject.causal, .window = subject.window};
      const AttentionProblem before = problem(c, DType::f32, shape, mask);
      AttentionProblem after = problem(c, DType::f32, shape, mask);
      for (Owned* t : {&after.q, &after.k, &after.v, &after.dout}) {
        const Tensor inside = t->view().slice(1, begin, end);
        std::vector<double> changed = values(inside);
        for (double& x : changed) x = 1.5 * x + 0.25;
        assign(inside, changed);
      }
      const auto run = [&](const AttentionProblem& p) {
        return run_strategy(subject.make, p, cuts, subject.causal, subject.window).result;
      };
      const AttentionResult was = run(before), is = run(after);
      const auto same = [&](const std::vector<double>& a, const std::vector<double>& b,
                            int64_t inner) {
        EXPECT_FALSE(same_bits(a, b));  // the perturbation did something
        return same_bits(outside(a, N, inner, begin, end), outside(b, N, inner, begin, end));
      };
      const int64_t q = shape.heads * shape.width, k = shape.kv_heads * shape.width;
      EXPECT_TRUE(same(was.out, is.out, q) && same(was.dq, is.dq, q) && same(was.dk, is.dk, k) &&
                  same(was.dv, is.dv, k))
          << subject.name << ", " << ranks << " ranks";
    }
  }
}

}  // namespace
}  // namespace weft
