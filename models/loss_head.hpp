#pragma once

#include "models/linear.hpp"
#include "models/rms_norm.hpp"

namespace weft {

/// Final norm, vocabulary projection and cross-entropy, walked in slices of tokens: the logits of a
/// slice are made, turned into their gradient and used up before the next slice's. A training
/// forward therefore does the head's backward too.
class LossHead {
 public:
  /// `slice`: tokens whose logits exist at once. `tied`: the embedding table, or null for an own
  /// "lm_head.weight".
  LossHead(const ModelConfig& config, int64_t slice, Parameter* tied);

  /// x: [R, C], in the frame. Adds to ctx.loss_sum. Probes see "logits" slice by slice.
  void forward(const Tensor& x, Frame& frame, StepContext& ctx);
  /// d: [R, C], overwritten with the gradient of x.
  void backward(const Tensor& d, const Tensor& x, Frame& frame, StepContext& ctx);
  void visit(const std::function<void(Parameter&)>& f);

 private:
  const Parameter& weight() const { return tied_ ? *tied_ : own_->weight; }
  /// Of the rows from `row` on.
  void slice_forward(int64_t row, const Tensor& normed, const Tensor& dnormed, const Tensor& labels,
                     const Frame& frame, StepContext& ctx) const;

  int64_t vocab_;
  int64_t slice_;
  RmsNorm norm_;
  Parameter* tied_;
  std::unique_ptr<Linear> own_;
};

}  // namespace weft
