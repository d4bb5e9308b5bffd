#include "parallel/sequence/projected.hpp"

#include "parallel/sequence/attention_blocks.hpp"
#include "src/kernels/pointwise.hpp"

namespace weft {
namespace {

/// The halves of [2, B, R, G, D], each [B, R, G, D].
KeyValue halves(const Tensor& projected) {
  const auto half = [&](int which) {
    return projected.slice(0, which, which + 1)
        .reshape({projected.dim(1), projected.dim(2), projected.dim(3), projected.dim(4)});
  };
  return {half(0), half(1)};
}

/// Sequence b of [B, rows, G, D] as a matrix [rows, G D].
Tensor matrix(const Tensor& t, int64_t b) {
  return t.slice(0, b, b + 1).reshape({t.dim(1), t.dim(2) * t.dim(3)});
}

/// Queries against all rows: the intervals, [0, N), hold [0, R). The rows are rounded to the type
/// of the queries, in scratch.
AttentionBlock block(const ProjectedShard& shard, const Tensor& projected, StepContext& ctx) {
  const AttentionShard& own = shard.attention;
  return block_of(own, own_queries(own, ctx), halves(rounded(projected, own.q.dtype, ctx)), 0);
}

/// Scratch of the kernels for such a block.
Tensor tiles_of(const ProjectedShard& shard, const Tensor& projected, StepContext& ctx) {
  const Tensor& q = shard.attention.q;
  return attention_tiles(
      shard.attention,
      {{q.dim(0), q.dim(1), projected.dim(2), q.dim(2), projected.dim(3), q.dim(3)}}, ctx);
}

/// Replaces `projected` by the sum over the ranks of the sequence.
Event sum_over_ranks(const ProjectedShard& shard, const Tensor& projected, Tag::Pass pass,
                     StepContext& ctx) {
  Communicator& ranks =
      ctx.mesh.along(Axis::sequence, pass == Tag::Pass::forward ? Lane::forward : Lane::backward);
  const Tensor flat = projected.reshape({projected.numel()});
  const Tensor piece = ctx.scratch.allocate("projected piece", flat.dtype,
                                            {Cuts::even(flat.numel(), ranks.size()).largest()});
  return ranks.all_reduce(flat, piece, attention_tag(shard.attention, pass), ctx.compute);
}

}  // namespace

Event project(const ProjectedShard& shard, const Tensor& projected, StepContext& ctx) {
  const AttentionShard& own = shard.attention;
  WEFT_CHECK(!own.causal && own.window == 0, "a projection sees all tokens");
  WEFT_CHECK(shard.e.dim(0) <= own.cuts.total(), shard.e.dim(0), " rows of ", own.cuts.total(),
             " tokens");
  const KeyValue sums = halves(projected);
  for (int64_t b = 0; b < own.k.dim(0); ++b) {
    matmul({.c = matrix(sums.k, b), .a = shard.e, .b = matrix(own.k, b)}, ctx.compute);
    matmul({.c = matrix(sums.v, b), .a = shard.f, .b = matrix(own.v, b)}, ctx.compute);
  }
  return sum_over_ranks(shard, projected, Tag::Pass::forward, ctx);
}

void attend_projected(const ProjectedShard& shard, const Tensor& projected, const Tensor& out,
                      const Tensor& lse, StepContext& ctx) {
  const Scope scope(ctx.scratch);
  clear_output(out, lse, ctx);
  attention_forward({.out = out,
                     .lse = lse,
                     .scratch = tiles_of(shard, projected, ctx),
                     .block = block(shard, projected, ctx)},
                    ctx.compute);
}

Event attend_projected_backward(const ProjectedShard& shard, const Tensor& projected,
                                const Tensor& out, const Tensor& lse, const Tensor& dout,
                                const Tensor& dq, const Tensor& dprojected, StepContext& ctx) {
  {
    const Scope scope(ctx.scratch);
    const KeyValue sums = halves(dprojected);
    const Tensor delta =
        ctx.scratch.allocate("attention delta", lse.dtype, {lse.dim(0), lse.dim(1), lse.dim(2)});
    attention_delta({.delta = delta, .out = out, .dout = dout}, ctx.compute);
    fill({.y = dq, .value = 0}, ctx.compute);
    clear(sums, ctx);
    attention_backward({.dq = dq,
                        .dk = sums.k,
                        .dv = sums.v,
                        .scratch = tiles_of(shard, projected, ctx),
                        .dout = dout,
                        .lse = lse,
                        .delta = delta,
                        .block = block(shard, projected, ctx)},
                       ctx.compute);
  }
  return sum_over_ranks(shard, dprojected, Tag::Pass::backward, ctx);
}

void project_backward(const ProjectedShard& shard, const Tensor& dprojected, const Tensor& dk,
                      const Tensor& dv, const Tensor& de, const Tensor& df, StepContext& ctx) {
  const auto through = [&](const Tensor& dx, const Tensor& dprojection, const Tensor& x,
                           const Tensor& projection, const Tensor& dy) {
    for (int64_t b = 0; b < x.dim(0); ++b) {
      matmul({.c = matrix(dx, b), .a = projection, .b = matrix(dy, b), .transpose_a = true},
             ctx.compute);
      ctx.weight_gradient({.c = dprojection,
                           .a = matrix(dy, b),
                           .b = matrix(x, b),
                           .transpose_b = true,
                           .accumulate = true});
    }
  };
  const Scope scope(ctx.scratch);
  const KeyValue sums = halves(rounded(dprojected, shard.e.dtype, ctx));
  through(dk, de, shard.attention.k, shard.e, sums.k);
  through(dv, df, shard.attention.v, shard.f, sums.v);
}

}  // namespace weft
