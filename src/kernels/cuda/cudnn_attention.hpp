// Attention of one piece of a block by cuDNN, for files that know no cuDNN. Its headers take
// minutes to compile, so one file includes them.
#pragma once

#include <string>

#include "src/kernels/attention_pieces.hpp"

namespace weft::cuda {

/// Whether this build has cuDNN.
bool has_cudnn();

/// "cuDNN 9.19.0, front end 1.18.0": the library found at run time. Empty in a build without.
std::string cudnn_version();

/// The operands of a piece, cut to its queries and keys: bf16 on the GPU, innermost stride 1.
struct CudnnOperands {
  Tensor q;     // [B, Tq, H, D]
  Tensor k, v;  // [B, Tk, G, D]
  double scale = 1;
  AttentionPiece::Mask mask = AttentionPiece::Mask::full;
  int64_t window = 0;
};

// Both enqueue on `stream` and return an empty text, or enqueue nothing and return why cuDNN cannot
// compute this: a piece that it has no plan for, or one that asks for more than the workspace. The
// plan of a shape is made once a thread, at its first use. No tensor may be empty.

/// out [B, Tq, H, D] bf16 and lse [B, H, Tq] f32, both contiguous and overwritten.
std::string cudnn_attention_forward(const CudnnOperands& operands, const Tensor& out,
                                    const Tensor& lse, const Tensor& workspace, Stream& stream);

/// Gradients of the piece from the final `lse` of its queries, [B, H, Tq] f32; `out` [B, Tq, H, D]
/// bf16 is only read for rowsum(dout * out). dq, dk, dv: bf16 as q, k, v, overwritten. All
/// contiguous but the operands and dout. `lengths`: i32 [2 B], Tq of each sequence and then Tk.
struct CudnnGradients {
  Tensor dq, dk, dv;
  Tensor out, dout, lse;
  Tensor lengths;
};
std::string cudnn_attention_backward(const CudnnOperands& operands, const CudnnGradients& gradients,
                                     const Tensor& workspace, Stream& stream);

}  // namespace weft::cuda
