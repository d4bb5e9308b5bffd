#pragma once

#include "models/linear.hpp"
#include "models/model_config.hpp"

namespace weft {

/// y = down(silu(gate x) * up x). Pushes "gate" and "up"; the activation is computed again going
/// backward.
class Mlp final : public Layer {
 public:
  /// `prefix`: "model.layers.<i>.mlp."
  Mlp(const std::string& prefix, const ModelConfig& config, const TensorPlace& place);

  void forward(const Tensor& y, const Tensor& x, Frame& frame, StepContext& ctx) override;
  void backward(const Tensor& dx, const Tensor& dy, const Arriving& x, Frame& frame,
                StepContext& ctx) override;
  void visit(const std::function<void(Parameter&)>& f) override;

 private:
  Piece columns_;  // of F
  Linear gate_, up_, down_;
};

}  // namespace weft
