// The short convolution in front of a state mixer: each channel mixes the last W tokens of its
// document, then silu.
#pragma once

#include "src/core/cost.hpp"
#include "src/core/device.hpp"
#include "src/tensor/tensor.hpp"

namespace weft {

inline constexpr int64_t kMostTaps = 16;  // of a short convolution

/// z[t, c] = sum over i < W of weight[c, 0, W - 1 - i] x[t - i, c],   y = z sigmoid(z)
///
/// as a causal conv1d with W groups of one channel. Tokens of another document, or before the
/// sequence, count as 0.
struct ShortConvolutionArgs {
  Tensor y;       // [B, T, D]; may not be x
  Tensor x;       // [B, T, D]
  Tensor before;  // [n, B, D], n < W: the tokens before the shard, the last one last; absent: none
  Tensor weight;  // [D, 1, W], 1 <= W <= kMostTaps
  Tensor positions;  // [B, T] i64, inside the document: a token reads that many back at most
};
Cost cost(const ShortConvolutionArgs& args);
void short_convolution_forward(const ShortConvolutionArgs& args, Stream& stream);

/// dz = dy silu'(z); dx and dbefore are what reaches the tokens and those before them.
struct ShortConvolutionGradArgs {
  Tensor dx;                            // out [B, T, D], like dy; may not be dy
  Tensor dbefore;                       // out [n, B, D], like dy; absent with `before`
  Tensor dweight;                       // [D, 1, W], accumulates
  Tensor dy;                            // [B, T, D], accumulator type of x
  Tensor x, before, weight, positions;  // as in the forward
};
Cost cost(const ShortConvolutionGradArgs& args);
void short_convolution_backward(const ShortConvolutionGradArgs& args, Stream& stream);

namespace cpu {
void short_convolution_forward(const ShortConvolutionArgs& args);
void short_convolution_backward(const ShortConvolutionGradArgs& args);
}  // namespace cpu

namespace cuda {
void short_convolution_forward(const ShortConvolutionArgs& args, Stream& stream);
void short_convolution_backward(const ShortConvolutionGradArgs& args, Stream& stream);
}  // namespace cuda

}  // namespace weft
