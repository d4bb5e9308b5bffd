// LightSeq, also known as DistFlashAttn (Li, Shao et al., arXiv 2310.03294): causal attention that
// is balanced on contiguous shards. Early ranks, which run out of keys, help late ones: a helper
// takes a late rank's queries, attends with its own keys, and returns the part. Of an even number
// of ranks the last block is shared: the helper takes half of the queries. The schedule is
// causal_schedule(); here it is run.
//
//   forward   operands of a step are fetched while the step before computes. Keys travel straight
//             to the rank that needs them: 2 G D elements a token. Queries to a helper: H D, and
//             H D + H back in the accumulator type.
//   backward  the same keys, and their gradients back, 2 G D in the accumulator type; to a helper
//             q and dout, 2 H D, lse and delta (instead of the output), 2 H, and dq, H D, back.
//
// The parts of a step are awaited one step later. They are merged and added in the order of the
// steps, so that results do not depend on timing.
#include <algorithm>
#include <span>

#include "parallel/sequence/attention_blocks.hpp"
#include "parallel/sequence/block_schedule.hpp"
#include "parallel/sequence/strategies.hpp"
#include "src/kernels/pointwise.hpp"

namespace weft {
namespace {

constexpr int kNobody = BlockStep::kNobody;

/// What a helper needs of another rank's queries, or returns for them. Unused tensors are absent.
struct QueryRows {
  Tensor heads[2];    // [B, T, H, D]
  Tensor numbers[2];  // [B, H, T]

  QueryRows tokens(const QueryRange& range) const {
    QueryRows rows;
    for (int i = 0; i < 2; ++i) {
      if (heads[i]) rows.heads[i] = heads[i].slice(1, range.begin, range.end);
      if (numbers[i]) rows.numbers[i] = numbers[i].slice(2, range.begin, range.end);
    }
    return rows;
  }
};

/// Room for the rows of any message with queries.
class QueryBuffer {
 public:
  /// `most`: rows of the longest message; `heads` and `numbers` name the types of what is there.
  QueryBuffer(const char* name, const AttentionShard& shard, int64_t most,
              std::initializer_list<DType> heads, std::initializer_list<DType> numbers,
              StepContext& ctx)
      : batch_(shard.q.dim(0)), heads_(shard.q.dim(2)), width_(shard.q.dim(3)) {
    int i = 0;
    for (const DType dtype : heads) {
      rows_.heads[i++] = ctx.scratch.allocate(name, dtype, {batch_, most, heads_, width_});
    }
    i = 0;
    for (const DType dtype : numbers) {
      rows_.numbers[i++] = ctx.scratch.allocate(name, dtype, {batch_, heads_, most});
    }
  }

  QueryRows of_tokens(int64_t tokens) const {
    const int64_t heads[] = {batch_, tokens, heads_, width_}, numbers[] = {batch_, heads_, tokens};
    QueryRows rows;
    for (int i = 0; i < 2; ++i) {
      if (rows_.heads[i]) rows.heads[i] = view(rows_.heads[i], heads);
      if (rows_.numbers[i]) rows.numbers[i] = view(rows_.numbers[i], numbers);
    }
    return rows;
  }

 private:
  static Tensor view(const Tensor& buffer, std::span<const int64_t> dims) {
    return Tensor::view(buffer.data, buffer.dtype, buffer.device, dims);
  }

  int64_t batch_, heads_, width_;
  QueryRows rows_;
};

void append(std::vector<Message>& messages, const QueryRows& rows,
            Message (*way)(int, const Tensor&), int peer) {
  for (const Tensor* t : {&rows.heads[0], &rows.heads[1], &rows.numbers[0], &rows.numbers[1]}) {
    if (*t) messages.push_back(way(peer, *t));
  }
}
void append(std::vector<Message>& messages, const KeyValue& kv, Message (*way)(int, const Tensor&),
            int peer) {
  messages.push_back(way(peer, kv.k));
  messages.push_back(way(peer, kv.v));
}

/// How many halves of distances of a layer are helped, by its shapes alone.
using Helping = int (*)(const AttentionShard& shard, int ranks);

int helped_by_cost(const AttentionShard& shard, int ranks) {
  if (!shard.causal) return 0;
  const double tokens = static_cast<double>(shard.cuts.total()) / ranks;
  const double q_rows = static_cast<double>(shard.q.dim(0) * shard.q.dim(2)) * tokens;
  const double k_rows = static_cast<double>(shard.k.dim(0) * shard.k.dim(2)) * tokens;
  const double width = static_cast<double>(shard.q.dim(3));
  const double e = size_of(shard.q.dtype), w = size_of(accumulator_of(shard.q.dtype));
  const BlockCost cost{.flops = 14 * q_rows * tokens * width,  // 2 + 5 products
                       .key_bytes = k_rows * width * (4 * e + 2 * w),
                       .query_bytes = q_rows * (width * (3 * e + 2 * w) + 3 * w)};
  return helped_halves(ranks, cost);
}

int helped_always(const AttentionShard& shard, int ranks) {
  return shard.causal ? ranks - 1 : 0;
}

/// What both passes of one layer share: the schedule, its communicators, double buffers.
class Pass {
 protected:
  Pass(const AttentionShard& shard, Tag::Pass pass, Helping helping, StepContext& ctx)
      : shard_(shard),
        ctx_(ctx),
        operands_(ctx.mesh.along(Axis::sequence, Lane::forward)),
        results_(ctx.mesh.along(Axis::sequence, Lane::backward)),
        tag_(attention_tag(shard, pass)),
        halves_(helping(shard, operands_.size())),
        steps_(shard.causal ? causal_schedule(operands_.size(), operands_.rank(), halves_)
                            : full_schedule(operands_.size(), operands_.rank())),
        queries_(own_queries(shard, ctx)),
        tiles_(attention_tiles(shard, ctx)) {
    add_keys(keys_, "fetched kv", &BlockStep::keys_of, shard.k.dtype);
  }

  /// Buffers for the steps in which the rank does what `field` names: two that take turns, one
  /// where it is a single step, or none.
  void add_keys(std::vector<KeyValueBuffer>& buffers, const char* name, int BlockStep::*field,
                DType dtype) const {
    for (int64_t i = 0; i < std::min<int64_t>(2, steps_with(field)); ++i) {
      buffers.emplace_back(name, shard_, dtype, ctx_);
    }
  }
  void add_queries(std::vector<QueryBuffer>& buffers, const char* name, int BlockStep::*field,
                   std::initializer_list<DType> heads, std::initializer_list<DType> numbers) const {
    for (int64_t i = 0; i < std::min<int64_t>(2, steps_with(field)); ++i) {
      buffers.emplace_back(name, shard_, most_given(field), heads, numbers, ctx_);
    }
  }
  template <class Buffer>
  static const Buffer& of_step(const std::vector<Buffer>& buffers, int step) {
    return buffers[step % buffers.size()];
  }

  int count() const { return static_cast<int>(steps_.size()); }
  int64_t tokens(int rank) const { return shard_.cuts.size(rank); }
  int64_t own_tokens() const { return tokens(operands_.rank()); }
  int64_t first(int rank) const { return shard_.cuts.begin(rank); }
  KeyValue own_keys() const { return {shard_.k, shard_.v}; }

  /// Own queries that this rank computes in a step, and those that its helper does.
  QueryRange kept(int step) const { return steps_[step].kept(own_tokens()); }
  QueryRange given(int step) const { return steps_[step].given(own_tokens()); }
  /// Queries of the rank that this one helps in a step.
  QueryRange taken(int step) const { return steps_[step].given(tokens(steps_[step].queries_of)); }

  KeyValue fetched_keys(int step) const {
    return of_step(keys_, step).of_tokens(tokens(steps_[step].keys_of));
  }
  QueryRows fetched_queries(int step) const {
    return of_step(rows_, step).of_tokens(taken(step).size());
  }

  /// Posts the transfer of a step's operands; `rows`: what helpers need of our queries.
  Event fetch(int step, const QueryRows& rows) const {
    if (step >= count()) return {};
    const BlockStep& s = steps_[step];
    std::vector<Message> messages;
    if (s.keys_to != kNobody) append(messages, own_keys(), send_to, s.keys_to);
    if (s.helped_by != kNobody) append(messages, without_gaps(step, rows), send_to, s.helped_by);
    if (s.keys_of != kNobody) append(messages, fetched_keys(step), receive_from, s.keys_of);
    if (s.queries_of != kNobody) {
      append(messages, fetched_queries(step), receive_from, s.queries_of);
    }
    return operands_.exchange(std::move(messages), tag_, ctx_.compute);
  }

  /// The block of own queries with the keys of a step.
  AttentionBlock own_block(int step) const {
    const auto [begin, end] = kept(step);
    return block_of(shard_, queries_.tokens(begin, end),
                    step == 0 ? own_keys() : fetched_keys(step), first(steps_[step].keys_of));
  }
  /// The block of the fetched queries with own keys.
  AttentionBlock helped_block(int step) const {
    const Queries queries = queries_of(shard_, fetched_queries(step).heads[0],
                                       first(steps_[step].queries_of) + taken(step).begin);
    return block_of(shard_, queries, own_keys(), first(operands_.rank()));
  }

  /// Whether any rank has a helper in a step.
  bool anybody_helps(int step) const { return step <= halves_ / 2 || steps_[step].shared; }

  const AttentionShard& shard_;
  StepContext& ctx_;
  Communicator& operands_;
  Communicator& results_;
  Tag tag_;
  int halves_;  // of distances that are helped
  std::vector<BlockStep> steps_;
  Queries queries_;
  Tensor tiles_;
  std::vector<KeyValueBuffer> keys_;  // those of other ranks
  std::vector<QueryBuffer> rows_;     // of a rank that we help

 private:
  int64_t steps_with(int BlockStep::*field) const {
    return std::count_if(steps_.begin() + 1, steps_.end(),
                         [&](const BlockStep& step) { return step.*field != kNobody; });
  }
  /// The most queries of a message of those steps.
  int64_t most_given(int BlockStep::*field) const {
    int64_t most = 0;
    for (const BlockStep& step : std::span(steps_).subspan(1)) {
      if (step.*field != kNobody) most = std::max(most, step.given(shard_.cuts.largest()).size());
    }
    return most;
  }

  /// The rows of the queries that the helper of a step computes, as messages have to be.
  QueryRows without_gaps(int step, const QueryRows& own) const {
    QueryRows rows = own.tokens(given(step));
    if (!steps_[step].shared) return rows;
    for (Tensor* t : {&rows.heads[0], &rows.heads[1], &rows.numbers[0], &rows.numbers[1]}) {
      if (*t) *t = packed(*t, ctx_);
    }
    return rows;
  }
};

class Forward : Pass {
 public:
  Forward(const AttentionShard& shard, const Tensor& out, const Tensor& lse, Helping helping,
          StepContext& ctx)
      : Pass(shard, Tag::Pass::forward, helping, ctx), out_(out), lse_(lse) {
    const std::initializer_list<DType> wide{lse.dtype};
    add_queries(rows_, "fetched queries", &BlockStep::queries_of, {shard.q.dtype}, {});
    add_queries(parts_, "helper's part", &BlockStep::queries_of, wide, wide);
    add_queries(returned_, "own part", &BlockStep::helped_by, wide, wide);
  }

  void run() {
    const QueryRows own{.heads = {shard_.q}, .numbers = {}};
    clear_output(out_, lse_, ctx_);
    Event fetched = fetch(1, own), returned;
    attend(result(), own_block(0));
    for (int step = 1; step < count(); ++step) {
      ctx_.compute.wait(fetched);
      fetched = fetch(step + 1, own);
      compute(step);
      const Event next = hand_back(step);
      absorb(step - 1, returned);
      returned = next;
    }
    absorb(count() - 1, returned);
  }

 private:
  void attend(const QueryRows& rows, const AttentionBlock& block) const {
    attention_forward(
        {.out = rows.heads[0], .lse = rows.numbers[0], .scratch = tiles_, .block = block},
        ctx_.compute);
  }

  /// out and lse of own queries.
  QueryRows result() const { return {.heads = {out_}, .numbers = {lse_}}; }
  QueryRows part(int step) const { return of_step(parts_, step).of_tokens(taken(step).size()); }
  QueryRows own_part(int step) const {
    return of_step(returned_, step).of_tokens(given(step).size());
  }

  void compute(int step) const {
    if (steps_[step].keys_of != kNobody) attend(result().tokens(kept(step)), own_block(step));
    if (steps_[step].queries_of != kNobody) {
      const QueryRows rows = part(step);
      clear_output(rows.heads[0], rows.numbers[0], ctx_);
      attend(rows, helped_block(step));
    }
  }

  /// Posts the return of what was computed for another rank, and the receipt of ours.
  Event hand_back(int step) const {
    if (!anybody_helps(step)) return {};  // no rank makes the call
    const BlockStep& s = steps_[step];
    std::vector<Message> messages;
    if (s.queries_of != kNobody) append(messages, part(step), send_to, s.queries_of);
    if (s.helped_by != kNobody) append(messages, own_part(step), receive_from, s.helped_by);
    return results_.exchange(std::move(messages), tag_, ctx_.compute);
  }

  void absorb(int step, const Event& returned) const {
    ctx_.compute.wait(returned);
    if (step < 1 || steps_[step].helped_by == kNobody) return;
    const QueryRows own = result().tokens(given(step)), rows = own_part(step);
    attention_merge({.out = own.heads[0],
                     .lse = own.numbers[0],
                     .part_out = rows.heads[0],
                     .part_lse = rows.numbers[0]},
                    ctx_.compute);
  }

  const Tensor& out_;
  const Tensor& lse_;
  std::vector<QueryBuffer> parts_;     // what we found for another rank
  std::vector<QueryBuffer> returned_;  // what our helper found
};

class Backward : Pass {
 public:
  Backward(const AttentionShard& shard, const Tensor& out, const Tensor& lse, const Tensor& dout,
           const AttentionGradients& gradients, Helping helping, StepContext& ctx)
      : Pass(shard, Tag::Pass::backward, helping, ctx),
        lse_(lse),
        dout_(dout),
        gradients_(gradients),
        delta_(ctx.scratch.allocate("attention delta", lse.dtype,
                                    {lse.dim(0), lse.dim(1), lse.dim(2)})) {
    attention_delta({.delta = delta_, .out = out, .dout = dout}, ctx.compute);
    const DType wide = lse.dtype;
    add_queries(rows_, "fetched queries", &BlockStep::queries_of, {shard.q.dtype, dout.dtype},
                {wide, wide});
    add_queries(dq_parts_, "helper's dq", &BlockStep::queries_of, {wide}, {});
    add_queries(dq_returned_, "own dq part", &BlockStep::helped_by, {wide}, {});
    add_keys(dkv_parts_, "dkv of others", &BlockStep::keys_of, wide);
    add_keys(dkv_returned_, "own dkv part", &BlockStep::keys_to, wide);
  }

  void run() {
    const QueryRows own{.heads = {shard_.q, dout_}, .numbers = {lse_, delta_}};
    fill({.y = gradients_.dq, .value = 0}, ctx_.compute);
    clear(own_gradients(), ctx_);
    Event fetched = fetch(1, own), returned;
    differentiate(own, gradients_.dq, own_gradients(), own_block(0));
    for (int step = 1; step < count(); ++step) {
      ctx_.compute.wait(fetched);
      fetched = fetch(step + 1, own);
      compute(step, own);
      const Event next = hand_back(step);
      absorb(step - 1, returned);
      returned = next;
    }
    absorb(count() - 1, returned);
  }

 private:
  /// `rows`: q, dout, lse, delta of the block's queries.
  void differentiate(const QueryRows& rows, const Tensor& dq, const KeyValue& dkv,
                     const AttentionBlock& block) const {
    attention_backward({.dq = dq,
                        .dk = dkv.k,
                        .dv = dkv.v,
                        .scratch = tiles_,
                        .dout = rows.heads[1],
                        .lse = rows.numbers[0],
                        .delta = rows.numbers[1],
                        .block = block},
                       ctx_.compute);
  }

  KeyValue own_gradients() const { return {gradients_.dk, gradients_.dv}; }
  KeyValue dkv_part(int step) const {
    return of_step(dkv_parts_, step).of_tokens(tokens(steps_[step].keys_of));
  }
  KeyValue own_dkv_part(int step) const {
    return of_step(dkv_returned_, step).of_tokens(own_tokens());
  }
  QueryRows dq_part(int step) const {
    return of_step(dq_parts_, step).of_tokens(taken(step).size());
  }
  QueryRows own_dq_part(int step) const {
    return of_step(dq_returned_, step).of_tokens(given(step).size());
  }

  void compute(int step, const QueryRows& own) const {
    if (steps_[step].keys_of != kNobody) {
      const auto [begin, end] = kept(step);
      clear(dkv_part(step), ctx_);
      differentiate(own.tokens({begin, end}), gradients_.dq.slice(1, begin, end), dkv_part(step),
                    own_block(step));
    }
    if (steps_[step].queries_of != kNobody) {
      const Tensor dq = dq_part(step).heads[0];
      fill({.y = dq, .value = 0}, ctx_.compute);
      differentiate(fetched_queries(step), dq, own_gradients(), helped_block(step));
    }
  }

  /// Posts the return of gradients that belong to others, and the receipt of ours.
  Event hand_back(int step) const {
    const BlockStep& s = steps_[step];
    std::vector<Message> messages;
    if (s.keys_of != kNobody) append(messages, dkv_part(step), send_to, s.keys_of);
    if (s.queries_of != kNobody) append(messages, dq_part(step), send_to, s.queries_of);
    if (s.keys_to != kNobody) append(messages, own_dkv_part(step), receive_from, s.keys_to);
    if (s.helped_by != kNobody) append(messages, own_dq_part(step), receive_from, s.helped_by);
    return results_.exchange(std::move(messages), tag_, ctx_.compute);
  }

  void absorb(int step, const Event& returned) const {
    ctx_.compute.wait(returned);
    if (step < 1) return;
    if (steps_[step].keys_to != kNobody) add_to(own_gradients(), own_dkv_part(step), ctx_);
    if (steps_[step].helped_by != kNobody) {
      const auto [begin, end] = given(step);
      add_to(gradients_.dq.slice(1, begin, end), own_dq_part(step).heads[0], ctx_);
    }
  }

  const Tensor& lse_;
  const Tensor& dout_;
  const AttentionGradients& gradients_;
  Tensor delta_;
  std::vector<KeyValueBuffer> dkv_parts_;     // gradients of keys of others
  std::vector<KeyValueBuffer> dkv_returned_;  // what others found for our keys
  std::vector<QueryBuffer> dq_parts_;         // gradients of queries that we help
  std::vector<QueryBuffer> dq_returned_;      // what our helper found
};

class LightSeqAttention final : public AttentionParallel {
 public:
  explicit LightSeqAttention(Helping helping) : helping_(helping) {}

  void forward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
               StepContext& ctx) override {
    const Scope scope(ctx.scratch);
    Forward(shard, out, lse, helping_, ctx).run();
  }

  void backward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
                const Tensor& dout, const AttentionGradients& gradients,
                StepContext& ctx) override {
    const Scope scope(ctx.scratch);
    Backward(shard, out, lse, dout, gradients, helping_, ctx).run();
  }

 private:
  Helping helping_;
};

}  // namespace

std::unique_ptr<AttentionParallel> make_lightseq_attention() {
  return std::make_unique<LightSeqAttention>(helped_by_cost);
}

std::unique_ptr<AttentionParallel> make_balanced_lightseq_attention() {
  return std::make_unique<LightSeqAttention>(helped_always);
}

}  // namespace weft
