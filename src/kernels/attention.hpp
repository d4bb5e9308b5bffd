// Softmax attention of one block of queries against one block of keys: the unit every sequence
// strategy is made of. Blocks merge through their log-sum-exp (Dao et al., arXiv 2205.14135; Liu et
// al., arXiv 2310.01889), so any partition of the keys gives the same result.
#pragma once

#include <optional>

#include "src/core/cost.hpp"
#include "src/core/device.hpp"
#include "src/tensor/tensor.hpp"

namespace weft {

/// What the host knows of a block's intervals where each sequence is one document: query i of the
/// block has the global index t = first_query + i, and sees the keys up to t, no further back than
/// the window, or without `causal` all keys.
struct BandMask {
  int64_t first_query = 0;
  bool causal = false;
  int64_t window = 0;  // with `causal`: query t sees the keys (t - window, t]; 0: all up to t
};

/// Which keys a query sees is an interval of global key indices, one per query: causal masks,
/// documents and windows are all intervals. Of q, k, v and their gradients only the innermost
/// stride must be 1: a block may be a view of something larger.
struct AttentionBlock {
  Tensor q;                   // [B, Tq, H, D]
  Tensor k, v;                // [B, Tk, G, D]; G divides H, query head h reads kv head h / (H / G)
  Tensor key_begin, key_end;  // [B, Tq] i64: query i sees the global keys [key_begin, key_end)
  int64_t first_key = 0;      // global index of key 0 of this block
  double scale = 1.0;         // of the scores, usually D^-1/2
  double pairs = 0;  // (query, key) pairs a head counts in cost(); documents do not change it
  /// The same mask as the intervals', where it is one that the host knows: what a GPU's library can
  /// be asked for. Nothing else depends on it.
  std::optional<BandMask> band = {};
  /// Two calls give the same bits. On a GPU that rules out cuDNN's backward pass, which adds to dq
  /// atomically; every other way sums in one order anyway.
  bool deterministic = false;
};

/// Row tensors (lse, delta and the like) are [B, H, Tq] in the accumulator type of q; their
/// innermost stride is 1, so that they too may be a view of some heads or some queries.

/// Merges the block's softmax into (out, lse). Before the first block out is 0 and lse -inf; after
/// any block out is normalised over the keys seen so far and lse their log-sum-exp. A query that
/// sees no key of this block keeps its row.
struct AttentionForwardArgs {
  Tensor out;      // [B, Tq, H, D], accumulator type of q; accumulates
  Tensor lse;      // [B, H, Tq], accumulator type; accumulates
  Tensor scratch;  // u8 [attention_scratch_bytes]
  AttentionBlock block;
};
Cost cost(const AttentionForwardArgs& args);
std::vector<Product> products(const AttentionForwardArgs& args);
void attention_forward(const AttentionForwardArgs& args, Stream& stream);

/// Merges what another rank computed for the same queries over keys that (out, lse) have not seen:
/// normalised part_out and its part_lse. Rows of part_lse -inf saw nothing and change nothing.
struct AttentionMergeArgs {
  Tensor out;                 // [B, Tq, H, D], accumulator type; accumulates
  Tensor lse;                 // [B, H, Tq]; accumulates
  Tensor part_out, part_lse;  // as out and lse
};
Cost cost(const AttentionMergeArgs& args);
void attention_merge(const AttentionMergeArgs& args, Stream& stream);

/// delta = rowsum(dout * out), once per query before its backward blocks.
struct AttentionDeltaArgs {
  Tensor delta;      // [B, H, Tq], accumulator type
  Tensor out, dout;  // [B, Tq, H, D]
};
Cost cost(const AttentionDeltaArgs& args);
void attention_delta(const AttentionDeltaArgs& args, Stream& stream);

/// Gradients of one block from the FINAL lse: P = exp(scale q k - lse), blocks are independent.
struct AttentionBackwardArgs {
  Tensor dq;          // [B, Tq, H, D], accumulator type; accumulates
  Tensor dk, dv;      // [B, Tk, G, D], accumulator type; accumulate
  Tensor scratch;     // u8 [attention_scratch_bytes]
  Tensor dout;        // [B, Tq, H, D]
  Tensor lse, delta;  // [B, H, Tq], accumulator type
  AttentionBlock block;
};
Cost cost(const AttentionBackwardArgs& args);
std::vector<Product> products(const AttentionBackwardArgs& args);
void attention_backward(const AttentionBackwardArgs& args, Stream& stream);

/// The CPU twin walks a block in tiles of this many queries and keys, the last of a row shorter.
/// The products that a call reports are as many whole tiles as hold its `pairs`, a fraction for
/// the rest: what a mask hides is not counted, wherever it lies.
inline constexpr int64_t kAttentionQueryTile = 256;
inline constexpr int64_t kAttentionKeyTile = 256;

/// Scratch of one forward or backward call on the CPU, whatever the block's lengths.
int64_t attention_scratch_bytes(DType dtype, int64_t head_dim);

/// Lengths of a block.
struct AttentionSizes {
  int64_t batch, queries, keys, heads, kv_heads, head_dim;
};
/// The same on `device` (not meta): enough for every block that is nowhere longer.
int64_t attention_scratch_bytes(Device device, DType dtype, const AttentionSizes& sizes);

/// Pairs that a causal mask leaves between queries [q_begin, q_end) and keys [k_begin, k_end).
double causal_pairs(int64_t q_begin, int64_t q_end, int64_t k_begin, int64_t k_end);
/// The same when query i sees only the keys (i - window, i].
double window_pairs(int64_t q_begin, int64_t q_end, int64_t k_begin, int64_t k_end, int64_t window);

namespace cpu {
void attention_forward(const AttentionForwardArgs& args);
void attention_merge(const AttentionMergeArgs& args);
void attention_delta(const AttentionDeltaArgs& args);
void attention_backward(const AttentionBackwardArgs& args);
}  // namespace cpu

namespace cuda {
void attention_forward(const AttentionForwardArgs& args, Stream& stream);
void attention_merge(const AttentionMergeArgs& args, Stream& stream);
void attention_delta(const AttentionDeltaArgs& args, Stream& stream);
void attention_backward(const AttentionBackwardArgs& args, Stream& stream);
}  // namespace cuda

}  // namespace weft
