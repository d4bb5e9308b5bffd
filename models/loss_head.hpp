#pragma once

#include "models/linear.hpp"
#include "models/rms_norm.hpp"

namespace weft {

/// Final norm, vocabulary projection and cross-entropy, walked in slices of tokens: the logits of a
/// slice are made, turned into their gradient and used up before the next slice's. A training
/// forward therefore does the head's backward too. A rank has the logits of its part of the
/// vocabulary, of all rows; the loss is counted by the first rank of the tensor axis.
class LossHead {
 public:
  /// `slice`: tokens whose logits exist at once. `tied`: the embedding table, or null for an own
  /// "lm_head.weight".
  LossHead(const ModelConfig& config, int64_t slice, Parameter* tied, const TensorPlace& place);

  /// x: [r, C], in the frame. Says to `ctx` which of the head's units it comes to, and so does
  /// backward. Adds to ctx.loss_sum. Probes see "logits" slice by slice.
  void forward(const Tensor& x, Frame& frame, StepContext& ctx);
  /// d: [r, C], overwritten with the gradient of x.
  void backward(const Tensor& d, const Tensor& x, Frame& frame, StepContext& ctx);
  void visit(const std::function<void(Parameter&)>& f);
  const Parameter& norm_weight() const { return norm_.weight; }

 private:
  const Parameter& weight() const { return tied_ ? *tied_ : own_->weight; }
  int matrix_unit() const {
    return tied_ && tied_->second_unit >= 0 ? tied_->second_unit : weight().unit;
  }
  /// [ranks, 3, rows] of a slice: what the ranks know of each row. With a gradient to come, logits
  /// are as cross_entropy_shard leaves them.
  Tensor gather_statistics(const Tensor& logits, const Tensor& labels, const Frame& frame,
                           StepContext& ctx) const;
  /// Of the rows from `row` on.
  void slice_forward(int64_t row, const Tensor& normed, const Tensor& dnormed, const Tensor& labels,
                     const Frame& frame, StepContext& ctx) const;

  Piece vocab_;
  int ranks_, rank_;  // of the tensor axis
  int64_t slice_;
  RmsNorm norm_;
  Parameter* tied_;
  std::unique_ptr<Linear> own_;
};

}  // namespace weft
