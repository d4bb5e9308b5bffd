// Cross-entropy over one slice of tokens whose vocabulary is cut over the ranks of a group. The
// caller walks the tokens in slices, so that the logits of a whole shard never exist. Two passes, a
// group of one among others:
//
//   cross_entropy_shard     what a rank knows of every row from its own logits: three numbers
//   an all-gather of those
//   cross_entropy_combine   the loss, and the gradient of the own logits
//
// A gather of the three stands in for the reductions of the largest logit, of the sum and of the
// label's logit in Megatron-LM (Shoeybi et al., arXiv 1909.08053), and nothing is reduced on the
// wire: all ranks combine in the order of the ranks.
#pragma once

#include "src/core/cost.hpp"
#include "src/core/device.hpp"
#include "src/tensor/tensor.hpp"

namespace weft {

/// The numbers of a row: its largest own logit, the sum of exp(logit - largest) over the own
/// logits, and the label's logit, 0 where the label is another rank's. Zeros without a label.
inline constexpr int64_t kRowStatistics = 3;

/// With `gradient`, replaces the logits by scale x the softmax over the own ones; rows without a
/// label get zeros.
struct CrossEntropyShardArgs {
  Tensor statistics;  // out [3, R], accumulator type of the logits
  Tensor logits;      // [R, V]: of the tokens [vocab_begin, vocab_begin + V)
  Tensor labels;      // [R] i32 in [0, vocab), or negative: no label
  int64_t vocab_begin = 0;
  int64_t vocab = 0;  // tokens of all ranks
  double scale = 1.0;
  bool gradient = true;
};
Cost cost(const CrossEntropyShardArgs& args);
void cross_entropy_shard(const CrossEntropyShardArgs& args, Stream& stream);

/// Adds the slice's token losses to loss_sum and, with `gradient`, makes scale x (softmax -
/// onehot(label)) of what cross_entropy_shard left in the logits. Rows that no other rank adds
/// anything to are not read again: in a group of one, all.
struct CrossEntropyCombineArgs {
  Tensor loss_sum;    // [1] f64, accumulates: sum over labelled rows of lse - logit[label],
                      // unscaled; absent where another rank of the group counts the loss
  Tensor logits;      // [R, V], in place
  Tensor statistics;  // [ranks, 3, R]
  Tensor labels;      // [R] i32
  int rank = 0;       // whose logits these are
  int64_t vocab_begin = 0;
  double scale = 1.0;
  bool gradient = true;
};
Cost cost(const CrossEntropyCombineArgs& args);
void cross_entropy_combine(const CrossEntropyCombineArgs& args, Stream& stream);

namespace cpu {
void cross_entropy_shard(const CrossEntropyShardArgs& args);
void cross_entropy_combine(const CrossEntropyCombineArgs& args);
}  // namespace cpu

namespace cuda {
void cross_entropy_shard(const CrossEntropyShardArgs& args, Stream& stream);
void cross_entropy_combine(const CrossEntropyCombineArgs& args, Stream& stream);
}  // namespace cuda

}  // namespace weft
