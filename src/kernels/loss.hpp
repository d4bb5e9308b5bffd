// Cross-entropy over one slice of tokens. The caller walks the tokens in slices, so that the logits
// of a whole shard never exist.
#pragma once

#include "src/core/cost.hpp"
#include "src/core/device.hpp"
#include "src/tensor/tensor.hpp"

namespace weft {

/// Adds the slice's token losses to loss_sum and, with `gradient`, replaces the logits by
/// scale x (softmax - onehot(label)); rows without a label get zeros.
struct CrossEntropyArgs {
  Tensor loss_sum;  // [1] f64, accumulates: sum over labelled rows of lse - logit[label], unscaled
  Tensor logits;    // [R, vocab], in place
  Tensor labels;    // [R] i32 in [0, vocab), or negative: no label
  double scale = 1.0;
  bool gradient = true;
};
Cost cost(const CrossEntropyArgs& args);
void cross_entropy(const CrossEntropyArgs& args, Stream& stream);

namespace cpu {
void cross_entropy(const CrossEntropyArgs& args);
}  // namespace cpu

namespace cuda {
void cross_entropy(const CrossEntropyArgs& args, Stream& stream);
}  // namespace cuda

}  // namespace weft
