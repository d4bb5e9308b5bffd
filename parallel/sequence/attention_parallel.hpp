// Softmax attention over the sequence axis: the interface behind which every strategy lives.
#pragma once

#include <memory>

#include "parallel/layer.hpp"

namespace weft {

/// The shard of one layer's attention that a rank holds: tokens [cuts.begin(p), cuts.end(p)) of
/// every sequence, p its coordinate on the sequence axis. Keys are already rotated.
struct AttentionShard {
  Tensor q;                    // [B, T, H, D]
  Tensor k, v;                 // [B, T, G, D]
  Tensor key_begin, key_end;   // [B, T] i64, global: query i sees the keys [key_begin, key_end)
  const Cuts& cuts;            // of the sequence
  double scale;                // of the scores
  bool causal;                 // whether key_end <= the query's own index + 1 everywhere
  int64_t window = 0;          // query t sees at most the keys (t - window, t]; 0: no such bound
  bool one_document = false;   // each sequence is one: `causal` and `window` are the whole mask
  bool deterministic = false;  // AttentionBlock::deterministic, of every block
  int layer;
  int micro_batch;
  /// [B, N] i64, the same of all tokens of the sequence, for a strategy that reads_all_intervals:
  /// one that computes for queries of other ranks. Every rank knows all documents; nothing travels.
  Tensor all_key_begin = {}, all_key_end = {};
};

struct AttentionGradients {
  Tensor dq;      // [B, T, H, D], accumulator type, overwritten
  Tensor dk, dv;  // [B, T, G, D], accumulator type, overwritten
};

/// A strategy computes exact attention over the whole sequence, whatever the cuts (uneven, empty)
/// and the documents. Its messages depend on shapes only, never on documents. When a call returns
/// the compute stream has waited for its transfers, sends included: the shard may then be gone.
class AttentionParallel {
 public:
  virtual ~AttentionParallel() = default;

  /// Overwrites out [B, T, H, D] and lse [B, H, T], both of the accumulator type.
  virtual void forward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
                       StepContext& ctx) = 0;

  /// From forward's out and lse and the gradient dout [B, T, H, D] of out.
  virtual void backward(const AttentionShard& shard, const Tensor& out, const Tensor& lse,
                        const Tensor& dout, const AttentionGradients& gradients,
                        StepContext& ctx) = 0;
};

}  // namespace weft
