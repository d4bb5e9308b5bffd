// Ring Self-Attention (Li et al., arXiv 2105.13120): the first ring. Keys travel for whole rows of
// scores, then values for the output; every hop is awaited before its product, as published.
//
//   forward   ring of k: S[:, j] = scale q k_j^T;  P = softmax rows;  ring of v: out += P[:, j] v_j
//   backward  ring of v: dP[:, j] = dout v_j^T;  ring of k: P[:, j] again from the scores and lse,
//             dS = P (dP - delta), dq += scale dS k_j, dv_j += P^T dout, dk_j += scale dS^T q;
//             dk and dv of all tokens are then reduce-scattered.
//
// The published backward keeps P of every layer, and ends in an all-reduce of which each rank uses
// its slice: 8 (P-1) B T C elements a layer in all. Recomputing P takes no ring more, and the
// reduce-scatter makes it 6 (P-1) B T C. What stays is the block of scores, [B, H, T, N].
#include "parallel/sequence/attention_blocks.hpp"
#include "parallel/sequence/strategies.hpp"
#include "src/kernels/matmul.hpp"
#include "src/kernels/pointwise.hpp"
#include "src/kernels/softmax.hpp"

namespace weft {
namespace {

/// Dims `rows` and 3 of a tensor of four dims, the others at one index each.
Tensor matrix_of(const Tensor& t, int64_t b, int64_t h, int heads, int rows) {
  Tensor matrix = t.slice(0, b, b + 1).slice(heads, h, h + 1);
  matrix.ndim = 2;
  matrix.shape = {t.shape[rows], t.shape[3]};
  matrix.stride = {t.stride[rows], t.stride[3]};
  return matrix;
}
/// One head of one sequence: [T, D] of [B, T, heads, D].
Tensor head_of(const Tensor& t, int64_t b, int64_t h) {
  return matrix_of(t, b, h, 2, 1);
}
/// The same of scores: [T, K] of [B, H, T, K].
Tensor scores_of(const Tensor& t, int64_t b, int64_t h) {
  return matrix_of(t, b, h, 1, 2);
}

/// One layer's pass: the ring, and loops over heads.
class Pass {
 public:
  Pass(const AttentionShard& shard, Tag::Pass pass, StepContext& ctx)
      : shard_(shard),
        ctx_(ctx),
        ring_(ctx.mesh.along(Axis::sequence)),
        tag_(attention_tag(shard, pass)),
        room_("ring block", shard, shard.k.dtype, ctx) {}

  /// Calls f(block, its first key) for k or v of every rank, the own one first.
  template <class F>
  void travel(const Tensor& own, F&& f) const {
    Tensor block = own;
    for (int step = 0; step < ring_.size(); ++step) {
      const int owner = ring_.before(step);
      if (step > 0) {
        const KeyValue room = room_.of_tokens(shard_.cuts.size(owner));
        const Tensor incoming = step % 2 == 1 ? room.k : room.v;
        ctx_.compute.wait(
            ring_.exchange({send_to(ring_.next(), block), receive_from(ring_.prev(), incoming)},
                           tag_, ctx_.compute));
        block = incoming;
      }
      f(block, shard_.cuts.begin(owner));
    }
  }

  /// Calls f(b, query head, its kv head).
  template <class F>
  void for_heads(F&& f) const {
    const int64_t heads = shard_.q.dim(2), group = heads / shard_.k.dim(2);
    for (int64_t b = 0; b < shard_.q.dim(0); ++b) {
      for (int64_t h = 0; h < heads; ++h) f(b, h, h / group);
    }
  }

  /// scores[b, h] = alpha rows[b, h] keys[b, g]^T for all heads.
  void score(const Tensor& scores, double alpha, const Tensor& rows, const Tensor& keys) const {
    for_heads([&](int64_t b, int64_t h, int64_t g) {
      matmul({.c = scores_of(scores, b, h),
              .a = head_of(rows, b, h),
              .b = head_of(keys, b, g),
              .transpose_b = true,
              .alpha = alpha},
             ctx_.compute);
    });
  }

  /// rows[b, h] += alpha scores[b, h] keys[b, g].
  void add_weighted(const Tensor& rows, double alpha, const Tensor& scores,
                    const Tensor& keys) const {
    for_heads([&](int64_t b, int64_t h, int64_t g) {
      matmul({.c = head_of(rows, b, h),
              .a = scores_of(scores, b, h),
              .b = head_of(keys, b, g),
              .accumulate = true,
              .alpha = alpha},
             ctx_.compute);
    });
  }

  /// keys[b, g] += alpha scores[b, h]^T rows[b, h], over the heads of the group.
  void add_transposed(const Tensor& keys, double alpha, const Tensor& scores,
                      const Tensor& rows) const {
    for_heads([&](int64_t b, int64_t h, int64_t g) {
      matmul({.c = head_of(keys, b, g),
              .a = scores_of(scores, b, h),
              .b = head_of(rows, b, h),
              .transpose_a = true,
              .accumulate = true,
              .alpha = alpha},
             ctx_.compute);
    });
  }

  /// The sum over ranks of dk and dv, packed [N, B, 2 G, D]; the own tokens' goes to `gradients`.
  void reduce_scatter(const Tensor& sums, const AttentionGradients& gradients) const {
    const Cuts cuts = piece_cuts(sums, shard_.cuts);
    const int rank = ring_.rank();
    const Tensor scratch = ctx_.scratch.allocate("dkv piece", sums.dtype, {cuts.size(rank)});
    ctx_.compute.wait(
        ring_.reduce_scatter(sums.reshape({sums.numel()}), cuts, scratch, tag_, ctx_.compute));
    const KeyValue own = unpacked(sums.slice(0, shard_.cuts.begin(rank), shard_.cuts.end(rank)));
    copy({.y = gradients.dk, .x = own.k}, ctx_.compute);
    copy({.y = gradients.dv, .x = own.v}, ctx_.compute);
  }

 private:
  const AttentionShard& shard_;
  StepContext& ctx_;
  Communicator& ring_;
  Tag tag_;
  KeyValueBuffer room_;  // of two blocks, k or v alike
};

class RingSelfAttention final : public AttentionParallel {
 public:
  void forward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
               StepContext& ctx) override {
    const Scope scope(ctx.scratch);
    const Pass pass(shard, Tag::Pass::forward, ctx);
    const Tensor& q = shard.q;
    const Tensor scores = ctx.scratch.allocate("scores", lse.dtype,
                                               {q.dim(0), q.dim(2), q.dim(1), shard.cuts.total()});
    pass.travel(shard.k, [&](const Tensor& k, int64_t first) {
      pass.score(scores.slice(3, first, first + k.dim(1)), shard.scale, q, k);
    });
    softmax_forward(
        {.scores = scores, .lse = lse, .key_begin = shard.key_begin, .key_end = shard.key_end},
        ctx.compute);
    const Tensor probs = rounded(scores, q.dtype, ctx);
    fill({.y = out, .value = 0}, ctx.compute);
    pass.travel(shard.v, [&](const Tensor& v, int64_t first) {
      pass.add_weighted(out, 1, probs.slice(3, first, first + v.dim(1)), v);
    });
  }

  void backward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
                const Tensor& dout, const AttentionGradients& gradients,
                StepContext& ctx) override {
    const Scope scope(ctx.scratch);
    const Pass pass(shard, Tag::Pass::backward, ctx);
    const Tensor& q = shard.q;
    const DType wide = lse.dtype;
    const int64_t B = q.dim(0), T = q.dim(1), H = q.dim(2), G = shard.k.dim(2), D = q.dim(3);
    const Tensor dscores = ctx.scratch.allocate("scores", wide, {B, H, T, shard.cuts.total()});
    const Tensor probs = ctx.scratch.allocate("probs", wide, {B, H, T, shard.cuts.largest()});
    const Tensor sums = ctx.scratch.allocate("dkv sums", wide, {shard.cuts.total(), B, 2 * G, D});
    const Tensor delta = ctx.scratch.allocate("attention delta", wide, {B, H, T});
    attention_delta({.delta = delta, .out = out, .dout = dout}, ctx.compute);
    fill({.y = sums, .value = 0}, ctx.compute);
    fill({.y = gradients.dq, .value = 0}, ctx.compute);
    pass.travel(shard.v, [&](const Tensor& v, int64_t first) {
      pass.score(dscores.slice(3, first, first + v.dim(1)), 1, dout, v);
    });
    pass.travel(shard.k, [&](const Tensor& k, int64_t first) {
      const int64_t end = first + k.dim(1), dims[] = {B, H, T, k.dim(1)};
      const Tensor p = Tensor::view(probs.data, wide, probs.device, dims);
      const Tensor ds = dscores.slice(3, first, end);
      const KeyValue dkv = unpacked(sums.slice(0, first, end));
      pass.score(p, shard.scale, q, k);
      softmax_backward({.probs = p,
                        .dscores = ds,
                        .lse = lse,
                        .delta = delta,
                        .key_begin = shard.key_begin,
                        .key_end = shard.key_end,
                        .first_key = first},
                       ctx.compute);
      const Scope rounding(ctx.scratch);
      pass.add_transposed(dkv.v, 1, rounded(p, q.dtype, ctx), dout);
      if (q.dtype != wide) copy({.y = p, .x = ds}, ctx.compute);  // without gaps, to be rounded
      const Tensor dscore = q.dtype == wide ? ds : rounded(p, q.dtype, ctx);
      pass.add_weighted(gradients.dq, shard.scale, dscore, k);
      pass.add_transposed(dkv.k, shard.scale, dscore, q);
    });
    pass.reduce_scatter(sums, gradients);
  }
};

}  // namespace

std::unique_ptr<AttentionParallel> make_rsa_attention() {
  return std::make_unique<RingSelfAttention>();
}

}  // namespace weft
