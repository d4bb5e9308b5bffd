// Ulysses (Jacobs et al., arXiv 2309.14509): an all-to-all turns shards of tokens into shards of
// heads, every rank attends the whole sequence with its heads, and an all-to-all turns back.
//
// Query heads are cut like tokens: rank p gets [floor(p H / P), floor((p+1) H / P)), which may be
// uneven, or none where P > H. It gets every kv head that its query heads read, so a kv head whose
// group is cut travels to several ranks; the gradients of the replicas are added, in ascending
// order of the ranks, by the owners of the tokens.
//
//   forward   to each rank its heads of q, k, v; out and lse back in the accumulator type.
//   backward  to each rank its heads of q, k, v, dout, lse, delta; dq, dk, dv back.
//
// Everything per token lies token-major, [t, B, heads, D]: what a rank gets from another is then a
// stretch of memory at the tokens' place in the whole sequence.
#include <algorithm>

#include "parallel/sequence/attention_blocks.hpp"
#include "parallel/sequence/strategies.hpp"
#include "src/kernels/pointwise.hpp"

namespace weft {
namespace {

struct Heads {
  int64_t begin, end;
  int64_t count() const { return end - begin; }
};

/// What one rank computes: query heads, and the kv heads that they read.
struct HeadShard {
  Heads q, kv;

  static HeadShard of(int rank, int ranks, int64_t heads, int64_t kv_heads) {
    const Cuts cuts = Cuts::even(heads, ranks);
    const int64_t group = heads / kv_heads, begin = cuts.begin(rank), end = cuts.end(rank);
    return {{begin, end}, {begin / group, begin == end ? begin / group : (end - 1) / group + 1}};
  }

  /// Query heads, in numbers of this shard, that read the same number of kv heads each.
  struct Run {
    Heads q, kv;
  };
  /// Its heads in runs: the cut group at either end, and the whole groups between.
  std::vector<Run> runs(int64_t group) const {
    std::vector<Run> runs;
    for (int64_t g = kv.begin; g < kv.end; ++g) {
      const Heads heads{std::max(q.begin, g * group) - q.begin,
                        std::min(q.end, (g + 1) * group) - q.begin};
      const bool whole = heads.count() == group;
      if (whole && !runs.empty() && runs.back().q.count() == group * runs.back().kv.count()) {
        runs.back().q.end = heads.end;
        ++runs.back().kv.end;
      } else {
        runs.push_back({heads, {g - kv.begin, g - kv.begin + 1}});
      }
    }
    return runs;
  }
};

/// One layer's pass: who computes which heads, and the two all-to-alls.
class Pass {
 public:
  Pass(const AttentionShard& shard, Tag::Pass pass, StepContext& ctx)
      : shard_(shard),
        ctx_(ctx),
        ranks_(ctx.mesh.along(Axis::sequence)),
        tag_(attention_tag(shard, pass)) {
    for (int rank = 0; rank < ranks_.size(); ++rank) {
      heads_.push_back(HeadShard::of(rank, ranks_.size(), shard.q.dim(2), shard.k.dim(2)));
    }
  }

  int size() const { return ranks_.size(); }
  int rank() const { return ranks_.rank(); }
  const HeadShard& heads(int rank) const { return heads_[rank]; }
  const HeadShard& own() const { return heads_[rank()]; }
  std::vector<HeadShard::Run> runs() const { return own().runs(shard_.q.dim(2) / shard_.k.dim(2)); }

  /// Rows of all tokens, [N, B, heads, D].
  Tensor whole(const char* name, DType dtype, int64_t heads) const {
    return rows(name, dtype, shard_.cuts.total(), heads);
  }
  /// Numbers of all tokens, [B, heads, N].
  Tensor whole_numbers(const char* name, DType dtype) const {
    return numbers(name, dtype, own().q.count(), shard_.cuts.total());
  }
  /// Those of one rank's tokens.
  Tensor tokens_of(const Tensor& whole, int rank) const {
    return whole.slice(0, shard_.cuts.begin(rank), shard_.cuts.end(rank));
  }
  Tensor numbers_of(const Tensor& whole, int rank) const {
    return whole.slice(2, shard_.cuts.begin(rank), shard_.cuts.end(rank));
  }

  /// One side's tensors of an all-to-all, by rank; the own ones stay where they are.
  using Pieces = std::vector<std::vector<Tensor>>;
  void all_to_all(const Pieces& ours, const Pieces& theirs) const {
    std::vector<Message> messages;
    for (int distance = 1; distance < size(); ++distance) {
      const int to = (rank() + distance) % size(), from = ranks_.before(distance);
      for (const Tensor& t : ours[to]) messages.push_back(send_to(to, t));
      for (const Tensor& t : theirs[from]) messages.push_back(receive_from(from, t));
    }
    ctx_.compute.wait(ranks_.exchange(std::move(messages), tag_, ctx_.compute));
  }

  /// [T, B, heads, D] and [B, heads, T].
  Tensor rows(const char* name, DType dtype, int64_t tokens, int64_t heads) const {
    return ctx_.scratch.allocate(name, dtype, {tokens, shard_.q.dim(0), heads, shard_.q.dim(3)});
  }
  Tensor numbers(const char* name, DType dtype, int64_t heads, int64_t tokens) const {
    return ctx_.scratch.allocate(name, dtype, {shard_.q.dim(0), heads, tokens});
  }
  void copy_to(const Tensor& y, const Tensor& x) const { copy({.y = y, .x = x}, ctx_.compute); }

  /// Scratch for blocks of own heads over the whole sequence.
  Tensor tiles() const {
    const int64_t N = shard_.cuts.total();
    return attention_tiles(
        shard_, {{shard_.q.dim(0), N, N, own().q.count(), own().kv.count(), shard_.q.dim(3)}},
        ctx_);
  }

  /// The block of one run of own heads over the whole sequence, from rows that begin with q, k, v.
  AttentionBlock block(const HeadShard::Run& run, const Tensor& all) const {
    const int64_t k = own().q.count(), v = k + own().kv.count();
    const auto heads = [&](int64_t first, Heads h) {
      return swapped(all.slice(2, first + h.begin, first + h.end));
    };
    return block_of(shard_, queries_of(shard_, heads(0, run.q), 0),
                    {heads(k, run.kv), heads(v, run.kv)}, 0);
  }

 private:
  const AttentionShard& shard_;
  StepContext& ctx_;
  Communicator& ranks_;
  Tag tag_;
  std::vector<HeadShard> heads_;  // by rank
};

/// Puts heads of [B, T, heads, D] tensors side by side into rows [T, B, ..., D].
class Packing {
 public:
  Packing(const Pass& pass, const Tensor& rows) : pass_(pass), rows_(rows) {}

  void add(const Tensor& t, Heads heads) {
    pass_.copy_to(swapped(rows_.slice(2, at_, at_ + heads.count())),
                  t.slice(2, heads.begin, heads.end));
    at_ += heads.count();
  }

 private:
  const Pass& pass_;
  Tensor rows_;
  int64_t at_ = 0;
};

class UlyssesAttention final : public AttentionParallel {
 public:
  void forward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
               StepContext& ctx) override {
    const Scope scope(ctx.scratch);
    const Pass pass(shard, Tag::Pass::forward, ctx);
    const Tensor all = gather(shard, pass, /*dout=*/{});
    const Tensor all_out = pass.whole("ulysses out", lse.dtype, pass.own().q.count());
    const Tensor all_lse = pass.whole_numbers("ulysses lse", lse.dtype);
    const Tensor tiles = pass.tiles();
    clear_output(all_out, all_lse, ctx);
    for (const HeadShard::Run& run : pass.runs()) {
      attention_forward({.out = swapped(all_out.slice(2, run.q.begin, run.q.end)),
                         .lse = all_lse.slice(1, run.q.begin, run.q.end),
                         .scratch = tiles,
                         .block = pass.block(run, all)},
                        ctx.compute);
    }
    Pass::Pieces ours, theirs;
    for (int rank = 0; rank < pass.size(); ++rank) {
      const int64_t heads = pass.heads(rank).q.count();
      ours.push_back({pass.tokens_of(all_out, rank), packed_numbers(pass, all_lse, shard, rank)});
      theirs.push_back({pass.rows("ulysses out", lse.dtype, shard.q.dim(1), heads),
                        pass.numbers("ulysses lse", lse.dtype, heads, shard.q.dim(1))});
    }
    pass.all_to_all(ours, theirs);
    theirs[pass.rank()] = ours[pass.rank()];
    for (int rank = 0; rank < pass.size(); ++rank) {
      const Heads heads = pass.heads(rank).q;
      pass.copy_to(out.slice(2, heads.begin, heads.end), swapped(theirs[rank][0]));
      pass.copy_to(lse.slice(1, heads.begin, heads.end), theirs[rank][1]);
    }
  }

  void backward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
                const Tensor& dout, const AttentionGradients& gradients,
                StepContext& ctx) override {
    const Scope scope(ctx.scratch);
    const Pass pass(shard, Tag::Pass::backward, ctx);
    const DType wide = lse.dtype;
    const int64_t q_heads = pass.own().q.count(), kv_heads = pass.own().kv.count();
    const Tensor delta =
        ctx.scratch.allocate("attention delta", wide, {lse.dim(0), lse.dim(1), lse.dim(2)});
    attention_delta({.delta = delta, .out = out, .dout = dout}, ctx.compute);
    const Tensor all = gather(shard, pass, dout);
    const Tensor all_lse = gather_numbers(shard, pass, lse);
    const Tensor all_delta = gather_numbers(shard, pass, delta);
    const Tensor sums = pass.whole("ulysses gradients", wide, q_heads + 2 * kv_heads);
    const Tensor tiles = pass.tiles();
    fill({.y = sums, .value = 0}, ctx.compute);
    for (const HeadShard::Run& run : pass.runs()) {
      const auto heads = [&](const Tensor& rows, int64_t first, Heads h) {
        return swapped(rows.slice(2, first + h.begin, first + h.end));
      };
      attention_backward({.dq = heads(sums, 0, run.q),
                          .dk = heads(sums, q_heads, run.kv),
                          .dv = heads(sums, q_heads + kv_heads, run.kv),
                          .scratch = tiles,
                          .dout = heads(all, q_heads + 2 * kv_heads, run.q),
                          .lse = all_lse.slice(1, run.q.begin, run.q.end),
                          .delta = all_delta.slice(1, run.q.begin, run.q.end),
                          .block = pass.block(run, all)},
                         ctx.compute);
    }
    return_gradients(shard, pass, sums, gradients, ctx);
  }

 private:
  /// q, k, v (and dout, where given) of all tokens for the own heads: [N, B, heads of all, D].
  static Tensor gather(const AttentionShard& shard, const Pass& pass, const Tensor& dout) {
    const auto width = [&](const HeadShard& h) {
      return (dout ? 2 : 1) * h.q.count() + 2 * h.kv.count();
    };
    const Tensor all = pass.whole("ulysses rows", shard.q.dtype, width(pass.own()));
    Pass::Pieces ours, theirs;
    for (int rank = 0; rank < pass.size(); ++rank) {
      const HeadShard& h = pass.heads(rank);
      const Tensor piece = rank == pass.rank()
                               ? pass.tokens_of(all, rank)
                               : pass.rows("ulysses rows", shard.q.dtype, shard.q.dim(1), width(h));
      Packing packing(pass, piece);
      packing.add(shard.q, h.q);
      packing.add(shard.k, h.kv);
      packing.add(shard.v, h.kv);
      if (dout) packing.add(dout, h.q);
      ours.push_back({piece});
      theirs.push_back({pass.tokens_of(all, rank)});
    }
    pass.all_to_all(ours, theirs);
    return all;
  }

  /// Numbers [B, H, T] of all tokens for the own heads: [B, own heads, N].
  static Tensor gather_numbers(const AttentionShard& shard, const Pass& pass,
                               const Tensor& numbers) {
    const Tensor all = pass.whole_numbers("ulysses numbers", numbers.dtype);
    Pass::Pieces ours, theirs;
    for (int rank = 0; rank < pass.size(); ++rank) {
      const Heads heads = pass.heads(rank).q;
      const Tensor piece =
          pass.numbers("ulysses numbers", numbers.dtype, heads.count(), shard.q.dim(1));
      pass.copy_to(piece, numbers.slice(1, heads.begin, heads.end));
      ours.push_back({piece});
      theirs.push_back({pass.numbers("ulysses numbers", numbers.dtype, pass.own().q.count(),
                                     shard.cuts.size(rank))});
    }
    pass.all_to_all(ours, theirs);
    theirs[pass.rank()] = ours[pass.rank()];
    for (int rank = 0; rank < pass.size(); ++rank) {
      pass.copy_to(pass.numbers_of(all, rank), theirs[rank][0]);
    }
    return all;
  }

  /// A rank's tokens of [B, own heads, N], without gaps.
  static Tensor packed_numbers(const Pass& pass, const Tensor& all, const AttentionShard& shard,
                               int rank) {
    const Tensor piece = pass.numbers("ulysses lse", all.dtype, all.dim(1), shard.cuts.size(rank));
    pass.copy_to(piece, pass.numbers_of(all, rank));
    return piece;
  }

  /// Gradients of own heads go to the owners of the tokens, who add those of replicated kv heads.
  static void return_gradients(const AttentionShard& shard, const Pass& pass, const Tensor& sums,
                               const AttentionGradients& gradients, StepContext& ctx) {
    Pass::Pieces ours, theirs;
    for (int rank = 0; rank < pass.size(); ++rank) {
      const HeadShard& h = pass.heads(rank);
      ours.push_back({pass.tokens_of(sums, rank)});
      theirs.push_back({rank == pass.rank()
                            ? ours[rank][0]
                            : pass.rows("ulysses gradients", sums.dtype, shard.q.dim(1),
                                        h.q.count() + 2 * h.kv.count())});
    }
    pass.all_to_all(ours, theirs);
    for (int rank = 0; rank < pass.size(); ++rank) {
      const Heads heads = pass.heads(rank).q;
      pass.copy_to(gradients.dq.slice(2, heads.begin, heads.end),
                   swapped(theirs[rank][0].slice(2, 0, heads.count())));
    }
    const Tensor sum = pass.rows("replica sum", sums.dtype, shard.q.dim(1), 1);
    const Tensor term = pass.rows("replica sum", sums.dtype, shard.q.dim(1), 1);
    for (int64_t g = 0; g < shard.k.dim(2); ++g) {
      for (const bool values : {false, true}) {
        bool first = true;
        for (int rank = 0; rank < pass.size(); ++rank) {
          const HeadShard& h = pass.heads(rank);
          if (g < h.kv.begin || g >= h.kv.end) continue;
          const int64_t at = h.q.count() + (values ? h.kv.count() : 0) + g - h.kv.begin;
          pass.copy_to(first ? sum : term, theirs[rank][0].slice(2, at, at + 1));
          if (!first) add({.y = sum, .a = sum, .b = term}, ctx.compute);
          first = false;
        }
        pass.copy_to((values ? gradients.dv : gradients.dk).slice(2, g, g + 1), swapped(sum));
      }
    }
  }
};

}  // namespace

std::unique_ptr<AttentionParallel> make_ulysses_attention() {
  return std::make_unique<UlyssesAttention>();
}

}  // namespace weft
