// Projected keys and values across ranks: outputs and all gradients against the naive reference, on
// time and late; bytes.
#include "parallel/sequence/projected.hpp"

#include <gtest/gtest.h>

#include "src/kernels/naive/projected_attention.hpp"
#include "tests/sequence_grid.hpp"

namespace weft {
namespace {

constexpr int kRanks[] = {1, 2, 3, 4, 5, 8};

/// A sequence that sees both ways, without documents, and its projections.
struct ProjectedProblem {
  AttentionProblem attention;
  Owned e, f;  // [R, N]
};

ProjectedProblem projected_problem(const Cuts& cuts, DType dtype, const AttentionShape& shape,
                                   int64_t rows) {
  const int64_t N = cuts.total();
  const double std = 1 / std::sqrt(static_cast<double>(N));
  return {.attention = problem({"", cuts, {}}, dtype, shape, {.causal = false}),
          .e = normals(dtype, {rows, N}, "e", std),
          .f = normals(dtype, {rows, N}, "f", std)};
}

naive::ProjectedResult reference(const ProjectedProblem& p) {
  const AttentionProblem& a = p.attention;
  return naive::projected_attention({.attention = {.batch = a.shape.batch,
                                                   .queries = a.queries(),
                                                   .keys = a.queries(),
                                                   .heads = a.shape.heads,
                                                   .kv_heads = a.shape.kv_heads,
                                                   .width = a.shape.width,
                                                   .scale = a.scale,
                                                   .q = values(a.q),
                                                   .k = values(a.k),
                                                   .v = values(a.v),
                                                   .dout = values(a.dout),
                                                   .key_begin = {},
                                                   .key_end = {}},
                                     .rows = p.e.view().dim(0),
                                     .e = values(p.e),
                                     .f = values(p.f)});
}

struct ProjectedRun {
  naive::ProjectedResult result;  // de, df: summed over the ranks
  std::vector<int64_t> forward_bytes, backward_bytes;
  bool ledgers_agree = true;
  bool same_sums = true;  // K' and V' have the same bits on all ranks
};

void add_to(std::vector<double>& sum, const std::vector<double>& term) {
  sum.resize(term.size());
  for (size_t i = 0; i < term.size(); ++i) sum[i] += term[i];
}

/// Forward and backward over `cuts`, one thread a rank. What is overwritten is poisoned first; what
/// is added to starts at 1, which the result is cleared of.
ProjectedRun run_projected(const ProjectedProblem& p, const Cuts& cuts) {
  const AttentionProblem& a = p.attention;
  const auto [B, H, G, D] = a.shape;
  const int64_t N = cuts.total(), R = p.e.view().dim(0);
  const DType dtype = a.q.view().dtype, wide = accumulator_of(dtype);
  ProjectedRun run;
  AttentionResult& whole = run.result.attention;
  for (auto* v : {&whole.out, &whole.dq}) v->resize(B * N * H * D);
  for (auto* v : {&whole.dk, &whole.dv}) v->resize(B * N * G * D);
  whole.lse.resize(B * H * N);
  run.forward_bytes.resize(cuts.pieces());
  run.backward_bytes.resize(cuts.pieces());
  std::vector<double> sums;
  std::mutex mutex;

  run_ranks(cuts.pieces(), [&](World& world) {
    TestRank rank(world, sequence_mesh(cuts.pieces()));
    StepContext& ctx = rank.context;
    const int64_t begin = cuts.begin(world.rank()), end = cuts.end(world.rank()), T = end - begin;
    const Owned q = tokens_of(a.q, begin, end), k = tokens_of(a.k, begin, end);
    const Owned v = tokens_of(a.v, begin, end), dout = tokens_of(a.dout, begin, end);
    const Owned from = tokens_of(a.keys.begin, begin, end), to = tokens_of(a.keys.end, begin, end);
    const Owned out(wide, {B, T, H, D}), lse(wide, {B, H, T}), dq(wide, {B, T, H, D});
    const Owned dk(wide, {B, T, G, D}), dv(wide, {B, T, G, D});
    const Owned projected(wide, {2, B, R, G, D}), dprojected(wide, {2, B, R, G, D});
    const Owned de = filled(dtype, {R, N}, 1), df = filled(dtype, {R, N}, 1);
    const ProjectedShard shard{.attention = {.q = q,
                                             .k = k,
                                             .v = v,
                                             .key_begin = from,
                                             .key_end = to,
                                             .cuts = cuts,
                                             .scale = a.scale,
                                             .causal = false,
                                             .layer = 0,
                                             .micro_batch = 0},
                               .e = p.e.view().slice(1, begin, end),
                               .f = p.f.view().slice(1, begin, end)};
    const Scope scope(ctx.scratch);
    ctx.compute.wait(project(shard, projected, ctx));
    attend_projected(shard, projected, out, lse, ctx);
    ctx.compute.wait(
        attend_projected_backward(shard, projected, out, lse, dout, dq, dprojected, ctx));
    project_backward(shard, dprojected, dk, dv, de.view().slice(1, begin, end),
                     df.view().slice(1, begin, end), ctx);

    const std::lock_guard lock(mutex);
    place(whole.out, out, N, begin, false);
    place(whole.lse, lse, N, begin, true);
    place(whole.dq, dq, N, begin, false);
    place(whole.dk, dk, N, begin, false);
    place(whole.dv, dv, N, begin, false);
    add_to(run.result.de, minus(values(de), std::vector<double>(R * N, 1)));
    add_to(run.result.df, minus(values(df), std::vector<double>(R * N, 1)));
    if (sums.empty()) sums = values(projected);
    run.same_sums &= same_bits(values(projected), sums);
    for (const auto& [key, bytes] : rank.counted.entries()) {
      (key.tag.pass == Tag::Pass::forward ? run.forward_bytes : run.backward_bytes)[world.rank()] +=
          bytes;
    }
    // A lone rank books calls that send nothing.
    run.ledgers_agree &= cuts.pieces() == 1 || rank.predicted.entries() == rank.counted.entries();
  });
  return run;
}

class Projected : public testing::TestWithParam<int> {
 protected:
  void run_grid(DType dtype, double tolerance) {
    int64_t cells = 0;
    for (const auto& [name, cuts] : cuts_of(GetParam())) {
      for (const AttentionShape& shape : kHeads) {
        for (const int64_t rows : {int64_t{1}, int64_t{4}, cuts.total()}) {
          if (rows > cuts.total()) continue;
          const std::string where = concat(GetParam(), " ranks, ", name, " cuts, ", rows, " rows");
          const ProjectedProblem p = projected_problem(cuts, dtype, shape, rows);
          const naive::ProjectedResult expected = reference(p);
          const ProjectedRun run = run_projected(p, cuts);
          expect_near(run.result.attention, expected.attention, tolerance, where);
          // With one row nothing depends on the keys, and E's gradient cancels to nothing: the
          // floor is a tenth of F's, which does not.
          EXPECT_LE(relative_rms(run.result.de, expected.de, 0.1 * rms(expected.df)), tolerance)
              << where;
          EXPECT_LE(relative_rms(run.result.df, expected.df), tolerance) << where;
          EXPECT_TRUE(run.ledgers_agree && run.same_sums) << where;
          ++cells;
        }
      }
    }
    RecordProperty("cells", static_cast<int>(cells));
    std::printf("%lld cells\n", static_cast<long long>(cells));
  }
};

TEST_P(Projected, EqualsTheReferenceInF64) {
  run_grid(DType::f64, 1e-12);
}
TEST_P(Projected, EqualsTheReferenceInF32) {
  run_grid(DType::f32, 1e-5);
}

TEST_P(Projected, EqualsTheReferenceDeliveredLate) {
  set_late_delivery(true);
  run_grid(DType::f64, 1e-12);
  set_late_delivery(false);
}

INSTANTIATE_TEST_SUITE_P(Ranks, Projected, testing::ValuesIn(kRanks));

/// The reference itself: E and F that pick every token are no projection.
TEST(ProjectedReference, IsFullSoftmaxWhereTheProjectionsAreTheIdentity) {
  const Cuts cuts = Cuts::even(7, 1);
  ProjectedProblem p = projected_problem(cuts, DType::f64, kHeads[1], 7);
  for (const Owned* projection : {&p.e, &p.f}) {
    for (int64_t i = 0; i < 49; ++i) projection->view().as<double>()[i] = i % 8 == 0 ? 1 : 0;
  }
  const naive::ProjectedResult got = reference(p);
  expect_near(got.attention, oracle_attention(p.attention), 1e-15, "identity");
  // dE K^T summed over what it multiplies: the chain rule along E is that along K.
  double along_e = 0;
  for (int64_t i = 0; i < 7; ++i) along_e += got.de[i * 8];
  EXPECT_NEAR(along_e, dot(got.attention.dk, values(p.attention.k)), 1e-12);
}

// ---- Bytes

TEST(ProjectedBytes, AreTheClosedFormWhateverTheLength) {
  const AttentionShape shape = kHeads[1];
  for (const int ranks : {1, 2, 4, 8, 16}) {
    for (const int64_t rows : {4, 8}) {
      const int64_t elements = 2 * shape.batch * rows * shape.kv_heads * shape.width;
      ASSERT_EQ(elements % ranks, 0);
      const int64_t sent = 2 * (ranks - 1) * elements / ranks * 4;  // f32
      for (const Cuts& cuts : {Cuts::even(ranks + 10, ranks), Cuts::even(10 * ranks, ranks),
                               Cuts::even(100 * ranks + 3, ranks)}) {
        const ProjectedRun run =
            run_projected(projected_problem(cuts, DType::f32, shape, rows), cuts);
        EXPECT_TRUE(run.ledgers_agree);
        EXPECT_EQ(run.forward_bytes, std::vector<int64_t>(ranks, sent)) << cuts.total();
        EXPECT_EQ(run.backward_bytes, std::vector<int64_t>(ranks, sent)) << cuts.total();
      }
    }
  }
}

}  // namespace
}  // namespace weft
