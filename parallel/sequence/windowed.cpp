// Sliding-window attention: query t sees the keys (t - window, t], so a rank needs the keys and
// values of the window - 1 tokens before its own, its halo, however many shards that spans.
//
//   forward   one exchange of (k, v); the own block is computed meanwhile. A rank sends 2 G D
//             elements a sequence and token of its halo_sends: window - 1 tokens where shards are
//             at least that long, whatever N and P are.
//   backward  the same again, and one exchange of (dk, dv) in the accumulator type back to the
//             owners, who add them in ascending order of rank: 2 G D elements a token of the halo.
//
// The whole halo, [t, B, G, D], is one block of keys, which the kernels read through its strides.
#include <algorithm>

#include "parallel/sequence/attention_blocks.hpp"
#include "parallel/sequence/halo.hpp"
#include "parallel/sequence/strategies.hpp"
#include "src/kernels/pointwise.hpp"

namespace weft {
namespace {

/// The halo of a layer's keys and values.
TokenHalo halo_of(const AttentionShard& shard, Tag::Pass pass, StepContext& ctx) {
  WEFT_CHECK(shard.window >= 1 && shard.causal, "window ", shard.window);
  return TokenHalo(shard.cuts, shard.window - 1, attention_tag(shard, pass), ctx);
}

/// Buffers of it, [t, B, G, D].
KeyValue halo_buffers(const TokenHalo& halo, const AttentionShard& shard, DType dtype,
                      StepContext& ctx) {
  const auto make = [&] {
    return ctx.scratch.allocate("halo", dtype,
                                {halo.tokens(), shard.k.dim(0), shard.k.dim(2), shard.k.dim(3)});
  };
  const Tensor k = make();
  return {k, make()};
}

AttentionBlock own_block(const AttentionShard& shard, const TokenHalo& halo, StepContext& ctx) {
  return block_of(shard, own_queries(shard, ctx), {shard.k, shard.v}, halo.first_own());
}
AttentionBlock halo_block(const AttentionShard& shard, const TokenHalo& halo, const KeyValue& kv,
                          StepContext& ctx) {
  return block_of(shard, own_queries(shard, ctx), {swapped(kv.k), swapped(kv.v)}, halo.begin());
}

Tensor tiles_of(const AttentionShard& shard, const TokenHalo& halo, StepContext& ctx) {
  const Tensor &q = shard.q, &k = shard.k;
  const int64_t keys = std::max(k.dim(1), halo.tokens());
  return attention_tiles(shard, {{q.dim(0), q.dim(1), keys, q.dim(2), k.dim(2), q.dim(3)}}, ctx);
}

class WindowedAttention final : public AttentionParallel {
 public:
  void forward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
               StepContext& ctx) override {
    const Scope scope(ctx.scratch);
    const TokenHalo before = halo_of(shard, Tag::Pass::forward, ctx);
    const KeyValue halo = halo_buffers(before, shard, shard.k.dtype, ctx);
    const Tensor scratch = tiles_of(shard, before, ctx);
    const auto attend = [&](const AttentionBlock& block) {
      attention_forward({.out = out, .lse = lse, .scratch = scratch, .block = block}, ctx.compute);
    };
    const Event arrived = before.fetch({halo.k, halo.v}, {shard.k, shard.v});
    clear_output(out, lse, ctx);
    attend(own_block(shard, before, ctx));
    ctx.compute.wait(arrived);
    attend(halo_block(shard, before, halo, ctx));
  }

  void backward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
                const Tensor& dout, const AttentionGradients& gradients,
                StepContext& ctx) override {
    const Scope scope(ctx.scratch);
    const TokenHalo before = halo_of(shard, Tag::Pass::backward, ctx);
    const KeyValue halo = halo_buffers(before, shard, shard.k.dtype, ctx);
    const KeyValue dhalo = halo_buffers(before, shard, lse.dtype, ctx);
    const Tensor scratch = tiles_of(shard, before, ctx);
    const Tensor delta =
        ctx.scratch.allocate("attention delta", lse.dtype, {lse.dim(0), lse.dim(1), lse.dim(2)});
    const auto differentiate = [&](const AttentionBlock& block, const Tensor& dk,
                                   const Tensor& dv) {
      attention_backward({.dq = gradients.dq,
                          .dk = dk,
                          .dv = dv,
                          .scratch = scratch,
                          .dout = dout,
                          .lse = lse,
                          .delta = delta,
                          .block = block},
                         ctx.compute);
    };
    const Event arrived = before.fetch({halo.k, halo.v}, {shard.k, shard.v});
    attention_delta({.delta = delta, .out = out, .dout = dout}, ctx.compute);
    for (const Tensor& sum : {gradients.dq, gradients.dk, gradients.dv, dhalo.k, dhalo.v}) {
      fill({.y = sum, .value = 0}, ctx.compute);
    }
    differentiate(own_block(shard, before, ctx), gradients.dk, gradients.dv);
    ctx.compute.wait(arrived);
    differentiate(halo_block(shard, before, halo, ctx), swapped(dhalo.k), swapped(dhalo.v));
    before.add_returned(before.give_back({dhalo.k, dhalo.v}), {gradients.dk, gradients.dv});
  }
};

}  // namespace

std::unique_ptr<AttentionParallel> make_windowed_attention() {
  return std::make_unique<WindowedAttention>();
}

}  // namespace weft
