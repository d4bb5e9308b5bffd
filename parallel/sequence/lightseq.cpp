// LightSeq, also known as DistFlashAttn (Li, Shao et al., arXiv 2310.03294): causal attention that
// is balanced on contiguous shards. Early ranks, which run out of keys, help late ones: a helper
// takes a late rank's queries, attends with its own keys, and returns the part. The schedule is
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
};

/// Room for the rows of the largest shard.
class QueryBuffer {
 public:
  /// `heads` and `numbers` name the types of what is there.
  QueryBuffer(const char* name, const AttentionShard& shard, std::initializer_list<DType> heads,
              std::initializer_list<DType> numbers, StepContext& ctx)
      : batch_(shard.q.dim(0)), heads_(shard.q.dim(2)), width_(shard.q.dim(3)) {
    const int64_t most = shard.cuts.largest();
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

/// How many distances of a layer are helped, by its shapes alone.
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
  return helped_distances(ranks, cost);
}

int helped_always(const AttentionShard& shard, int ranks) {
  return shard.causal ? (ranks - 1) / 2 : 0;
}

/// Whether any step has the rank do what `field` names.
bool ever(const std::vector<BlockStep>& steps, int BlockStep::*field) {
  return std::any_of(steps.begin() + 1, steps.end(),
                     [&](const BlockStep& step) { return step.*field != kNobody; });
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
        helped_(helping(shard, operands_.size())),
        steps_(shard.causal ? causal_schedule(operands_.size(), operands_.rank(), helped_)
                            : full_schedule(operands_.size(), operands_.rank())),
        queries_(own_queries(shard, ctx)),
        tiles_(attention_tiles(shard, ctx)) {
    if (ever(steps_, &BlockStep::keys_of)) add_twice(keys_, "fetched kv", shard, shard.k.dtype);
  }

  template <class Buffer, class... Args>
  void add_twice(std::vector<Buffer>& buffers, const char* name, const AttentionShard& shard,
                 const Args&... args) {
    for (int i = 0; i < 2; ++i) buffers.emplace_back(name, shard, args..., ctx_);
  }

  int count() const { return static_cast<int>(steps_.size()); }
  int64_t tokens(int rank) const { return shard_.cuts.size(rank); }
  int64_t own_tokens() const { return tokens(operands_.rank()); }
  int64_t first(int rank) const { return shard_.cuts.begin(rank); }
  KeyValue own_keys() const { return {shard_.k, shard_.v}; }
  KeyValue fetched_keys(int step) const {
    return keys_[step % 2].of_tokens(tokens(steps_[step].keys_of));
  }
  QueryRows fetched_queries(int step) const {
    return rows_[step % 2].of_tokens(tokens(steps_[step].queries_of));
  }

  /// Posts the transfer of a step's operands; `rows`: what our helper gets of our queries.
  Event fetch(int step, const QueryRows& rows) const {
    if (step >= count()) return {};
    const auto& [keys_of, keys_to, queries_of, helped_by] = steps_[step];
    std::vector<Message> messages;
    if (keys_to != kNobody) append(messages, own_keys(), send_to, keys_to);
    if (helped_by != kNobody) append(messages, rows, send_to, helped_by);
    if (keys_of != kNobody) append(messages, fetched_keys(step), receive_from, keys_of);
    if (queries_of != kNobody) append(messages, fetched_queries(step), receive_from, queries_of);
    return operands_.exchange(std::move(messages), tag_, ctx_.compute);
  }

  /// The block of own queries with the keys of a step.
  AttentionBlock own_block(int step) const {
    const int from = steps_[step].keys_of;
    return block_of(shard_, queries_, step == 0 ? own_keys() : fetched_keys(step), first(from));
  }
  /// The block of the fetched queries with own keys.
  AttentionBlock helped_block(int step) const {
    const Queries queries =
        queries_of(shard_, fetched_queries(step).heads[0], first(steps_[step].queries_of));
    return block_of(shard_, queries, own_keys(), first(operands_.rank()));
  }

  const AttentionShard& shard_;
  StepContext& ctx_;
  Communicator& operands_;
  Communicator& results_;
  Tag tag_;
  int helped_;  // distances
  std::vector<BlockStep> steps_;
  Queries queries_;
  Tensor tiles_;
  std::vector<KeyValueBuffer> keys_;  // two, or none when no step needs them, as all buffers
  std::vector<QueryBuffer> rows_;     // of a rank that we help
};

class Forward : Pass {
 public:
  Forward(const AttentionShard& shard, const Tensor& out, const Tensor& lse, Helping helping,
          StepContext& ctx)
      : Pass(shard, Tag::Pass::forward, helping, ctx), out_(out), lse_(lse) {
    const std::initializer_list<DType> wide{lse.dtype};
    if (ever(steps_, &BlockStep::queries_of)) {
      add_twice(rows_, "fetched queries", shard, std::initializer_list{shard.q.dtype},
                std::initializer_list<DType>{});
      add_twice(parts_, "helper's part", shard, wide, wide);
    }
    if (ever(steps_, &BlockStep::helped_by)) add_twice(returned_, "own part", shard, wide, wide);
  }

  void run() {
    const QueryRows own{.heads = {shard_.q}, .numbers = {}};
    clear_output(out_, lse_, ctx_);
    Event fetched = fetch(1, own), returned;
    attend(out_, lse_, own_block(0));
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
  void attend(const Tensor& out, const Tensor& lse, const AttentionBlock& block) const {
    attention_forward({.out = out, .lse = lse, .scratch = tiles_, .block = block}, ctx_.compute);
  }

  QueryRows part(int step) const {
    return parts_[step % 2].of_tokens(tokens(steps_[step].queries_of));
  }
  QueryRows own_part(int step) const { return returned_[step % 2].of_tokens(own_tokens()); }

  void compute(int step) const {
    if (steps_[step].keys_of != kNobody) attend(out_, lse_, own_block(step));
    if (steps_[step].queries_of != kNobody) {
      const QueryRows rows = part(step);
      clear_output(rows.heads[0], rows.numbers[0], ctx_);
      attend(rows.heads[0], rows.numbers[0], helped_block(step));
    }
  }

  /// Posts the return of what was computed for another rank, and the receipt of ours.
  Event hand_back(int step) const {
    if (step > helped_) return {};  // nobody helps: no rank makes the call
    const auto& [keys_of, keys_to, queries_of, helped_by] = steps_[step];
    std::vector<Message> messages;
    if (queries_of != kNobody) append(messages, part(step), send_to, queries_of);
    if (helped_by != kNobody) append(messages, own_part(step), receive_from, helped_by);
    return results_.exchange(std::move(messages), tag_, ctx_.compute);
  }

  void absorb(int step, const Event& returned) const {
    ctx_.compute.wait(returned);
    if (step < 1 || steps_[step].helped_by == kNobody) return;
    const QueryRows rows = own_part(step);
    attention_merge(
        {.out = out_, .lse = lse_, .part_out = rows.heads[0], .part_lse = rows.numbers[0]},
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
    if (ever(steps_, &BlockStep::queries_of)) {
      add_twice(rows_, "fetched queries", shard, std::initializer_list{shard.q.dtype, dout.dtype},
                std::initializer_list{wide, wide});
      add_twice(dq_parts_, "helper's dq", shard, std::initializer_list{wide},
                std::initializer_list<DType>{});
    }
    if (ever(steps_, &BlockStep::helped_by)) {
      add_twice(dq_returned_, "own dq part", shard, std::initializer_list{wide},
                std::initializer_list<DType>{});
    }
    if (ever(steps_, &BlockStep::keys_of)) add_twice(dkv_parts_, "dkv of others", shard, wide);
    if (ever(steps_, &BlockStep::keys_to)) add_twice(dkv_returned_, "own dkv part", shard, wide);
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
    return dkv_parts_[step % 2].of_tokens(tokens(steps_[step].keys_of));
  }
  KeyValue own_dkv_part(int step) const { return dkv_returned_[step % 2].of_tokens(own_tokens()); }
  QueryRows dq_part(int step) const {
    return dq_parts_[step % 2].of_tokens(tokens(steps_[step].queries_of));
  }
  QueryRows own_dq_part(int step) const { return dq_returned_[step % 2].of_tokens(own_tokens()); }

  void compute(int step, const QueryRows& own) const {
    if (steps_[step].keys_of != kNobody) {
      clear(dkv_part(step), ctx_);
      differentiate(own, gradients_.dq, dkv_part(step), own_block(step));
    }
    if (steps_[step].queries_of != kNobody) {
      const Tensor dq = dq_part(step).heads[0];
      fill({.y = dq, .value = 0}, ctx_.compute);
      differentiate(fetched_queries(step), dq, own_gradients(), helped_block(step));
    }
  }

  /// Posts the return of gradients that belong to others, and the receipt of ours.
  Event hand_back(int step) const {
    const auto& [keys_of, keys_to, queries_of, helped_by] = steps_[step];
    std::vector<Message> messages;
    if (keys_of != kNobody) append(messages, dkv_part(step), send_to, keys_of);
    if (queries_of != kNobody) append(messages, dq_part(step), send_to, queries_of);
    if (keys_to != kNobody) append(messages, own_dkv_part(step), receive_from, keys_to);
    if (helped_by != kNobody) append(messages, own_dq_part(step), receive_from, helped_by);
    return results_.exchange(std::move(messages), tag_, ctx_.compute);
  }

  void absorb(int step, const Event& returned) const {
    ctx_.compute.wait(returned);
    if (step < 1) return;
    if (steps_[step].keys_to != kNobody) add_to(own_gradients(), own_dkv_part(step), ctx_);
    if (steps_[step].helped_by != kNobody) {
      add({.y = gradients_.dq, .a = gradients_.dq, .b = own_dq_part(step).heads[0]}, ctx_.compute);
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
