// Ring attention (Liu, Zaharia, Abbeel, "Ring Attention with Blockwise Transformers",
// arXiv 2310.01889). Keys and values rotate; queries, outputs and log-sum-exps stay. In step s
// rank p holds the block of rank p - s.
//
//   forward   P-1 hops of (k, v): every block but the next rank's own passes through a rank's
//   hands,
//             so it sends 2 G D (N - tokens of the next rank) elements a sequence.
//   backward  the same again, and P-1 hops of (dk, dv) in the accumulator type, one step behind:
//             the gradient of a block starts at the first rank that is not its owner and ends at
//             its owner, who adds its own part: 2 G D (N - own tokens) elements.
#include <cmath>

#include "parallel/sequence/strategies.hpp"
#include "src/kernels/attention.hpp"
#include "src/kernels/pointwise.hpp"

namespace weft {
namespace {

/// A key/value pair of tensors, of data or of gradients.
struct KeyValue {
  Tensor k, v;  // [B, T of the owner, G, D]
};

/// Receive buffers for blocks of any owner: the largest shard's worth, seen at the owner's size.
class BlockBuffer {
 public:
  BlockBuffer(const char* name, const AttentionShard& shard, DType dtype, Arena& arena) {
    const int64_t largest = shard.cuts.largest();
    k_ = arena.allocate(name, dtype, {shard.k.dim(0), largest, shard.k.dim(2), shard.k.dim(3)});
    v_ = arena.allocate(name, dtype, {shard.k.dim(0), largest, shard.k.dim(2), shard.k.dim(3)});
  }

  KeyValue of_tokens(int64_t tokens) const { return {shaped(k_, tokens), shaped(v_, tokens)}; }

 private:
  static Tensor shaped(const Tensor& buffer, int64_t tokens) {
    const int64_t dims[] = {buffer.dim(0), tokens, buffer.dim(2), buffer.dim(3)};
    return Tensor::view(buffer.data, buffer.dtype, buffer.device, dims);
  }

  Tensor k_, v_;
};

class RingAttention final : public AttentionParallel {
 public:
  void forward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
               StepContext& ctx) override {
    Communicator& ring = ctx.mesh.along(Axis::sequence, Lane::forward);
    const Scope scope(ctx.scratch);
    const BlockBuffer buffers[] = {{"ring kv", shard, shard.k.dtype, ctx.scratch},
                                   {"ring kv", shard, shard.k.dtype, ctx.scratch}};
    const Tensor scratch = attention_scratch(shard, ctx);
    fill({.y = out, .value = 0}, ctx.compute);
    fill({.y = lse, .value = -INFINITY}, ctx.compute);

    KeyValue current{shard.k, shard.v};
    for (int step = 0; step < ring.size(); ++step) {
      Event arrived;
      KeyValue incoming;
      if (step + 1 < ring.size()) {
        incoming = buffers[step % 2].of_tokens(shard.cuts.size(owner(ring, step + 1)));
        arrived = pass_on(ring, current, incoming, tag(shard, Tag::Pass::forward), ctx);
      }
      attention_forward(
          {.out = out, .lse = lse, .scratch = scratch, .block = block(shard, current, ring, step)},
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
    const Scope scope(ctx.scratch);
    const DType wide = lse.dtype;
    const BlockBuffer blocks[] = {{"ring kv", shard, shard.k.dtype, ctx.scratch},
                                  {"ring kv", shard, shard.k.dtype, ctx.scratch}};
    // One pair is computed into while the other's content travels; the third receives.
    const BlockBuffer sums[] = {{"ring dkv", shard, wide, ctx.scratch},
                                {"ring dkv", shard, wide, ctx.scratch},
                                {"ring dkv", shard, wide, ctx.scratch}};
    const Tensor scratch = attention_scratch(shard, ctx);
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
        incoming = blocks[step % 2].of_tokens(shard.cuts.size(owner(ring, step + 1)));
        block_arrived = pass_on(ring, current, incoming, tag(shard, Tag::Pass::backward), ctx);
      }
      // The own block's gradient stays; the sum of every other block moves on with our part.
      const KeyValue part = step == 0
                                ? KeyValue{gradients.dk, gradients.dv}
                                : sums[step % 3].of_tokens(shard.cuts.size(owner(ring, step)));
      fill({.y = part.k, .value = 0}, ctx.compute);
      fill({.y = part.v, .value = 0}, ctx.compute);
      attention_backward({.dq = gradients.dq,
                          .dk = part.k,
                          .dv = part.v,
                          .scratch = scratch,
                          .dout = dout,
                          .lse = lse,
                          .delta = delta,
                          .block = block(shard, current, ring, step)},
                         ctx.compute);
      ctx.compute.wait(sum_arrived);
      if (step >= 2) add_to(part, sum, ctx);
      if (step >= 1) {
        sum = sums[(step + 2) % 3].of_tokens(shard.cuts.size(owner(ring, step + 1)));
        sum_arrived = pass_on(homeward, part, sum, tag(shard, Tag::Pass::backward), ctx);
      }
      ctx.compute.wait(block_arrived);
      current = incoming;
    }
    ctx.compute.wait(sum_arrived);
    if (ring.size() > 1) add_to({gradients.dk, gradients.dv}, sum, ctx);
  }

 private:
  /// Whose block this rank holds in a step.
  static int owner(const Communicator& ring, int step) {
    return (ring.rank() - step + ring.size()) % ring.size();
  }

  static Tag tag(const AttentionShard& shard, Tag::Pass pass) {
    return {shard.layer, Tag::Purpose::attention, pass, shard.micro_batch};
  }

  static Tensor attention_scratch(const AttentionShard& shard, StepContext& ctx) {
    return ctx.scratch.allocate("attention tiles", DType::u8,
                                {attention_scratch_bytes(shard.q.dtype, shard.q.dim(3))});
  }

  static AttentionBlock block(const AttentionShard& shard, const KeyValue& kv,
                              const Communicator& ring, int step) {
    const int from = owner(ring, step), here = ring.rank();
    const Cuts& cuts = shard.cuts;
    const double pairs = shard.causal ? causal_pairs(cuts.begin(here), cuts.end(here),
                                                     cuts.begin(from), cuts.end(from))
                                      : static_cast<double>(cuts.size(here)) * cuts.size(from);
    return {.q = shard.q,
            .k = kv.k,
            .v = kv.v,
            .key_begin = shard.key_begin,
            .key_end = shard.key_end,
            .first_key = cuts.begin(from),
            .scale = shard.scale,
            .pairs = pairs};
  }

  static Event pass_on(Communicator& ring, const KeyValue& ours, const KeyValue& theirs,
                       const Tag& tag, StepContext& ctx) {
    return ring.exchange({send_to(ring.next(), ours.k), send_to(ring.next(), ours.v),
                          receive_from(ring.prev(), theirs.k), receive_from(ring.prev(), theirs.v)},
                         tag, ctx.compute);
  }

  static void add_to(const KeyValue& target, const KeyValue& term, StepContext& ctx) {
    add({.y = target.k, .a = target.k, .b = term.k}, ctx.compute);
    add({.y = target.v, .a = target.v, .b = term.v}, ctx.compute);
  }
};

}  // namespace

std::unique_ptr<AttentionParallel> make_ring_attention() {
  return std::make_unique<RingAttention>();
}

}  // namespace weft
