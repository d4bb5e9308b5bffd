// Attention over keys and values that are projected along the sequence (Linformer, Wang et al.,
// arXiv 2006.04768): every query attends to R rows K' = E K and V' = F V, E and F [R, N]. A rank
// projects its own tokens with its own columns, and the sum over the ranks is all that travels:
//
//   forward   an all-reduce of (K', V'), 2 B R G D elements of the accumulator type; the attention
//             itself is local.
//   backward  an all-reduce of (dK', dV') of all queries, as many again; dK = E^T dK' and
//             dE += dK' K^T, and so for V and F, are local, each to a rank's own columns.
//
// Both sums are only started here, so that a caller has something to compute meanwhile. Buffers of
// a sum in flight come from the scratch arena: the caller's scope of it ends after the wait.
#pragma once

#include "parallel/sequence/attention_parallel.hpp"

namespace weft {

/// What a rank holds: its tokens, which are neither masked nor of several documents, so that every
/// interval of `attention` is [0, N), N >= R; and its columns of the projections.
struct ProjectedShard {
  AttentionShard attention;
  Tensor e, f;  // [R, T], rows of any stride: of the keys and of the values
};

/// Overwrites `projected`, [2, B, R, G, D] of the accumulator type, with (E K, F V) of the whole
/// sequence: the same bits on all ranks, once the event is waited for.
Event project(const ProjectedShard& shard, const Tensor& projected, StepContext& ctx);

/// Attention of the rank's queries over the rows of `projected`. Overwrites out [B, T, H, D] and
/// lse [B, H, T], both of the accumulator type.
void attend_projected(const ProjectedShard& shard, const Tensor& projected, const Tensor& out,
                      const Tensor& lse, StepContext& ctx);

/// From attend_projected's out and lse and the gradient dout of out: overwrites dq [B, T, H, D],
/// accumulator type, and `dprojected`, shaped as `projected`, with the gradients that the queries
/// of all ranks give it, the latter once the event is waited for.
Event attend_projected_backward(const ProjectedShard& shard, const Tensor& projected,
                                const Tensor& out, const Tensor& lse, const Tensor& dout,
                                const Tensor& dq, const Tensor& dprojected, StepContext& ctx);

/// From the gradients of (K', V') to those of the rank's k and v, [B, T, G, D] of the accumulator
/// type, overwritten, and of its columns of the projections, [R, T], added to.
void project_backward(const ProjectedShard& shard, const Tensor& dprojected, const Tensor& dk,
                      const Tensor& dv, const Tensor& de, const Tensor& df, StepContext& ctx);

}  // namespace weft
