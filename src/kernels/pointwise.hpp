// Kernels that treat every token alone: RMSNorm, SwiGLU, embedding, sums.
// Rule of accumulation: parameter gradients add, and so do gradients marked "accumulates"; all
// other outputs are overwritten.
#pragma once

#include "src/core/cost.hpp"
#include "src/core/device.hpp"
#include "src/tensor/tensor.hpp"

namespace weft {

/// y = x * rstd * weight, rstd = (mean(x^2) + eps)^-1/2 (Zhang and Sennrich, arXiv 1910.07467).
struct RmsNormArgs {
  Tensor y;       // [R, C]
  Tensor rstd;    // [R], accumulator type; kept for backward
  Tensor x;       // [R, C]
  Tensor weight;  // [C]
  double eps = 1e-5;
};
Cost cost(const RmsNormArgs& args);
void rmsnorm_forward(const RmsNormArgs& args, Stream& stream);

struct RmsNormGradArgs {
  Tensor dx;       // [R, C], accumulates
  Tensor dweight;  // [C], accumulates
  Tensor dy;       // [R, C]
  Tensor x;        // [R, C]
  Tensor rstd;     // [R]
  Tensor weight;   // [C]
};
Cost cost(const RmsNormGradArgs& args);
void rmsnorm_backward(const RmsNormGradArgs& args, Stream& stream);

/// y = silu(gate) * up (Shazeer, arXiv 2002.05202).
struct SwigluArgs {
  Tensor y;         // [R, F]
  Tensor gate, up;  // [R, F]
};
Cost cost(const SwigluArgs& args);
void swiglu_forward(const SwigluArgs& args, Stream& stream);

struct SwigluGradArgs {
  Tensor dgate, dup;  // [R, F]; may be gate and up
  Tensor y;           // [R, F]: the forward's output again, for the down projection's gradient; may
                      // be dy
  Tensor dy;          // [R, F]
  Tensor gate, up;    // [R, F]
};
Cost cost(const SwigluGradArgs& args);
void swiglu_backward(const SwigluGradArgs& args, Stream& stream);

/// y[r] = table[tokens[r]]; zeros where another rank has the token's row.
struct EmbeddingArgs {
  Tensor y;       // [R, C]
  Tensor table;   // [V, C]: of the tokens [vocab_begin, vocab_begin + V)
  Tensor tokens;  // [R] i32, each in [0, vocab)
  int64_t vocab_begin = 0;
  int64_t vocab = 0;  // tokens of all ranks
};
Cost cost(const EmbeddingArgs& args);
void embedding_forward(const EmbeddingArgs& args, Stream& stream);

struct EmbeddingGradArgs {
  Tensor dtable;  // [V, C], accumulates, in the order of the rows
  Tensor dy;      // [R, C]
  Tensor tokens;  // [R] i32; those of other ranks' rows add nothing
  int64_t vocab_begin = 0;
};
Cost cost(const EmbeddingGradArgs& args);
void embedding_backward(const EmbeddingGradArgs& args, Stream& stream);

/// y = a + b; y may be a.
struct AddArgs {
  Tensor y, a, b;  // one shape, contiguous
};
Cost cost(const AddArgs& args);
void add(const AddArgs& args, Stream& stream);

/// Every element of y becomes `value`.
struct FillArgs {
  Tensor y;  // contiguous
  double value = 0;
};
Cost cost(const FillArgs& args);
void fill(const FillArgs& args, Stream& stream);

/// y = x, bit for bit: between a tensor and a view that is not contiguous.
struct CopyArgs {
  Tensor y, x;  // one shape and type, any strides; no byte in common
};
Cost cost(const CopyArgs& args);
void copy(const CopyArgs& args, Stream& stream);

/// y = x in y's type, to nearest even.
struct ConvertArgs {
  Tensor y, x;  // f32, f64 or bf16, one shape, contiguous; no byte in common. On a GPU not f64
};
Cost cost(const ConvertArgs& args);
void convert(const ConvertArgs& args, Stream& stream);

namespace cpu {
void rmsnorm_forward(const RmsNormArgs& args);
void rmsnorm_backward(const RmsNormGradArgs& args);
void swiglu_forward(const SwigluArgs& args);
void swiglu_backward(const SwigluGradArgs& args);
void embedding_forward(const EmbeddingArgs& args);
void embedding_backward(const EmbeddingGradArgs& args);
void add(const AddArgs& args);
void fill(const FillArgs& args);
void copy(const CopyArgs& args);
void convert(const ConvertArgs& args);
}  // namespace cpu

namespace cuda {
void rmsnorm_forward(const RmsNormArgs& args, Stream& stream);
void rmsnorm_backward(const RmsNormGradArgs& args, Stream& stream);
void swiglu_forward(const SwigluArgs& args, Stream& stream);
void swiglu_backward(const SwigluGradArgs& args, Stream& stream);
void embedding_forward(const EmbeddingArgs& args, Stream& stream);
void embedding_backward(const EmbeddingGradArgs& args, Stream& stream);
void add(const AddArgs& args, Stream& stream);
void fill(const FillArgs& args, Stream& stream);
void copy(const CopyArgs& args, Stream& stream);
void convert(const ConvertArgs& args, Stream& stream);
}  // namespace cuda

}  // namespace weft
