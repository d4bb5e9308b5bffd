#pragma once

#include "models/mixers.hpp"
#include "models/mlp.hpp"
#include "models/rms_norm.hpp"
#include "parallel/tensor/token_rows.hpp"

namespace weft {

/// One layer of the residual stream, pre-norm:
///   mid = x + mixer(norm x);  y = mid + mlp(norm mid).
class DecoderLayer {
 public:
  DecoderLayer(int layer, const ModelConfig& config, const LayerStrategy& strategy);

  /// x: [r, C], the rank's own rows: the frame's "stream" until backward. Returns y, pushed as the
  /// next "stream".
  Tensor forward(const Tensor& x, Frame& frame, StepContext& ctx);
  /// d: [r, C], in place: the gradient of y becomes the gradient of x.
  void backward(const Tensor& d, Frame& frame, StepContext& ctx);
  void visit(const std::function<void(Parameter&)>& f);

 private:
  /// Between own rows and all rows, for one branch after the other.
  struct Crossing {
    TokenRows rows;
    Tensor inputs, sums;  // [R, C], room for a branch's inputs and partial sums; absent where the
                          // own rows are all
    Crossing(int layer, const Tensor& x, const Frame& frame, StepContext& ctx);
  };

  /// Forward, or as much of it as the slots in the frame leave to be done. Leaves the inputs of the
  /// last branch in their room.
  Tensor compute(const Tensor& x, const Crossing& crossing, Frame& frame, StepContext& ctx);
  /// y = x + branch(norm x), where y is asked for; pushes "normed" and what the parts push.
  void add_branch(const RmsNorm& norm, Layer& branch, const Tensor& y, const Tensor& x,
                  const Crossing& crossing, Frame& frame, StepContext& ctx) const;
  /// d += the gradient that reaches x through the branch. `gathered`: its inputs are in their room.
  void add_branch_gradient(const RmsNorm& norm, Layer& branch, const Tensor& d, const Tensor& x,
                           bool gathered, const Crossing& crossing, Frame& frame,
                           StepContext& ctx) const;

  int layer_;
  RmsNorm mixer_norm_;
  std::unique_ptr<Layer> mixer_;
  RmsNorm mlp_norm_;
  Mlp mlp_;
};

}  // namespace weft
