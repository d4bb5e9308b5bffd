// Sliding-window attention: query t sees the keys (t - window, t], so a rank needs the keys and
// values of the window - 1 tokens before its own, its halo, however many shards that spans.
//
//   forward   one exchange of (k, v); the own block is computed meanwhile. A rank sends 2 G D
//             elements a sequence and token of its halo_sends: window - 1 tokens where shards are
//             at least that long, whatever N and P are.
//   backward  the same again, and one exchange of (dk, dv) in the accumulator type back to the
//             owners, who add them in ascending order of rank: 2 G D elements a token of the halo.
//
// What travels lies token by token, [t, B, G, D]: the last tokens of a shard and the pieces of a
// halo are then stretches of memory for any B, and the whole halo is one block of keys, which the
// kernels read through its strides.
#include "parallel/sequence/halo.hpp"

#include <algorithm>

#include "parallel/sequence/attention_blocks.hpp"
#include "parallel/sequence/strategies.hpp"
#include "src/kernels/pointwise.hpp"

namespace weft {
namespace {

/// Where what `reader`, a later rank, sees of `owner` begins; it ends with the owner's tokens.
int64_t first_seen(const Cuts& cuts, int64_t window, int owner, int reader) {
  if (cuts.size(reader) == 0) return cuts.end(owner);
  return std::clamp(cuts.begin(reader) - (window - 1), cuts.begin(owner), cuts.end(owner));
}

/// One pass over a shard: what travels and where it lies. Buffers last as long as the caller's
/// scope of the scratch arena.
class HaloPass {
 public:
  HaloPass(const AttentionShard& shard, Tag::Pass pass, StepContext& ctx)
      : shard_(shard),
        ctx_(ctx),
        tag_(attention_tag(shard, pass)),
        rank_(ctx.mesh.along(Axis::sequence).rank()),
        receives_(halo_pieces(shard.cuts, shard.window, rank_)),
        sends_(halo_sends(shard.cuts, shard.window, rank_)),
        begin_(shard.cuts.begin(rank_)),
        end_(shard.cuts.end(rank_)),
        halo_begin_(receives_.empty() ? begin_ : receives_.front().begin),
        tail_begin_(sends_.empty() ? end_ : sends_.front().begin) {
    WEFT_CHECK(shard.window >= 1 && shard.causal, "window ", shard.window);
  }

  /// Buffers of the halo: [t, B, G, D].
  KeyValue halo_buffers(DType dtype) const { return buffers(begin_ - halo_begin_, dtype); }

  /// Fills the halo, and gives others theirs.
  Event fetch(const KeyValue& halo) const {
    const KeyValue tail{packed_tail(shard_.k), packed_tail(shard_.v)};
    std::vector<Message> messages;
    for (const auto& [peer, begin, end] : sends_) {
      messages.push_back(send_to(peer, tail.k.slice(0, begin - tail_begin_, end - tail_begin_)));
      messages.push_back(send_to(peer, tail.v.slice(0, begin - tail_begin_, end - tail_begin_)));
    }
    for (const auto& [peer, begin, end] : receives_) {
      const int64_t from = begin - halo_begin_, to = end - halo_begin_;
      messages.push_back(receive_from(peer, halo.k.slice(0, from, to)));
      messages.push_back(receive_from(peer, halo.v.slice(0, from, to)));
    }
    return ctx_.mesh.along(Axis::sequence, Lane::forward).exchange(messages, tag_, ctx_.compute);
  }

  /// Sends the halo's gradient to its owners, and adds what others found for our tokens to `own`.
  void give_back(const KeyValue& halo, const KeyValue& own) const {
    std::vector<Message> messages;
    for (const auto& [peer, begin, end] : receives_) {
      const int64_t from = begin - halo_begin_, to = end - halo_begin_;
      messages.push_back(send_to(peer, halo.k.slice(0, from, to)));
      messages.push_back(send_to(peer, halo.v.slice(0, from, to)));
    }
    std::vector<KeyValue> parts;
    for (const HaloPiece& piece : sends_) {
      const KeyValue& part = parts.emplace_back(buffers(piece.tokens(), halo.k.dtype));
      messages.push_back(receive_from(piece.peer, part.k));
      messages.push_back(receive_from(piece.peer, part.v));
    }
    ctx_.compute.wait(
        ctx_.mesh.along(Axis::sequence, Lane::backward).exchange(messages, tag_, ctx_.compute));
    add_to_tail(own.k, parts, &KeyValue::k);
    add_to_tail(own.v, parts, &KeyValue::v);
  }

  AttentionBlock own_block() const {
    return block_of(shard_, own_queries(shard_, ctx_), {shard_.k, shard_.v}, begin_);
  }
  AttentionBlock halo_block(const KeyValue& halo) const {
    return block_of(shard_, own_queries(shard_, ctx_), {swapped(halo.k), swapped(halo.v)},
                    halo_begin_);
  }

 private:
  KeyValue buffers(int64_t tokens, DType dtype) const {
    const auto make = [&] {
      return ctx_.scratch.allocate("halo", dtype,
                                   {tokens, shard_.k.dim(0), shard_.k.dim(2), shard_.k.dim(3)});
    };
    const Tensor k = make();
    return {k, make()};
  }

  /// The tokens that others see, [t, B, G, D], of a tensor [B, T, G, D] of all our tokens.
  Tensor tail(const Tensor& t) const {
    return swapped(t.slice(1, tail_begin_ - begin_, end_ - begin_));
  }

  /// The same without gaps; a single sequence's has none.
  Tensor packed_tail(const Tensor& t) const {
    const Tensor strided = tail(t);
    if (strided.contiguous()) return strided;
    const Tensor packed = ctx_.scratch.allocate(
        "halo", t.dtype, {strided.dim(0), strided.dim(1), strided.dim(2), strided.dim(3)});
    copy({.y = packed, .x = strided}, ctx_.compute);
    return packed;
  }

  /// Adds the parts of all readers, one after the other, to our gradient.
  void add_to_tail(const Tensor& own, const std::vector<KeyValue>& parts,
                   Tensor KeyValue::*which) const {
    const Tensor sum = packed_tail(own);
    for (const KeyValue& part : parts) {  // each ends with the shard
      const Tensor& term = part.*which;
      const Tensor target = sum.slice(0, sum.dim(0) - term.dim(0), sum.dim(0));
      add({.y = target, .a = target, .b = term}, ctx_.compute);
    }
    if (!tail(own).contiguous()) copy({.y = tail(own), .x = sum}, ctx_.compute);
  }

  const AttentionShard& shard_;
  StepContext& ctx_;
  Tag tag_;
  int rank_;
  std::vector<HaloPiece> receives_, sends_;
  int64_t begin_, end_;  // of our tokens
  int64_t halo_begin_;   // the halo is [halo_begin_, begin_)
  int64_t tail_begin_;   // others see our tokens [tail_begin_, end_)
};

class HaloAttention final : public AttentionParallel {
 public:
  void forward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
               StepContext& ctx) override {
    const Scope scope(ctx.scratch);
    const HaloPass pass(shard, Tag::Pass::forward, ctx);
    const KeyValue halo = pass.halo_buffers(shard.k.dtype);
    const Tensor scratch = attention_tiles(shard, ctx);
    const auto attend = [&](const AttentionBlock& block) {
      attention_forward({.out = out, .lse = lse, .scratch = scratch, .block = block}, ctx.compute);
    };
    const Event arrived = pass.fetch(halo);
    clear_output(out, lse, ctx);
    attend(pass.own_block());
    ctx.compute.wait(arrived);
    attend(pass.halo_block(halo));
  }

  void backward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
                const Tensor& dout, const AttentionGradients& gradients,
                StepContext& ctx) override {
    const Scope scope(ctx.scratch);
    const HaloPass pass(shard, Tag::Pass::backward, ctx);
    const KeyValue halo = pass.halo_buffers(shard.k.dtype), dhalo = pass.halo_buffers(lse.dtype);
    const Tensor scratch = attention_tiles(shard, ctx);
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
    const Event arrived = pass.fetch(halo);
    attention_delta({.delta = delta, .out = out, .dout = dout}, ctx.compute);
    for (const Tensor& sum : {gradients.dq, gradients.dk, gradients.dv, dhalo.k, dhalo.v}) {
      fill({.y = sum, .value = 0}, ctx.compute);
    }
    differentiate(pass.own_block(), gradients.dk, gradients.dv);
    ctx.compute.wait(arrived);
    differentiate(pass.halo_block(halo), swapped(dhalo.k), swapped(dhalo.v));
    pass.give_back(dhalo, {gradients.dk, gradients.dv});
  }
};

}  // namespace

std::vector<HaloPiece> halo_pieces(const Cuts& cuts, int64_t window, int rank) {
  std::vector<HaloPiece> pieces;
  for (int owner = 0; owner < rank; ++owner) {
    const int64_t begin = first_seen(cuts, window, owner, rank), end = cuts.end(owner);
    if (begin < end) pieces.push_back({owner, begin, end});
  }
  return pieces;
}

std::vector<HaloPiece> halo_sends(const Cuts& cuts, int64_t window, int rank) {
  std::vector<HaloPiece> pieces;
  for (int reader = rank + 1; reader < cuts.pieces(); ++reader) {
    const int64_t begin = first_seen(cuts, window, rank, reader), end = cuts.end(rank);
    if (begin < end) pieces.push_back({reader, begin, end});
  }
  return pieces;
}

std::unique_ptr<AttentionParallel> make_halo_attention() {
  return std::make_unique<HaloAttention>();
}

}  // namespace weft
