// Gathered attention, the softmax half of LASP-2H (Sun et al., arXiv 2502.07563, section 3.5): keys
// and values of all ranks are gathered and attended by local queries; gradients of all keys are
// reduce-scattered. A kv head at a time, the next one while the current one computes, so that two
// heads' worth of the sequence is in memory and not G; the first while the own block computes,
// which needs no other rank's keys.
//
// With a causal mask rank p has p + 1/2 units of work on contiguous shards. It therefore swaps the
// late half of its queries with rank P-1-p, and the two have P/2 units each: an early half and
// another's late half see (T/2) (p T + T/4) + (T/2) ((P-1-p) T + 3 T/4) keys.
//
//   forward   all-gather of k, v: 2 (P-1) T G D elements. Swapped (purpose `balance`): the half's
//             q, and its out and lse back in the accumulator type.
//   backward  the same gather, and a reduce-scatter of dk, dv in the accumulator type: 2 (N - T) G
//   D.
//             Swapped: q, dout, lse, delta; dq back.
#include <algorithm>
#include <array>

#include "parallel/sequence/attention_blocks.hpp"
#include "parallel/sequence/strategies.hpp"
#include "src/kernels/pointwise.hpp"

namespace weft {
namespace {

/// Queries that this rank computes for, with what belongs to their rows: dout only going backward.
struct Rows {
  Queries queries;
  Tensor lse;   // [B, H, T]
  Tensor out;   // [B, T, H, D]; going backward dq
  Tensor dout;  // [B, T, H, D]
  Tensor delta;

  /// Query heads [begin, end).
  Rows heads(int64_t begin, int64_t end) const {
    const auto cut = [&](const Tensor& t, int dim) { return t ? t.slice(dim, begin, end) : t; };
    return {queries.heads(begin, end), cut(lse, 1), cut(out, 2), cut(dout, 2), cut(delta, 1)};
  }
};

/// Late halves of queries on their way to the mirror rank and back. The middle rank is its own
/// mirror, as all are under a mask that is not causal: it keeps all and takes none.
class Mirror {
 public:
  Mirror(const AttentionShard& shard, Tag::Pass pass, StepContext& ctx)
      : shard_(shard),
        ctx_(ctx),
        ranks_(ctx.mesh.along(Axis::sequence, Lane::backward)),
        tag_(attention_tag(shard, pass, Tag::Purpose::balance)),
        partner_(shard.causal ? ranks_.size() - 1 - ranks_.rank() : ranks_.rank()),
        kept_(kept_of(ranks_.rank())),
        taken_(shard.cuts.size(partner_) - kept_of(partner_)) {}

  /// Own queries [0, kept) stay here, as many of the mirror's come.
  int64_t kept() const { return kept_; }
  int64_t taken() const { return taken_; }
  int64_t given() const { return shard_.q.dim(1) - kept_; }

  Tensor kept(const Tensor& heads) const { return heads.slice(1, 0, kept_); }
  Tensor kept_numbers(const Tensor& numbers) const { return numbers.slice(2, 0, kept_); }
  Tensor late(const Tensor& heads) const { return heads.slice(1, kept_, heads.dim(1)); }
  Tensor late_numbers(const Tensor& numbers) const {
    return numbers.slice(2, kept_, numbers.dim(2));
  }

  /// The mirror's late queries, which are q: [B, taken, H, D].
  Queries taken_queries(const Tensor& q) const {
    return queries_of(shard_, q, shard_.cuts.end(partner_) - taken_);
  }

  /// Room for rows: [B, tokens, H, D] and [B, H, tokens].
  Tensor heads(int64_t tokens, DType dtype) const {
    const Tensor& q = shard_.q;
    return ctx_.scratch.allocate("late queries", dtype, {q.dim(0), tokens, q.dim(2), q.dim(3)});
  }
  Tensor numbers(int64_t tokens, DType dtype) const {
    return ctx_.scratch.allocate("late queries", dtype, {shard_.q.dim(0), shard_.q.dim(2), tokens});
  }

  /// Sends each tensor of `ours`, and receives its counterpart. Under a causal mask all ranks call.
  Event swap(std::initializer_list<Tensor> ours, std::initializer_list<Tensor> theirs) const {
    if (!shard_.causal) return {};
    std::vector<Message> messages;
    if (partner_ != ranks_.rank()) {
      for (const Tensor& t : ours) messages.push_back(send_to(partner_, t));
      for (const Tensor& t : theirs) messages.push_back(receive_from(partner_, t));
    }
    return ranks_.exchange(std::move(messages), tag_, ctx_.compute);
  }

 private:
  int64_t kept_of(int rank) const {
    const int64_t tokens = shard_.cuts.size(rank);
    return partner_ == ranks_.rank() ? tokens : tokens / 2;
  }

  const AttentionShard& shard_;
  StepContext& ctx_;
  Communicator& ranks_;
  Tag tag_;
  int partner_;
  int64_t kept_, taken_;
};

/// The keys and values of all ranks, one kv head after the other through two buffers.
class GatheredHeads {
 public:
  GatheredHeads(const AttentionShard& shard, Tag::Pass pass, StepContext& ctx)
      : shard_(shard),
        ctx_(ctx),
        ranks_(ctx.mesh.along(Axis::sequence)),
        tag_(attention_tag(shard, pass)),
        buffers_{buffer("gathered kv", shard.k.dtype), buffer("gathered kv", shard.k.dtype)} {}

  /// A packed head of all tokens, [N, B, 2, D].
  Tensor buffer(const char* name, DType dtype) const {
    return ctx_.scratch.allocate(name, dtype,
                                 {shard_.cuts.total(), shard_.k.dim(0), 2, shard_.k.dim(3)});
  }

  /// Calls meanwhile() while the first head travels, then f(kv head, its keys and values
  /// [B, N, 1, D]) for each.
  template <class Meanwhile, class F>
  void for_heads(Meanwhile&& meanwhile, F&& f) const {
    const int64_t heads = shard_.k.dim(2);
    Event arrived = gather(0);
    meanwhile();
    for (int64_t g = 0; g < heads; ++g) {
      ctx_.compute.wait(arrived);
      if (g + 1 < heads) arrived = gather(g + 1);
      f(g, unpacked(buffers_[g % 2]));
    }
  }

 private:
  Event gather(int64_t g) const {
    const Tensor& buffer = buffers_[g % 2];
    const int rank = ranks_.rank();
    const KeyValue own = unpacked(buffer.slice(0, shard_.cuts.begin(rank), shard_.cuts.end(rank)));
    const KeyValue head = KeyValue{shard_.k, shard_.v}.heads(g, g + 1);
    copy({.y = own.k, .x = head.k}, ctx_.compute);
    copy({.y = own.v, .x = head.v}, ctx_.compute);
    return ranks_.all_gather(buffer.reshape({buffer.numel()}), piece_cuts(buffer, shard_.cuts),
                             tag_, ctx_.compute);
  }

  const AttentionShard& shard_;
  StepContext& ctx_;
  Communicator& ranks_;
  Tag tag_;
  std::array<Tensor, 2> buffers_;
};

/// Sums of dk and dv over the ranks, one kv head after the other through two buffers.
class ScatteredGradients {
 public:
  ScatteredGradients(const AttentionShard& shard, const GatheredHeads& heads,
                     const AttentionGradients& gradients, StepContext& ctx)
      : shard_(shard),
        ctx_(ctx),
        ranks_(ctx.mesh.along(Axis::sequence, Lane::backward)),
        gradients_(gradients),
        sums_{heads.buffer("dkv sums", gradients.dk.dtype),
              heads.buffer("dkv sums", gradients.dk.dtype)},
        scratch_(ctx.scratch.allocate("dkv piece", gradients.dk.dtype,
                                      {shard.k.dim(1), shard.k.dim(0), 2, shard.k.dim(3)})) {}

  /// The sums of a head, [B, N, 1, D]: the own tokens' begin with what `gradients` holds, the
  /// others with 0. What the buffer held before is finished first.
  KeyValue begin(int64_t g) {
    finish(g - 2);
    fill({.y = sums_[g % 2], .value = 0}, ctx_.compute);
    const KeyValue own = own_tokens(g);
    copy({.y = own.k, .x = gradients_.dk.slice(2, g, g + 1)}, ctx_.compute);
    copy({.y = own.v, .x = gradients_.dv.slice(2, g, g + 1)}, ctx_.compute);
    return unpacked(sums_[g % 2]);
  }

  /// Posts the sum over the ranks.
  void reduce(int64_t g) {
    const Tensor& sums = sums_[g % 2];
    done_[g % 2] =
        ranks_.reduce_scatter(sums.reshape({sums.numel()}), piece_cuts(sums, shard_.cuts),
                              scratch_.reshape({scratch_.numel()}),
                              attention_tag(shard_, Tag::Pass::backward), ctx_.compute);
  }

  /// Waits for a head's sum, and puts the own tokens' part in its place.
  void finish(int64_t g) {
    if (g < 0) return;
    ctx_.compute.wait(done_[g % 2]);
    const KeyValue own = own_tokens(g);
    copy({.y = gradients_.dk.slice(2, g, g + 1), .x = own.k}, ctx_.compute);
    copy({.y = gradients_.dv.slice(2, g, g + 1), .x = own.v}, ctx_.compute);
  }

 private:
  KeyValue own_tokens(int64_t g) const {
    const int rank = ranks_.rank();
    return unpacked(sums_[g % 2].slice(0, shard_.cuts.begin(rank), shard_.cuts.end(rank)));
  }

  const AttentionShard& shard_;
  StepContext& ctx_;
  Communicator& ranks_;
  const AttentionGradients& gradients_;
  std::array<Tensor, 2> sums_;  // [N, B, 2, D]
  Tensor scratch_;              // one after the other on the communication stream: shared
  std::array<Event, 2> done_;
};

/// Scratch for own queries against own keys, and for any queries of a kv head against all keys.
Tensor tiles_of(const AttentionShard& shard, const Mirror& mirror, StepContext& ctx) {
  const int64_t B = shard.q.dim(0), H = shard.q.dim(2), G = shard.k.dim(2), D = shard.q.dim(3);
  return attention_tiles(
      shard,
      {{B, mirror.kept(), shard.k.dim(1), H, G, D},
       {B, std::max(mirror.kept(), mirror.taken()), shard.cuts.total(), H / G, 1, D}},
      ctx);
}

/// Calls f(keys, the first one's index) for what own queries may see of all tokens' keys besides
/// those of their own block.
template <class F>
void for_other_keys(const AttentionShard& shard, int rank, const KeyValue& keys, F&& f) {
  const auto part = [&](int64_t begin, int64_t end) {
    f(KeyValue{keys.k.slice(1, begin, end), keys.v.slice(1, begin, end)}, begin);
  };
  part(0, shard.cuts.begin(rank));
  if (!shard.causal) part(shard.cuts.end(rank), shard.cuts.total());
}

class GatheredAttention final : public AttentionParallel {
 public:
  void forward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
               StepContext& ctx) override {
    const Scope scope(ctx.scratch);
    const Mirror mirror(shard, Tag::Pass::forward, ctx);
    const Tensor q = mirror.heads(mirror.taken(), shard.q.dtype);
    const Event arrived = mirror.swap({packed(mirror.late(shard.q), ctx)}, {q});
    const GatheredHeads gathered(shard, Tag::Pass::forward, ctx);
    const Tensor tiles = tiles_of(shard, mirror, ctx);
    const Rows kept{.queries = own_queries(shard, ctx).tokens(0, mirror.kept()),
                    .lse = mirror.kept_numbers(lse),
                    .out = mirror.kept(out),
                    .dout = {},
                    .delta = {}};
    const Rows taken{.queries = mirror.taken_queries(q),
                     .lse = mirror.numbers(mirror.taken(), lse.dtype),
                     .out = mirror.heads(mirror.taken(), out.dtype),
                     .dout = {},
                     .delta = {}};
    clear_output(out, lse, ctx);
    clear_output(taken.out, taken.lse, ctx);
    const int rank = ctx.mesh.at(Axis::sequence);
    const int64_t group = shard.q.dim(2) / shard.k.dim(2);
    const auto attend = [&](const Rows& rows, const KeyValue& keys, int64_t first_key) {
      attention_forward({.out = rows.out,
                         .lse = rows.lse,
                         .scratch = tiles,
                         .block = block_of(shard, rows.queries, keys, first_key)},
                        ctx.compute);
    };
    gathered.for_heads(
        [&] {
          attend(kept, {shard.k, shard.v}, kept.queries.first);
        },
        [&](int64_t g, const KeyValue& keys) {
          const Rows own = kept.heads(g * group, (g + 1) * group);
          for_other_keys(shard, rank, keys,
                         [&](const KeyValue& part, int64_t first) { attend(own, part, first); });
          ctx.compute.wait(arrived);
          attend(taken.heads(g * group, (g + 1) * group), keys, 0);
        });
    const Tensor late_out = mirror.heads(mirror.given(), out.dtype);
    const Tensor late_lse = mirror.numbers(mirror.given(), lse.dtype);
    ctx.compute.wait(mirror.swap({taken.out, taken.lse}, {late_out, late_lse}));
    copy({.y = mirror.late(out), .x = late_out}, ctx.compute);
    copy({.y = mirror.late_numbers(lse), .x = late_lse}, ctx.compute);
  }

  void backward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
                const Tensor& dout, const AttentionGradients& gradients,
                StepContext& ctx) override {
    const Scope scope(ctx.scratch);
    const DType wide = lse.dtype;
    const Tensor delta =
        ctx.scratch.allocate("attention delta", wide, {lse.dim(0), lse.dim(1), lse.dim(2)});
    attention_delta({.delta = delta, .out = out, .dout = dout}, ctx.compute);
    const Mirror mirror(shard, Tag::Pass::backward, ctx);
    const Tensor q = mirror.heads(mirror.taken(), shard.q.dtype);
    const Rows taken{.queries = mirror.taken_queries(q),
                     .lse = mirror.numbers(mirror.taken(), wide),
                     .out = mirror.heads(mirror.taken(), wide),
                     .dout = mirror.heads(mirror.taken(), dout.dtype),
                     .delta = mirror.numbers(mirror.taken(), wide)};
    const Event arrived = mirror.swap(
        {packed(mirror.late(shard.q), ctx), packed(mirror.late(dout), ctx),
         packed(mirror.late_numbers(lse), ctx), packed(mirror.late_numbers(delta), ctx)},
        {q, taken.dout, taken.lse, taken.delta});
    const GatheredHeads gathered(shard, Tag::Pass::backward, ctx);
    ScatteredGradients scattered(shard, gathered, gradients, ctx);
    const Tensor tiles = tiles_of(shard, mirror, ctx);
    const Rows kept{.queries = own_queries(shard, ctx).tokens(0, mirror.kept()),
                    .lse = mirror.kept_numbers(lse),
                    .out = mirror.kept(gradients.dq),
                    .dout = mirror.kept(dout),
                    .delta = mirror.kept_numbers(delta)};
    fill({.y = gradients.dq, .value = 0}, ctx.compute);
    fill({.y = taken.out, .value = 0}, ctx.compute);
    clear({gradients.dk, gradients.dv}, ctx);
    const int rank = ctx.mesh.at(Axis::sequence);
    const int64_t heads = shard.k.dim(2), group = shard.q.dim(2) / heads;
    const auto differentiate = [&](const Rows& rows, const KeyValue& keys, int64_t first_key,
                                   const KeyValue& sums) {
      attention_backward({.dq = rows.out,
                          .dk = sums.k,
                          .dv = sums.v,
                          .scratch = tiles,
                          .dout = rows.dout,
                          .lse = rows.lse,
                          .delta = rows.delta,
                          .block = block_of(shard, rows.queries, keys, first_key)},
                         ctx.compute);
    };
    gathered.for_heads(
        [&] {
          differentiate(kept, {shard.k, shard.v}, kept.queries.first, {gradients.dk, gradients.dv});
        },
        [&](int64_t g, const KeyValue& keys) {
          const KeyValue sums = scattered.begin(g);
          const Rows own = kept.heads(g * group, (g + 1) * group);
          for_other_keys(shard, rank, keys, [&](const KeyValue& part, int64_t first) {
            const int64_t end = first + part.k.dim(1);
            differentiate(own, part, first,
                          {sums.k.slice(1, first, end), sums.v.slice(1, first, end)});
          });
          ctx.compute.wait(arrived);
          differentiate(taken.heads(g * group, (g + 1) * group), keys, 0, sums);
          scattered.reduce(g);
        });
    const Tensor late_dq = mirror.heads(mirror.given(), wide);
    const Event returned = mirror.swap({taken.out}, {late_dq});
    scattered.finish(heads - 2);
    scattered.finish(heads - 1);
    ctx.compute.wait(returned);
    copy({.y = mirror.late(gradients.dq), .x = late_dq}, ctx.compute);
  }
};

}  // namespace

std::unique_ptr<AttentionParallel> make_allgather_attention() {
  return std::make_unique<GatheredAttention>();
}

}  // namespace weft
