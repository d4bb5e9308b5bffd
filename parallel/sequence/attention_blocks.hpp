// What the strategies of softmax attention are made of: pairs of keys and values, queries of one
// rank, and the block of attention between the two.
#pragma once

#include <utility>

#include "parallel/sequence/attention_parallel.hpp"
#include "src/kernels/attention.hpp"

namespace weft {

/// Keys and values, or their gradients.
struct KeyValue {
  Tensor k, v;  // [B, T, G, D]

  /// kv heads [begin, end).
  KeyValue heads(int64_t begin, int64_t end) const {
    return {k.slice(2, begin, end), v.slice(2, begin, end)};
  }
};

/// Consecutive queries and the keys they see. `first` is the global index of the first.
struct Queries {
  Tensor q;                   // [B, T, H, D]
  Tensor key_begin, key_end;  // [B, T] i64
  int64_t first;

  /// Queries [begin, end) of them.
  Queries tokens(int64_t begin, int64_t end) const {
    return {q.slice(1, begin, end), key_begin.slice(1, begin, end), key_end.slice(1, begin, end),
            first + begin};
  }
  /// Query heads [begin, end).
  Queries heads(int64_t begin, int64_t end) const {
    return {q.slice(2, begin, end), key_begin, key_end, first};
  }
};

/// The queries of this rank.
Queries own_queries(const AttentionShard& shard, const StepContext& ctx);
/// `q`: those of tokens [first, first + T), another rank's. The shard has all_key_begin.
Queries queries_of(const AttentionShard& shard, const Tensor& q, int64_t first);

/// Queries against consecutive keys, of which the first has the global index `first_key`.
AttentionBlock block_of(const AttentionShard& shard, const Queries& queries, const KeyValue& keys,
                        int64_t first_key);

/// The scratch of the attention kernels, for blocks of any rank's queries and any rank's keys.
Tensor attention_tiles(const AttentionShard& shard, StepContext& ctx);
/// The same for blocks that are nowhere longer than one of `blocks`.
Tensor attention_tiles(const AttentionShard& shard, std::initializer_list<AttentionSizes> blocks,
                       StepContext& ctx);

/// `t`, or where its type is another one a copy of that type in the scratch: products take sums of
/// the accumulator type rounded to the data's. Contiguous.
Tensor rounded(const Tensor& t, DType dtype, StepContext& ctx);
/// A contiguous copy in the scratch, to be sent.
Tensor packed(const Tensor& t, StepContext& ctx);

Tag attention_tag(const AttentionShard& shard, Tag::Pass pass,
                  Tag::Purpose purpose = Tag::Purpose::attention);

/// out and lse before the first block.
void clear_output(const Tensor& out, const Tensor& lse, StepContext& ctx);
/// Sums of gradients before the first part.
void clear(const KeyValue& sums, StepContext& ctx);
void add_to(const KeyValue& target, const KeyValue& term, StepContext& ctx);
/// Tokens of a batch, target [B, T, H, D] of any stride in B; term contiguous.
void add_to(const Tensor& target, const Tensor& term, StepContext& ctx);

/// [B, T, ...] seen as [T, B, ...], or back. Token-major memory makes any tokens of a batch, and
/// the shards of all ranks one after the other, stretches of memory.
inline Tensor swapped(Tensor t) {
  std::swap(t.shape[0], t.shape[1]);
  std::swap(t.stride[0], t.stride[1]);
  return t;
}

/// Keys beside values, token-major: heads [0, g) of packed [T, B, 2 g, D] are k, the others v, both
/// seen as [B, T, g, D]. One collective moves both.
KeyValue unpacked(const Tensor& packed);
/// The pieces of all ranks in such a tensor of all N tokens, in elements.
Cuts piece_cuts(const Tensor& packed, const Cuts& tokens);

/// Key/value pairs of any rank: room for the largest shard, seen at an owner's size.
class KeyValueBuffer {
 public:
  /// `dtype`: of data or of gradients. Lasts as long as the caller's scope of the scratch arena.
  KeyValueBuffer(const char* name, const AttentionShard& shard, DType dtype, StepContext& ctx);

  KeyValue of_tokens(int64_t tokens) const;

 private:
  Tensor k_, v_;
};

}  // namespace weft
