#include "parallel/sequence/attention_blocks.hpp"

#include <algorithm>
#include <cmath>

#include "src/kernels/pointwise.hpp"

namespace weft {
namespace {

/// [B, tokens, ...] at the start of a buffer [B, more tokens, ...].
Tensor first_tokens(const Tensor& buffer, int64_t tokens) {
  const int64_t dims[] = {buffer.dim(0), tokens, buffer.dim(2), buffer.dim(3)};
  return Tensor::view(buffer.data, buffer.dtype, buffer.device, dims);
}

/// Contiguous, of the shape of `t`.
Tensor room_like(const char* name, const Tensor& t, DType dtype, StepContext& ctx) {
  const Tensor flat = ctx.scratch.allocate(name, dtype, {t.numel()});
  return Tensor::view(flat.data, dtype, flat.device, {t.shape.data(), static_cast<size_t>(t.ndim)});
}

/// Pairs that the causal mask and the window leave, whatever the documents.
double pairs(const AttentionShard& shard, int64_t q_begin, int64_t q_end, int64_t k_begin,
             int64_t k_end) {
  if (!shard.causal) return static_cast<double>(q_end - q_begin) * (k_end - k_begin);
  if (shard.window > 0) return window_pairs(q_begin, q_end, k_begin, k_end, shard.window);
  return causal_pairs(q_begin, q_end, k_begin, k_end);
}

}  // namespace

Queries own_queries(const AttentionShard& shard, const StepContext& ctx) {
  return {shard.q, shard.key_begin, shard.key_end, shard.cuts.begin(ctx.mesh.at(Axis::sequence))};
}

Queries queries_of(const AttentionShard& shard, const Tensor& q, int64_t first) {
  const int64_t end = first + q.dim(1);
  return {q, shard.all_key_begin.slice(1, first, end), shard.all_key_end.slice(1, first, end),
          first};
}

AttentionBlock block_of(const AttentionShard& shard, const Queries& queries, const KeyValue& keys,
                        int64_t first_key) {
  AttentionBlock block{.q = queries.q,
                       .k = keys.k,
                       .v = keys.v,
                       .key_begin = queries.key_begin,
                       .key_end = queries.key_end,
                       .first_key = first_key,
                       .scale = shard.scale,
                       .pairs = pairs(shard, queries.first, queries.first + queries.q.dim(1),
                                      first_key, first_key + keys.k.dim(1)),
                       .deterministic = shard.deterministic};
  if (shard.one_document) block.band = BandMask{queries.first, shard.causal, shard.window};
  return block;
}

Tensor attention_tiles(const AttentionShard& shard, StepContext& ctx) {
  const Tensor &q = shard.q, &k = shard.k;
  const int64_t tokens = shard.cuts.largest();
  return attention_tiles(shard, {{q.dim(0), tokens, tokens, q.dim(2), k.dim(2), q.dim(3)}}, ctx);
}

Tensor attention_tiles(const AttentionShard& shard, std::initializer_list<AttentionSizes> blocks,
                       StepContext& ctx) {
  int64_t bytes = 0;
  for (const AttentionSizes& sizes : blocks) {
    bytes = std::max(bytes, attention_scratch_bytes(ctx.target(), shard.q.dtype, sizes));
  }
  return ctx.scratch.allocate("attention tiles", DType::u8, {bytes});
}

Tensor rounded(const Tensor& t, DType dtype, StepContext& ctx) {
  if (t.dtype == dtype) return t;
  const Tensor y = room_like("rounded", t, dtype, ctx);
  convert({.y = y, .x = t}, ctx.compute);
  return y;
}

Tensor packed(const Tensor& t, StepContext& ctx) {
  const Tensor y = room_like("packed", t, t.dtype, ctx);
  copy({.y = y, .x = t}, ctx.compute);
  return y;
}

Tag attention_tag(const AttentionShard& shard, Tag::Pass pass, Tag::Purpose purpose) {
  return {shard.layer, purpose, pass, shard.micro_batch};
}

void clear_output(const Tensor& out, const Tensor& lse, StepContext& ctx) {
  fill({.y = out, .value = 0}, ctx.compute);
  fill({.y = lse, .value = -INFINITY}, ctx.compute);
}

void clear(const KeyValue& sums, StepContext& ctx) {
  fill({.y = sums.k, .value = 0}, ctx.compute);
  fill({.y = sums.v, .value = 0}, ctx.compute);
}

void add_to(const KeyValue& target, const KeyValue& term, StepContext& ctx) {
  add({.y = target.k, .a = target.k, .b = term.k}, ctx.compute);
  add({.y = target.v, .a = target.v, .b = term.v}, ctx.compute);
}

void add_to(const Tensor& target, const Tensor& term, StepContext& ctx) {
  for (int64_t b = 0; b < target.dim(0); ++b) {
    const Tensor y = target.slice(0, b, b + 1);
    add({.y = y, .a = y, .b = term.slice(0, b, b + 1)}, ctx.compute);
  }
}

KeyValue unpacked(const Tensor& packed) {
  const int64_t heads = packed.dim(2) / 2;
  return {swapped(packed.slice(2, 0, heads)), swapped(packed.slice(2, heads, 2 * heads))};
}

Cuts piece_cuts(const Tensor& packed, const Cuts& tokens) {
  std::vector<int64_t> sizes;
  for (int rank = 0; rank < tokens.pieces(); ++rank) {
    sizes.push_back(tokens.size(rank) * packed.stride[0]);
  }
  return Cuts::of_sizes(sizes);
}

KeyValueBuffer::KeyValueBuffer(const char* name, const AttentionShard& shard, DType dtype,
                               StepContext& ctx) {
  const Tensor& k = shard.k;
  const auto make = [&] {
    return ctx.scratch.allocate(name, dtype, {k.dim(0), shard.cuts.largest(), k.dim(2), k.dim(3)});
  };
  k_ = make();
  v_ = make();
}

KeyValue KeyValueBuffer::of_tokens(int64_t tokens) const {
  return {first_tokens(k_, tokens), first_tokens(v_, tokens)};
}

}  // namespace weft
