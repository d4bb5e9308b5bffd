#pragma once

#include <string>

#include "models/model_config.hpp"
#include "parallel/layer.hpp"
#include "parallel/tensor/tensor_place.hpp"

namespace weft {

/// The last step of a trained decay: log alpha = log sigmoid(x + bias) /
/// model.linear.gate_normalizer of a projection's output x [R, width].
class SigmoidDecay {
 public:
  /// Of these channels; a rank has the width that is its own.
  SigmoidDecay(std::string bias_name, const Piece& channels, const ModelConfig& config);

  int64_t width() const { return bias.numel(); }
  /// log_decay: [..., width] or [..., H, K] of R width elements, overwritten.
  void forward(const Tensor& log_decay, const Tensor& x, StepContext& ctx) const;
  /// dx: overwritten; adds to the bias's gradient.
  void backward(const Tensor& dx, const Tensor& dlog_decay, const Tensor& x,
                StepContext& ctx) const;

  Parameter bias;  // [width]

 private:
  double normalizer_;
};

}  // namespace weft
