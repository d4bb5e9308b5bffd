// Softmax over rows of scores that exist in memory: for the strategy that assembles whole rows
// (Li et al., arXiv 2105.13120). Everything else uses the attention kernels, which never do.
#pragma once

#include "src/core/cost.hpp"
#include "src/core/device.hpp"
#include "src/tensor/tensor.hpp"

namespace weft {

/// Scores become probabilities, row by row, in place. What a query does not see becomes 0, whatever
/// stood there; a query that sees nothing has a row of zeros and lse -inf.
struct SoftmaxArgs {
  Tensor scores;              // [B, H, T, N] floating; column j is the global key j
  Tensor lse;                 // [B, H, T], same type: log-sum-exp of what each query sees
  Tensor key_begin, key_end;  // [B, T] i64: query i sees the keys [key_begin, key_end)
};
Cost cost(const SoftmaxArgs& args);
void softmax_forward(const SoftmaxArgs& args, Stream& stream);

/// Of the columns of K keys: scores become probabilities P = exp(score - lse), and their gradients
/// dP become those of the scores, P (dP - delta), both in place; 0 where a query does not see.
/// Only the innermost stride of a tensor must be 1.
struct SoftmaxGradArgs {
  Tensor probs;               // [B, H, T, K]: scores in, P out
  Tensor dscores;             // [B, H, T, K]: dP in, the gradient of the scores out
  Tensor lse, delta;          // [B, H, T]: of softmax_forward; rowsum(P dP) of the whole row
  Tensor key_begin, key_end;  // [B, T] i64
  int64_t first_key = 0;      // global index of column 0
};
Cost cost(const SoftmaxGradArgs& args);
void softmax_backward(const SoftmaxGradArgs& args, Stream& stream);

namespace cpu {
void softmax_forward(const SoftmaxArgs& args);
void softmax_backward(const SoftmaxGradArgs& args);
}  // namespace cpu

namespace cuda {
void softmax_forward(const SoftmaxArgs& args, Stream& stream);
void softmax_backward(const SoftmaxGradArgs& args, Stream& stream);
}  // namespace cuda

}  // namespace weft
