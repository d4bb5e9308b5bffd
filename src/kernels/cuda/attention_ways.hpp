// The ways that the CUDA twin of attention has, and the steps that they are made of.
#pragma once

#include "src/kernels/attention.hpp"

namespace weft::cuda {

/// In f32 on tiles of 64 queries and keys, whatever the intervals and the strides:
/// cuda::attention_forward and _backward but for the choice of a way.
void attention_forward_on_tiles(const AttentionForwardArgs& args, Stream& stream);
void attention_backward_on_tiles(const AttentionBackwardArgs& args, Stream& stream);

/// The same in bf16 with sums in f32, whatever the intervals, where rows of q, k, v and of `others`
/// (outputs, dout, gradients) start on 16 bytes and have a multiple of 8 elements.
bool attention_fits_tensor_cores(const AttentionBlock& block,
                                 std::initializer_list<const Tensor*> others);
void attention_forward_on_tensor_cores(const AttentionForwardArgs& args, Stream& stream);
void attention_backward_on_tensor_cores(const AttentionBackwardArgs& args, Stream& stream);

/// The same on the matrix units of Hopper GPUs, where this build and the current GPU have them:
/// elsewhere they must not be called.
bool has_warpgroups();
void attention_forward_on_warpgroups(const AttentionForwardArgs& args, Stream& stream);
void attention_backward_on_warpgroups(const AttentionBackwardArgs& args, Stream& stream);

/// By cuDNN in bf16, a piece of the block after the other; own kernels take those that it has no
/// plan for. The block has a band.
void attention_forward_in_pieces(const AttentionForwardArgs& args, Stream& stream);
void attention_backward_in_pieces(const AttentionBackwardArgs& args, Stream& stream);

/// Operands of a backward pass that takes the output of the whole row where we have delta, its row
/// sum with dout. out = delta dout / |dout|^2 has that row sum, is nowhere longer than the output
/// (Cauchy and Schwarz), and, all terms of the sum having one sign, loses less of delta when it is
/// rounded than the output does. Rows are copied to where they have no gaps.
struct StandInArgs {
  Tensor out;         // [B, Tq, H, D] bf16, contiguous
  Tensor packed_lse;  // [B, H, Tq] f32, contiguous; +inf in rows that see nothing
  Tensor lengths;     // [2 B] i32: Tq of each sequence, then `keys`
  Tensor dout;        // [B, Tq, H, D] bf16
  Tensor lse, delta;  // [B, H, Tq] f32
  int64_t keys;
};
void attention_stand_in(const StandInArgs& args, Stream& stream);

/// sum += term: f32 of any strides, bf16 without gaps, both [B, T, heads, D], innermost stride 1.
void add_heads(const Tensor& sum, const Tensor& term, Stream& stream);

}  // namespace weft::cuda
