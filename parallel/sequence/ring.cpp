// Ring attention (Liu, Zaharia, Abbeel, "Ring Attention with Blockwise Transformers",
// arXiv 2310.01889). Keys and values rotate; queries, outputs and log-sum-exps stay. In step s
// rank p holds the block of rank p - s.
//
//   forward   P-1 hops of (k, v): every block but the next rank's own passes through a rank's
//             hands, so it sends 2 G D (N - tokens of the next rank) elements a sequence.
//   backward  the same again, and P-1 hops of (dk, dv) in the accumulator type, one step behind:
//             the gradient of a block starts at the first rank that is not its owner and ends at
//             its owner, who adds its own part: 2 G D (N - own tokens) elements.
#include "parallel/sequence/attention_blocks.hpp"
#include "parallel/sequence/strategies.hpp"
#include "src/kernels/pointwise.hpp"

namespace weft {
namespace {

class RingAttention final : public AttentionParallel {
 public:
  void forward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
               StepContext& ctx) override {
    Communicator& ring = ctx.mesh.along(Axis::sequence, Lane::forward);
    const Scope scope(ctx.scratch);
    const KeyValueBuffer buffers[] = {{"ring kv", shard, shard.k.dtype, ctx},
                                      {"ring kv", shard, shard.k.dtype, ctx}};
    const Tensor tiles = attention_tiles(shard, ctx);
    const Queries queries = own_queries(shard, ctx);
    clear_output(out, lse, ctx);

    KeyValue current{shard.k, shard.v};
    for (int step = 0; step < ring.size(); ++step) {
      Event arrived;
      KeyValue incoming;
      if (step + 1 < ring.size()) {
        incoming = buffers[step % 2].of_tokens(shard.cuts.size(ring.before(step + 1)));
        arrived = pass_on(ring, current, incoming, attention_tag(shard, Tag::Pass::forward), ctx);
      }
      const int64_t first_key = shard.cuts.begin(ring.before(step));
      attention_forward({.out = out,
                         .lse = lse,
                         .scratch = tiles,
                         .block = block_of(shard, queries, current, first_key)},
                        ctx.compute);
      ctx.compute.wait(arrived);
      current = incoming;
    }
  }

  void backward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
                const Tensor& dout, const AttentionGradients& gradients,
                StepContext& ctx) override {
    Communicator& ring = ctx.mesh.along(Axis::sequence, Lane::forward);
    Communicator& homeward = ctx.mesh.along(Axis::sequence, Lane::backward);
    const Tag tag = attention_tag(shard, Tag::Pass::backward);
    const Scope scope(ctx.scratch);
    const DType wide = lse.dtype;
    const KeyValueBuffer blocks[] = {{"ring kv", shard, shard.k.dtype, ctx},
                                     {"ring kv", shard, shard.k.dtype, ctx}};
    // One pair is computed into while the other's content travels; the third receives.
    const KeyValueBuffer sums[] = {{"ring dkv", shard, wide, ctx},
                                   {"ring dkv", shard, wide, ctx},
                                   {"ring dkv", shard, wide, ctx}};
    const Tensor tiles = attention_tiles(shard, ctx);
    const Queries queries = own_queries(shard, ctx);
    const Tensor delta =
        ctx.scratch.allocate("attention delta", wide, {lse.dim(0), lse.dim(1), lse.dim(2)});
    attention_delta({.delta = delta, .out = out, .dout = dout}, ctx.compute);
    fill({.y = gradients.dq, .value = 0}, ctx.compute);

    KeyValue current{shard.k, shard.v};
    Event sum_arrived;  // of the gradient that the previous rank sent in the previous step
    KeyValue sum;
    for (int step = 0; step < ring.size(); ++step) {
      Event block_arrived;
      KeyValue incoming;
      if (step + 1 < ring.size()) {
        incoming = blocks[step % 2].of_tokens(shard.cuts.size(ring.before(step + 1)));
        block_arrived = pass_on(ring, current, incoming, tag, ctx);
      }
      // The own block's gradient stays; the sum of every other block moves on with our part.
      const KeyValue part = step == 0
                                ? KeyValue{gradients.dk, gradients.dv}
                                : sums[step % 3].of_tokens(shard.cuts.size(ring.before(step)));
      clear(part, ctx);
      attention_backward(
          {.dq = gradients.dq,
           .dk = part.k,
           .dv = part.v,
           .scratch = tiles,
           .dout = dout,
           .lse = lse,
           .delta = delta,
           .block = block_of(shard, queries, current, shard.cuts.begin(ring.before(step)))},
          ctx.compute);
      ctx.compute.wait(sum_arrived);
      if (step >= 2) add_to(part, sum, ctx);
      if (step >= 1) {
        sum = sums[(step + 2) % 3].of_tokens(shard.cuts.size(ring.before(step + 1)));
        sum_arrived = pass_on(homeward, part, sum, tag, ctx);
      }
      ctx.compute.wait(block_arrived);
      current = incoming;
    }
    ctx.compute.wait(sum_arrived);
    if (ring.size() > 1) add_to({gradients.dk, gradients.dv}, sum, ctx);
  }

 private:
  static Event pass_on(Communicator& ring, const KeyValue& ours, const KeyValue& theirs,
                       const Tag& tag, StepContext& ctx) {
    return ring.exchange({send_to(ring.next(), ours.k), send_to(ring.next(), ours.v),
                          receive_from(ring.prev(), theirs.k), receive_from(ring.prev(), theirs.v)},
                         tag, ctx.compute);
  }
};

}  // namespace

std::unique_ptr<AttentionParallel> make_ring_attention() {
  return std::make_unique<RingAttention>();
}

}  // namespace weft
